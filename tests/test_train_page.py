"""The page of a training run: what stands in it, that nothing in it is taken for HTML, and how a real browser shows it."""

import json
import re
from pathlib import Path

import browser
import pytest
from edge_rag.train.examples import Statistics
from edge_rag.train.page import METRICS, PAGE, Beside, Section, examples_section, page_of
from edge_rag.train.run import TrainingRun
from test_eval_report import HOSTILE, Outline, plain

STATISTICS = Statistics("hotpotqa/distractor", 543, 540, 0.8, 4.5, 6.0, 950.6, {"too long": 3})
CONFIG = {"method": "supervised", "model": {"name": "smollm2", "sha256": "0" * 64}, "sets": ["a", "b"], "packed": True}


def make(folder: Path, text: str = "as it is", n_steps: int = 300) -> Path:
    """Make a run with all that a page can show."""
    with TrainingRun.open(folder, CONFIG | {"note": text}, command=f"edge-rag train {text}") as run:
        with run.stage("examples", {"text": text}) as stage:
            (stage.folder / "out.jsonl").write_text("{}")
        run.show("1-examples", examples_section({"train": [STATISTICS]}, 1))
        pairs = [Beside(f"Question {n}: {text}", "chosen", text, "rejected", text, text) for n in range(60)]
        run.show(
            "2-pairs", Section("Pairs", text, ("name", "n", "mean"), [(text, 3, 0.25), ("none", None, None)], pairs)
        )
        with pytest.raises(KeyboardInterrupt), run.stage("train", {}):
            for step in range(n_steps):
                run.log("train", step, loss=3 / (step + 1), dev_loss=2.0, dev_f1=step / 300, learning_rate=1e-4)
                run.log("train", step, tokens_per_second=1000 + step)
            raise KeyboardInterrupt
    return folder / PAGE


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("run") / "first")


@pytest.fixture(scope="module")
def html(written: Path) -> str:
    return written.read_text(encoding="utf-8")


def test_the_page_has_settings_stages_curves_and_the_method_s_own(html: str) -> None:
    text = plain(html)
    for said in ("Training: first", "supervised", "model.name", "smollm2", "examples", "finished", "begun", "learning rate",
                 "tokens per second", "hotpotqa/distractor", "950.6", "3 too long", "Pairs", "chosen", "rejected",
                 "The first 50 of 60", "edge-rag train as it is", "1 of 2 begun"):  # fmt: skip
        assert said in text, said


def test_tags_close_in_order_and_the_page_needs_nothing_else(html: str) -> None:
    outline = Outline(html)
    assert not outline.misplaced
    assert not {"script", "link", "img", "iframe", "object"} & {tag for tag, _ in outline.tags}
    assert not [a for _, a in outline.tags if a.keys() & {"src", "style"} or any(k.startswith("on") for k in a)]
    ids = [attributes["id"] for _, attributes in outline.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    levels = [int(tag[1]) for tag, _ in outline.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert len(outline.named("svg")) == 4  # losses, dev, learning rate, tokens per second


def test_nothing_in_a_run_is_taken_for_html(tmp_path: Path) -> None:
    outline = Outline(make(tmp_path / "run", HOSTILE, n_steps=3).read_text(encoding="utf-8"))
    assert not outline.misplaced
    assert not {"script", "img"} & {tag for tag, _ in outline.tags}


def test_a_run_that_has_hardly_begun_has_a_page(tmp_path: Path) -> None:
    assert "0 of 0 begun" in plain(page_of(tmp_path))
    with TrainingRun.open(tmp_path / "run", CONFIG, command="x") as run:
        run.log("train", 0, loss=float("nan"))
        run.log("train", 1, loss=0.5)
    assert "step 1 of train" in plain((tmp_path / "run" / PAGE).read_text(encoding="utf-8"))


def test_of_a_step_that_was_logged_twice_the_last_counts(tmp_path: Path) -> None:
    rows = [
        {"stage": "train", "step": s, "loss": loss} for s, loss in [(0, 5.0), (1, 4.0), (2, 9.0), (1, 3.0), (2, 2.0)]
    ]
    (tmp_path / METRICS).write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"stage": "tra')
    page = page_of(tmp_path)
    assert "loss: 5 to 2" in page and "9" not in re.findall(r"loss: (\S+) to", page)


@pytest.mark.parametrize(
    "damage", [b"\xff\xfe", b"[]", b"null\n", b'{"step": "x", "loss": []}\n', b'{"loss": 1e999}\n']
)
def test_damaged_files_of_a_run_do_not_keep_the_page_from_being_written(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "examples").mkdir()
    (tmp_path / "sections").mkdir()
    for name in (METRICS, "config.json", "examples/stage.json", "sections/x.json"):
        (tmp_path / name).write_bytes(damage)
    assert not Outline(page_of(tmp_path)).misplaced


def test_the_page_follows_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge_rag.train.run.PAGE_S", 0.0)
    with TrainingRun.open(tmp_path / "run", CONFIG, command="x") as run:
        for step in range(3):
            run.log("train", step, loss=1.0)
            assert f"step {step} of train" in plain((tmp_path / "run" / PAGE).read_text(encoding="utf-8"))


@pytest.mark.skipif(not browser.CHROMIUM, reason="needs Chromium")
def test_a_browser_shows_it_on_a_phone_and_a_desk_light_and_dark(written: Path, tmp_path: Path) -> None:
    hostile = make(tmp_path / "hostile", HOSTILE, n_steps=3)
    with browser.opened() as tab:
        for path in (written, hostile):
            for size in (browser.PHONE, browser.DESKTOP):
                for dark in (False, True):
                    tab.open(path, size, dark=dark)
                    tab.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
                    assert tab.evaluate("document.documentElement.scrollWidth") <= size[0]
                    assert tab.evaluate("document.title").startswith("Training: ")
                    assert tab.requests() == [path.resolve().as_uri()] and tab.complaints() == []
                    columns = tab.evaluate("getComputedStyle(document.querySelector('.beside')).gridTemplateColumns")
                    assert len(columns.split()) == (1 if size == browser.PHONE else 2)
                    paper, ink = (
                        tab.evaluate(f"getComputedStyle(document.body).{name}") for name in ("backgroundColor", "color")
                    )
                    brightness = [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in (paper, ink)]
                    assert (brightness[0] < brightness[1]) == dark
