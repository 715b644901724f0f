"""A training run's folder: stages that are there as a whole or not at all, rows that outlive kills, one writer."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from edge_rag.train.page import METRICS, PAGE, STAGE
from edge_rag.train.run import Stage, TrainingRun

from edge_rag.errors import EdgeRagError, LibraryLocked, UsageError
from edge_rag.evaluation.run_folder import CONFIG, Rows, content_key, read_rows

CONFIG_NOW: dict[str, Any] = {"method": "supervised", "seed": 0, "lora": {"rank": 16}, "threads": 1}


def opened(folder: Path, **changes: Any) -> Any:
    force = changes.pop("force", False)
    return TrainingRun.open(folder, CONFIG_NOW | changes, command="train supervised", force=force)


def make(run: TrainingRun, name: str = "examples", text: str = "made", **inputs: Any) -> Stage:
    """Make a stage of one file, unless it is there."""
    with run.stage(name, inputs) as stage:
        if not stage.is_complete:
            (stage.folder / "out.txt").write_text(text)
    with run.stage(name, inputs) as stage:
        assert stage.is_complete
        return stage


def python(code: str, *arguments: object, **environment: str) -> "subprocess.Popen[str]":
    head = "import sys, os, time\nfrom pathlib import Path\nfrom edge_rag.train.run import TrainingRun\n"
    head += f"folder = Path(sys.argv[1])\ndef opened():\n    return TrainingRun.open(folder, {CONFIG_NOW!r}, command='train')\n"
    return subprocess.Popen(
        [sys.executable, "-c", head + code, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
    )


def wait_for(condition: Any, process: "subprocess.Popen[str] | None" = None) -> None:
    for _ in range(2000):
        if condition():
            return
        assert process is None or process.poll() is None, process.communicate()
        time.sleep(0.01)
    raise AssertionError("nothing happened")


# --- stages


def test_a_stage_is_made_once_and_found_by_its_inputs(tmp_path: Path) -> None:
    with opened(tmp_path / "run") as run:
        first = make(run, seed=0)
    with opened(tmp_path / "run") as run:
        again = make(run, text="other", seed=0)
        assert again == first
        assert (again.folder / "out.txt").read_text() == "made"
        changed = make(run, text="other", seed=1)
    assert (changed.folder / "out.txt").read_text() == "other"
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == [CONFIG, "examples", PAGE, "writer.lock"]


def test_a_stage_depends_on_the_outputs_of_those_before_it(tmp_path: Path) -> None:
    with opened(tmp_path / "run") as run:
        one = make(run, "one", "same", seed=0)
        two = make(run, "two", source=one)
        alike = make(run, "one", "same", seed=1)  # made again, to the same end
        assert make(run, "two", source=alike).key == two.key
        assert make(run, "two", source=make(run, "one", "else", seed=2)).key != two.key


def test_a_path_among_the_inputs_stands_for_its_bytes(tmp_path: Path) -> None:
    data = tmp_path / "data.txt"
    data.write_text("one")
    with opened(tmp_path / "run") as run:
        key = make(run, data=data).key
        data.touch()
        assert make(run, data=data).key == key
        data.write_text("two")
        assert make(run, data=data).key != key


def test_what_fails_in_a_stage_leaves_no_stage_and_what_was_done_is_found_again(tmp_path: Path) -> None:
    with opened(tmp_path / "run") as run:
        with pytest.raises(RuntimeError), run.stage("train", {"seed": 0}) as stage:
            (stage.folder / "checkpoint").write_text("step 5")
            raise RuntimeError
        assert not (tmp_path / "run" / "train").exists()
        with run.stage("train", {"seed": 0}) as stage:
            assert not stage.is_complete
            assert (stage.folder / "checkpoint").read_text() == "step 5"
            assert json.loads((stage.folder / STAGE).read_text())["seconds"] > 0
        with pytest.raises(RuntimeError), run.stage("train", {"seed": 1}) as stage:
            assert not (stage.folder / "checkpoint").exists()
            raise RuntimeError
        with run.stage("train", {"seed": 0}) as stage:
            assert stage.is_complete


@pytest.mark.parametrize("moment", ["before the first rename", "between the renames"])
def test_a_kill_while_a_stage_is_put_in_its_place_is_mended(tmp_path: Path, moment: str) -> None:
    folder = tmp_path / "run"
    with opened(folder) as run:
        make(run, text="old", seed=0)
        (folder / "examples").replace(folder / "aside")
        make(run, text="new", seed=1)
    (folder / "examples").replace(folder / "examples.part")
    (folder / "aside").replace(folder / ("examples" if moment == "before the first rename" else "examples.old"))
    with opened(folder) as run:
        assert (make(run, seed=1).folder / "out.txt").read_text() == "new"
    assert not list(folder.glob("examples.*"))


def test_a_stage_of_which_a_file_is_gone_is_made_again(tmp_path: Path) -> None:
    with opened(tmp_path / "run") as run:
        (make(run).folder / "out.txt").unlink()
        assert (make(run, text="again").folder / "out.txt").read_text() == "again"


def test_a_stage_needs_a_plain_name(tmp_path: Path) -> None:
    with opened(tmp_path / "run") as run:
        for name in ("", "a/b", "..", "A", "rows", "x.part", "sections"):
            with pytest.raises(ValueError, match="no name for a stage"), run.stage(name, {}):
                pass


# --- the config


@pytest.mark.parametrize(
    ("change", "named"),
    [({"seed": 1}, "seed is 0 there and 1 now"), ({"lora": {"rank": 8}}, r"lora\.rank is 16 there and 8 now")],
)
def test_a_folder_keeps_its_run_unless_forced(tmp_path: Path, change: dict[str, Any], named: str) -> None:
    with opened(tmp_path / "run") as run:
        make(run, "kept", seed=0)
    with (
        pytest.raises(UsageError, match=f"another run: {named}; .* or go on there with --force"),
        opened(tmp_path / "run", **change),
    ):
        pass
    with opened(tmp_path / "run", **change, force=True) as run:
        assert (make(run, "kept", "anew", seed=0).folder / "out.txt").read_text() == "made"
    with opened(tmp_path / "run", **change):
        pass


def test_the_machine_and_the_threads_make_no_difference(tmp_path: Path) -> None:
    with opened(tmp_path / "run") as run:
        make(run)
    config = json.loads((tmp_path / "run" / CONFIG).read_text())
    assert config["versions"]["edge-rag"] and config["command"] == "train supervised"
    (tmp_path / "run" / CONFIG).write_text(json.dumps(config | {"machine": "another", "started": "long ago"}))
    with opened(tmp_path / "run", threads=4):
        pass


def test_a_run_that_made_nothing_bars_no_other(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), opened(tmp_path / "run") as run, run.stage("examples", {}):
        raise RuntimeError
    with opened(tmp_path / "run", seed=5) as run:
        make(run)


@pytest.mark.parametrize("damage", ["", "{", "[]", "\x00\x01"])
def test_a_damaged_config_is_one_clear_line_and_nothing_is_touched(tmp_path: Path, damage: str) -> None:
    with opened(tmp_path / "run") as run:
        make(run)
    (tmp_path / "run" / CONFIG).write_text(damage)
    with pytest.raises(EdgeRagError, match=r"config\.json cannot be read: .*; remove"), opened(tmp_path / "run"):
        pass
    assert (tmp_path / "run" / CONFIG).read_text() == damage
    with opened(tmp_path / "run", force=True):
        pass


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="holds something else than a run"), opened(tmp_path):
        pass
    assert [p.name for p in tmp_path.iterdir() if p.name != "home"] == ["thesis.txt"]


# --- rows


def test_rows_are_found_by_their_key_in_the_next_session(tmp_path: Path) -> None:
    texts = {content_key("q", n): f"line\u2028one\nand two, {n} \ud800" for n in range(50)}
    with opened(tmp_path / "run") as run, run.rows("samples") as rows:
        for key, text in texts.items():
            rows.add(key, {"text": text})
    with opened(tmp_path / "run", seed=1, force=True) as run, run.rows("samples") as rows:
        assert len(rows) == 50 and content_key("q", 50) not in rows
        assert all(rows[key]["text"].startswith("line\u2028one\nand two") for key in texts)


@pytest.mark.parametrize("cut", [1, 2, 10, 30])
def test_a_torn_last_row_is_dropped_and_the_next_is_whole(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "rows.jsonl"
    with Rows(path) as rows:
        for n in range(3):
            rows.add({"n": n, "text": "x" * 40})
    path.write_bytes(path.read_bytes()[:-cut])
    with Rows(path) as rows:
        assert [row["n"] for row in rows] == [0, 1]
        rows.add({"n": 7})
    assert [row["n"] for row in read_rows(path)] == [0, 1, 7]


def test_a_damaged_row_is_named_and_stays(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"n": 0}\n{"n": \n{"n": 2}\n')
    with pytest.raises(EdgeRagError, match=r"rows\.jsonl is damaged: line 2: .*; remove .*rows\.jsonl"):
        Rows(path)
    assert path.read_bytes() == b'{"n": 0}\n{"n": \n{"n": 2}\n'


@pytest.mark.parametrize("n_kills", [3])
def test_a_writer_that_is_killed_loses_no_row_that_it_had_stored(tmp_path: Path, n_kills: int) -> None:
    code = """
with opened() as run, run.rows("samples") as rows:
    for n in range(len(rows), 10**6):
        rows.add(str(n), "x" * (n % 3000))
        print(n, flush=True)
"""
    known = 0
    for _ in range(n_kills):
        process = python(code, tmp_path / "run")
        assert process.stdout is not None
        for line in process.stdout:
            if int(line) >= known + 200:
                break
        process.send_signal(signal.SIGKILL)
        rest = process.communicate()[0].split("\n")
        said = max([int(line), *(int(n) for n in rest[:-1] if n)])
        with opened(tmp_path / "run") as run, run.rows("samples") as rows:
            assert len(rows) >= said + 1
            assert all(rows[str(n)] == "x" * (n % 3000) for n in range(len(rows)))
            known = len(rows)


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on the size of files")
@pytest.mark.parametrize("what", ["rows", "stage", "metrics"])
def test_a_full_disk_is_one_clear_line_and_what_is_there_is_whole(tmp_path: Path, what: str) -> None:
    code = f"""
import resource, signal
from edge_rag.errors import EdgeRagError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    with opened() as run:
        if {what!r} == "rows":
            with run.rows("samples") as rows:
                for n in range(1000):
                    rows.add(str(n), "x" * 777)
        if {what!r} == "stage":
            with run.stage("small", {{}}) as stage:
                (stage.folder / "out").write_text("small")
            with run.stage("large", {{}}) as stage:
                (stage.folder / "out").write_text("x" * 30_000)
        for n in range(10_000):
            run.log("train", n, loss=1 / 3)
except EdgeRagError as error:
    print(type(error).__name__, error)
"""
    said, errors = python(code, tmp_path / "run").communicate()
    assert errors == ""
    assert said.startswith("EdgeRagError") and "cannot be written" in said and "what is there is whole" in said
    assert said.count("\n") == 1
    with opened(tmp_path / "run") as run:
        if what == "rows":
            with run.rows("samples") as rows:
                assert 20 <= len(rows) <= 26 and rows[str(len(rows) - 1)] == "x" * 777
                rows.add("more", 1)
        if what == "stage":
            assert (make(run, "small").folder / "out").read_text() == "small"
            assert not (tmp_path / "run" / "large").exists()
        run.log("train", 10_000, loss=0.0)
    lines = (tmp_path / "run" / METRICS).read_bytes().split(b"\n")
    assert lines.pop() == b"" and [json.loads(line) for line in lines][-1]["step"] == 10_000


# --- metrics


def test_metrics_are_one_object_a_line_and_no_number_is_null(tmp_path: Path) -> None:
    with opened(tmp_path / "run") as run:
        run.log("train", 1, loss=2.5, tokens_per_second=1000)
        run.log("train", 2, loss=float("nan"), dev_f1=float("inf"))
    assert read_rows(tmp_path / "run" / METRICS) == [
        {"stage": "train", "step": 1, "loss": 2.5, "tokens_per_second": 1000.0},
        {"stage": "train", "step": 2, "loss": None, "dev_f1": None},
    ]


def test_a_stage_that_goes_back_takes_its_metrics_back(tmp_path: Path) -> None:
    with opened(tmp_path / "run") as run:
        for step in range(5):
            run.log("train", step, loss=step)
            run.log("other", step, loss=step)
        run.forget("train", after=2)
        run.log("train", 3, loss=30)
        with run.stage("other", {}):  # made anew
            pass
    rows = read_rows(tmp_path / "run" / METRICS)
    assert [row["loss"] for row in rows if row["stage"] == "train"] == [0, 1, 2, 30]
    assert not [row for row in rows if row["stage"] == "other"]


# --- several processes


def test_a_second_process_is_told_who_runs(tmp_path: Path) -> None:
    process = python("with opened():\n    print('open', flush=True)\n    time.sleep(60)", tmp_path / "run")
    try:
        assert process.stdout is not None and process.stdout.readline() == "open\n"
        with pytest.raises(LibraryLocked, match=f"process {process.pid} "), opened(tmp_path / "run"):
            pass
    finally:
        process.kill()
        process.communicate()
    with opened(tmp_path / "run"):  # the lock dies with its holder
        pass


def test_other_processes_of_a_launch_wait_for_the_first_and_write_nothing(tmp_path: Path) -> None:
    code = """
with opened() as run:
    with run.stage("examples", {}) as stage:
        print(stage.is_complete, (stage.folder / "out.txt").read_text(), flush=True)
    with run.stage("train", {}, together=True) as stage:
        print(stage.is_complete, stage.folder.name, flush=True)
        run.log("train", 1, loss=1)
    print((run.folder / "train" / "model").read_text(), flush=True)
"""
    process = python(code, tmp_path / "run", RANK="1")
    assert process.stdout is not None
    lines: list[str] = []
    reader = threading.Thread(target=lambda: lines.extend(process.stdout or ()))
    reader.start()
    try:
        with opened(tmp_path / "run") as run:
            time.sleep(0.5)
            assert not lines
            with run.stage("examples", {}) as stage:
                (stage.folder / "out.txt").write_text("made")
                time.sleep(0.5)
                assert not lines
            wait_for(lambda: len(lines) == 1, process)
            with run.stage("train", {}, together=True) as stage:
                wait_for(lambda: len(lines) == 2, process)
                (stage.folder / "model").write_text("learnt")
            process.wait(20)
    finally:
        process.kill()
        reader.join()
        errors = process.stderr.read() if process.stderr else ""
        process.communicate()
    assert errors == ""
    assert lines == ["True made\n", "False train.part\n", "learnt\n"]
    assert read_rows(tmp_path / "run" / METRICS) == []


def test_a_waiting_process_ends_when_its_launcher_does(tmp_path: Path) -> None:
    launcher = f"""
import subprocess
code = '''import sys
from pathlib import Path
from edge_rag.train.run import TrainingRun
print("up", flush=True)
with TrainingRun.open(Path(sys.argv[1]), {CONFIG_NOW!r}, command="x") as run, run.stage("examples", {{}}):
    pass
'''
child = subprocess.Popen([sys.executable, "-c", code, str(folder)], env=os.environ | {{"RANK": "1"}}, stdout=subprocess.PIPE)
child.stdout.readline()
time.sleep(1.5)
"""
    _, errors = python(launcher, tmp_path / "run").communicate(timeout=60)  # until the waiting one has ended, too
    assert "the process that makes examples has ended" in errors
