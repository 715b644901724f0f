import os
import sys
from pathlib import Path

import pytest

from edge_rag.errors import UsageError
from edge_rag.settings import Settings, library_path, load_settings, load_with_origins


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A home and a project, with nothing in them yet; the working directory is inside the project."""
    home, project = tmp_path / "home", tmp_path / "project"
    (project / ".edge_rag").mkdir(parents=True)
    (project / "sub").mkdir()
    home.mkdir()
    monkeypatch.setenv("EDGE_RAG_HOME", str(home))
    monkeypatch.chdir(project / "sub")
    return home, project


def test_the_nearest_source_wins(places: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    home, project = places
    assert load_with_origins()["threads"].source == "default"
    (home / "config.toml").write_text("threads = 1\npassages = 7\n")
    assert load_settings().threads == 1
    (project / ".edge_rag" / "config.toml").write_text("threads = 2\n")
    assert load_settings().threads == 2
    monkeypatch.setenv("EDGE_RAG_THREADS", "3")
    assert load_settings().threads == 3
    origins = load_with_origins({"threads": 4, "passages": None})
    assert (origins["threads"].value, origins["threads"].source) == (4, "flag --threads")
    assert (origins["passages"].value, origins["passages"].source) == (7, str(home / "config.toml"))


@pytest.mark.parametrize(
    "text",
    [
        "threads = 'many'",
        "threads = -1",
        "threads = 1.5",
        "threads = true",
        "thread = 1",
        "threads ==",
        "confidence = 2.0",
        "prompt = 'poem'",
    ],
)
def test_a_wrong_setting_is_refused_with_the_file_that_holds_it(places: tuple[Path, Path], text: str) -> None:
    config = places[0] / "config.toml"
    config.write_text(text)
    with pytest.raises(UsageError) as caught:
        load_settings()
    assert str(config) in str(caught.value)


@pytest.mark.skipif(sys.platform == "win32", reason="about the permissions of Unix")
def test_settings_in_folders_that_this_user_may_not_enter_are_none(places: tuple[Path, Path]) -> None:
    folders = (places[0], places[1] / ".edge_rag")
    for folder in folders:
        (folder / "config.toml").write_text("threads = 7\n")
    assert load_settings().threads == 7
    user = os.geteuid()
    try:
        for folder in folders:
            folder.chmod(0)
        if user == 0:  # who may enter any folder
            os.seteuid(65534)
        assert load_settings() == Settings()
    finally:
        os.seteuid(user)
        for folder in folders:
            folder.chmod(0o700)


def test_an_unknown_variable_is_refused(places: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGE_RAG_THREDS", "3")
    with pytest.raises(UsageError, match="EDGE_RAG_THREDS"):
        load_settings()


def test_a_library_is_a_name_or_a_folder(places: tuple[Path, Path]) -> None:
    home, project = places
    assert library_path("notes") == home / "libraries" / "notes"
    assert library_path("./notes") == project / "sub" / "notes"
    assert library_path(Settings().library) == home / "libraries" / "default"


@pytest.mark.parametrize("name", ["", ".hidden", "a:b", "what?", "nul\0"])
def test_a_name_that_some_file_system_refuses_is_refused(places: tuple[Path, Path], name: str) -> None:
    with pytest.raises(UsageError):
        library_path(name)
