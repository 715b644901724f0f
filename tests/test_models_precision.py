"""Which precision a machine takes: measured on the shipped embedder, decided on invented figures, remembered."""

import json
import shutil
from pathlib import Path

import pytest

from edge_rag.errors import ModelError
from edge_rag.models import locate_embedder, open_embedder, precision
from edge_rag.models.embedder import OnnxEmbedder
from edge_rag.models.onnx_folder import OnnxFolder, read_folder
from edge_rag.models.precision import Choice, Measured, decide

PACKAGED = locate_embedder("all-minilm-l6-v2")


@pytest.fixture
def both(tmp_path: Path) -> OnnxFolder:
    """The shipped embedder with its int8 graph under both names: what is chosen depends on what is measured."""
    folder = shutil.copytree(PACKAGED, tmp_path / "both")
    shutil.copy(folder / "model.int8.onnx", folder / "model.fp32.onnx")
    manifest = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    manifest["files"] = {"model.fp32.onnx": manifest["files"]["model.int8.onnx"]} | manifest["files"]
    (folder / "model.json").write_text(json.dumps(manifest), encoding="utf-8")
    return read_folder(folder, "embedder")


def figures(precision: str, texts_s: float, agreement: float | None) -> Measured:
    return Measured(precision, texts_s, agreement)


@pytest.mark.parametrize(
    ("int8", "fp32", "chosen", "said"),
    [
        ((90, 0.997), (40, 1.0), "int8", "the faster"),
        ((30, 0.997), (40, 1.0), "fp32", "the faster"),
        ((90, 0.997), (95, 1.0), "int8", "about as fast"),
        ((90, 0.6), (40, 1.0), "fp32", "agrees less than"),
        ((90, float("nan")), (40, 1.0), "fp32", "agrees less than"),
        ((90, None), (40, None), "int8", "the faster"),
        ((90, 0.5), (40, 0.6), "fp32", "neither"),
    ],
)
def test_the_faster_is_taken_unless_it_is_wrong(
    int8: tuple[float, float | None], fp32: tuple[float, float | None], chosen: str, said: str
) -> None:
    choice = decide("embedder", (figures("int8", *int8), figures("fp32", *fp32)))
    assert choice.precision == chosen and said in choice.why
    assert "int8: 90 texts/s" in choice.why or "int8: 30 texts/s" in choice.why


def test_an_int8_model_alone_says_when_it_does_not_work_here() -> None:
    assert "the only one here" in decide("selector", (figures("int8", 90, 0.99),)).why
    wrong = decide("selector", (figures("int8", 90, 0.7),))
    assert wrong.precision == "int8" and "--precision both" in wrong.why


def test_the_shipped_embedder_is_near_its_original_here() -> None:
    choice = precision.probe(read_folder(PACKAGED, "embedder"))
    [found] = choice.measured
    assert found.precision == "int8" and found.texts_s > 1
    assert found.agreement is not None and 0.99 < found.agreement < 1


def test_one_precision_is_opened_without_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "_measure", lambda folder: pytest.fail("measured"))
    assert open_embedder("all-minilm-l6-v2").precision == "int8"


def test_a_choice_is_remembered_for_this_processor_runtime_and_file(
    both: OnnxFolder, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = []

    def measure(folder: OnnxFolder) -> tuple[Measured, ...]:
        measured.append(folder)
        return (figures("int8", 10, 0.997), figures("fp32", 20, 1.0))

    monkeypatch.setattr(precision, "_measure", measure)
    assert precision.choose(both).precision == precision.choose(both).precision == "fp32"
    assert len(measured) == 1
    [kept] = (home / "cache" / "precision").iterdir()
    kept.write_text("{", encoding="utf-8")  # damaged: measured again
    precision.choose(both)
    assert len(measured) == 2
    monkeypatch.setattr(precision, "processor", lambda: "another")
    precision.choose(both)
    assert len(measured) == 3
    monkeypatch.setattr(precision, "version", lambda package: "2.0")
    precision.choose(both)
    assert len(measured) == 4


def test_a_cache_that_cannot_be_written_is_no_error(
    both: OnnxFolder, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.mkdir()
    (home / "cache").write_text("a file in the way")
    monkeypatch.setattr(precision, "_measure", lambda folder: (figures("int8", 10, None),))
    assert precision.probe(both).precision == "int8"


def test_both_graphs_are_run_and_the_embedder_takes_the_chosen_one(
    both: OnnxFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "SECONDS", 0.01)
    choice = precision.choose(both)
    assert len({m.agreement for m in choice.measured}) == 1
    embedder = open_embedder(str(both.files))
    assert embedder.precision == choice.precision and embedder.fingerprint == both.fingerprint(choice.precision)
    for each in both.precisions:
        assert open_embedder(str(both.files), fingerprint=both.fingerprint(each)).precision == each


def test_a_precision_that_is_not_there_is_refused() -> None:
    with pytest.raises(ModelError, match="is not here as fp32"):
        OnnxEmbedder(PACKAGED, precision="fp32")


def test_the_shipped_fingerprint_is_that_of_the_int8_files_alone(both: OnnxFolder) -> None:
    assert both.fingerprint("int8") == open_embedder("all-minilm-l6-v2").fingerprint != both.fingerprint("fp32")


@pytest.mark.parametrize(
    "text", ["", "{", '{"texts": []}', '{"texts": ["a"], "expected": [[1, 2]]}', '{"texts": 3, "expected": 3}']
)
def test_a_damaged_probe_is_found(both: OnnxFolder, text: str) -> None:
    (both.files / "probe.json").write_text(text, encoding="utf-8")
    with pytest.raises(ModelError, match=r"probe\.json is damaged"):
        precision.probe(both)


def test_without_a_probe_only_speed_is_compared(both: OnnxFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "SECONDS", 0.01)
    (both.files / "probe.json").unlink()
    choice = precision.probe(both)
    assert isinstance(choice, Choice) and [m.agreement for m in choice.measured] == [None, None]
