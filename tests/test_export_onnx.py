"""`export onnx` on tiny models of every known architecture: exact in fp32, near in int8, refused where unknown."""

import json
import re
import shutil
import sys
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the [export] extra")
pytest.importorskip("transformers", reason="needs the [export] extra")
pytest.importorskip("onnx", reason="needs the [export] extra")

import tiny_encoders
import torch
import transformers
from edge_rag.export import onnx_parity
from edge_rag.export.to_onnx import export_onnx
from typer.testing import CliRunner

from edge_rag.answering import evidence
from edge_rag.cli.commands import app
from edge_rag.errors import EdgeRagError, MissingExtraError, ModelError, UsageError
from edge_rag.library import Library
from edge_rag.models import open_embedder, precision
from edge_rag.models.embedder import OnnxEmbedder
from edge_rag.models.onnx_folder import read_folder
from edge_rag.models.selector import OnnxScorer
from edge_rag.settings import Settings

TEXTS = [
    "Who kept the light?",
    "",
    "Thomas Moar kept the light from 1891 to 1914. " * 5,
    "東京 🙂 naïve\n\n42",
    "x " * 400,
]
SOURCES = {"embedder": {}, "selector": {"n_labels": 1}}

Folder = Callable[[str, str], Path]


def export(source: Path, target: Path, role: str, **options: Any) -> dict[str, Any]:
    quick = {"n_texts": 60, "timed": False, "threads": 1, "sample": Path(typing.__file__)}
    return export_onnx(source, target, role, **(quick | options))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """Return a function that gives the folder of a model; each is made once. Copy what you change."""
    made: dict[tuple[str, str], Path] = {}
    folder = tmp_path_factory.mktemp("sources")

    def get(architecture: str, role: str) -> Path:
        if (architecture, role) not in made:
            place = folder / f"{architecture}-{role}"
            made[architecture, role] = tiny_encoders.save(place, architecture, **SOURCES[role])
        return made[architecture, role]

    return get


@pytest.fixture(scope="module")
def exported(source: Folder, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Folder]:
    """Give a function that returns the folder of an export in both precisions; each is made once."""
    made: dict[tuple[str, str], Path] = {}
    folder = tmp_path_factory.mktemp("exports")

    def get(architecture: str, role: str) -> Path:
        if (architecture, role) not in made:
            target = folder / f"{architecture}-{role}"
            export(source(architecture, role), target, role, precision="both")
            made[architecture, role] = target
        return made[architecture, role]

    with (
        pytest.MonkeyPatch.context() as patch
    ):  # random weights score all texts nearly alike, so that rounding swaps them
        patch.setitem(onnx_parity.FLOORS, ("selector", "int8"), {"spearman": 0.85, "top5_overlap": 0.6})
        yield get


# ---- what is computed


@pytest.mark.parametrize("architecture", tiny_encoders.ARCHITECTURES)
def test_an_embedder_computes_what_transformers_does_with_padded_batches(
    source: Folder, exported: Folder, architecture: str
) -> None:
    path = source(architecture, "embedder")
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    model = transformers.AutoModel.from_pretrained(path).eval()
    batch = tokenizer(TEXTS, padding=True, truncation=True, max_length=300, return_tensors="pt")
    with torch.inference_mode():
        states = model(**{name: batch[name] for name in ("input_ids", "attention_mask")}).last_hidden_state
    mask = batch["attention_mask"][:, :, None]
    expected = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=1).numpy()
    folder = exported(architecture, "embedder")
    exact = OnnxEmbedder(folder, threads=1, precision="fp32")
    np.testing.assert_allclose(exact.embed(TEXTS), expected, atol=2e-5)
    near = OnnxEmbedder(folder, threads=1, precision="int8").embed(TEXTS)
    assert (near * expected).sum(axis=1).min() > 0.99 and not np.allclose(near, expected, atol=1e-5)


@pytest.mark.parametrize("architecture", tiny_encoders.ARCHITECTURES)
def test_a_selector_computes_what_transformers_does_with_padded_batches(
    source: Folder, exported: Folder, architecture: str
) -> None:
    path = source(architecture, "selector")
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(path).eval()
    question = "Who kept the light?"
    batch = tokenizer(
        [question] * len(TEXTS), TEXTS, padding=True, truncation="only_second", max_length=300, return_tensors="pt",
        return_token_type_ids=architecture == "bert",
    )  # fmt: skip
    with torch.inference_mode():
        expected = model(**batch).logits[:, 0].numpy()
    scores = OnnxScorer(exported(architecture, "selector"), threads=2, precision="fp32").score(question, TEXTS)
    assert scores.shape == (len(TEXTS),) and scores.dtype == np.float32
    np.testing.assert_allclose(scores, expected, atol=2e-4)


def test_the_report_says_what_was_found(exported: Folder) -> None:
    folder = exported("bert", "selector")
    report = json.loads((folder / "parity.json").read_text(encoding="utf-8"))
    assert report["failed"] == [] and report["token_mismatches"] == [] and report["hostile_texts"] > 30
    assert report["precisions"]["fp32"]["logit_difference"] < 1e-4
    assert 0.85 < report["precisions"]["int8"]["spearman"] < 1
    files = [p.stat().st_size for p in folder.iterdir() if p.name != "parity.json"]
    assert sum(files) - (folder / "probe.json").stat().st_size <= report["size_bytes"] <= sum(files)
    int8, fp32 = (report["precisions"][p]["size_bytes"] for p in ("int8", "fp32"))
    assert int8 < fp32 / 3


def test_two_exports_are_the_same_to_the_last_bit(source: Folder, exported: Folder, tmp_path: Path) -> None:
    export(source("bert", "embedder"), tmp_path / "again", "embedder")
    for name in ("model.int8.onnx", "model.int8.data", "vocab.txt", "probe.json"):
        assert (tmp_path / "again" / name).read_bytes() == (exported("bert", "embedder") / name).read_bytes()


def test_cls_pooling_is_taken_from_modules_json(source: Folder, exported: Folder, tmp_path: Path) -> None:
    tiny_encoders.save(tmp_path / "cls", "bert", pooling="cls")
    assert export(tmp_path / "cls", tmp_path / "out", "embedder", precision="fp32")["pooling"] == "cls"
    mean = OnnxEmbedder(exported("bert", "embedder"), precision="fp32").embed(TEXTS[:1])
    assert (mean * OnnxEmbedder(tmp_path / "out").embed(TEXTS[:1])).sum() < 0.99


def test_the_passage_is_cut_and_the_question_never(exported: Folder) -> None:
    for architecture in ("bert", "roberta"):
        scorer = OnnxScorer(exported(architecture, "selector"), threads=1, precision="int8")
        long, question = "light " * 500, "Who kept the light " + "and the door " * 10
        whole, longer, other = scorer.score(question, [long, long + "x " * 50, "y " + long])
        assert whole == longer != other
        assert scorer.score(question + "?", [long])[0] != whole
        with pytest.raises(UsageError, match="the question has"):
            scorer.score(long, ["passage"])
        assert scorer.score(question, []).shape == (0,)


def test_a_library_opens_again_with_the_embedder_it_was_made_with(
    exported: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = exported("roberta", "embedder")
    (tmp_path / "keepers.txt").write_text("Thomas Moar kept the light from 1891 to 1914.")
    settings = Settings(embedder=str(folder), threads=1)
    prints = {}
    for made_with, chosen_later in (("fp32", "int8"), ("int8", "fp32")):
        path = tmp_path / made_with
        _machine_likes(monkeypatch, made_with)
        with Library.open(path, create=True, settings=settings) as library:
            library.add([tmp_path / "keepers.txt"])
            prints[made_with] = library.embedder.fingerprint
        _machine_likes(monkeypatch, chosen_later)
        with Library.open(path) as library:
            assert library.embedder.fingerprint == prints[made_with]
            assert library.dense("Moar", 3)
            assert evidence.threshold(library.embedder) == 0.0  # calibrated on another file: off
    assert prints["fp32"] != prints["int8"]


def test_no_library_is_made_with_what_is_no_embedder(exported: Folder, tmp_path: Path) -> None:
    for name in (str(exported("bert", "selector")), str(tmp_path / "none"), "no-such-name"):
        with pytest.raises(ModelError):
            Library.open(tmp_path / "library", create=True, settings=Settings(embedder=name))
    assert list(tmp_path.iterdir()) == [tmp_path / "home"] or list(tmp_path.iterdir()) == []


def test_a_library_finds_its_embedder_from_any_folder(
    exported: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "keepers.txt").write_text("Thomas Moar kept the light from 1891 to 1914.")
    monkeypatch.chdir(exported("bert", "embedder").parent)
    monkeypatch.setattr(precision, "SECONDS", 0.1)
    with Library.open(
        tmp_path / "library", create=True, settings=Settings(embedder="./bert-embedder", threads=1)
    ) as library:
        library.add([tmp_path / "keepers.txt"])
    monkeypatch.chdir(tmp_path)
    with Library.open(tmp_path / "library") as library:
        assert library.dense("Moar", 3)
        library.doctor(repair=True)
    with Library.open(tmp_path / "library") as library:
        assert library.stats().embedder == str(exported("bert", "embedder"))
        assert library.dense("Moar", 3) and library.embedder.name == "bert-embedder"


@pytest.mark.parametrize("architecture", ["bert", "roberta"])
def test_a_model_in_memory_computes_what_its_folder_does(exported: Folder, architecture: str) -> None:
    for role, opened in (("embedder", OnnxEmbedder), ("selector", OnnxScorer)):
        folder = exported(architecture, role)
        held = {path.name: memoryview(path.read_bytes()) for path in folder.iterdir()}
        for each in ("int8", "fp32"):
            here, there = (opened(files, threads=1, precision=each) for files in (held, folder))
            assert here.fingerprint == there.fingerprint
            if role == "embedder":
                np.testing.assert_array_equal(here.embed(TEXTS), there.embed(TEXTS))
            else:
                np.testing.assert_array_equal(here.score("Who?", TEXTS), there.score("Who?", TEXTS))


def _machine_likes(monkeypatch: pytest.MonkeyPatch, liked: str) -> None:
    monkeypatch.setattr("edge_rag.models.embedder.choose", lambda folder: precision.Choice(liked, "in this test"))


def test_both_precisions_are_measured_once_and_the_choice_is_kept(
    exported: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "SECONDS", 0.2)
    folder = read_folder(exported("xlm-roberta", "selector"), "selector")
    choice = precision.choose(folder)
    assert {m.precision for m in choice.measured} == {"int8", "fp32"}
    exact = next(m for m in choice.measured if m.precision == "fp32")
    assert exact.agreement == pytest.approx(1, abs=1e-4) and exact.texts_s > 1
    monkeypatch.setattr(precision, "_measure", lambda folder: pytest.fail("measured twice"))
    assert precision.choose(folder) == choice
    assert OnnxScorer(folder.files).precision == choice.precision


# ---- tokenizers


def test_without_the_tokenizers_package_the_extra_is_named(exported: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = exported("modernbert", "embedder")
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(MissingExtraError, match=r"edge-rag\[tokenizers\]"):
        OnnxEmbedder(folder, precision="int8")
    assert OnnxEmbedder(exported("bert", "embedder"), precision="int8").embed(["a"]).shape == (1, 64)


def test_a_cased_bert_keeps_its_own_tokenizer(source: Folder, tmp_path: Path) -> None:
    folder = shutil.copytree(source("bert", "embedder"), tmp_path / "cased")
    described = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    described["normalizer"]["lowercase"] = False
    (folder / "tokenizer.json").write_text(json.dumps(described), encoding="utf-8")
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"do_lower_case": False}), encoding="utf-8")
    report = export(folder, tmp_path / "out", "embedder", precision="fp32")
    assert report["tokenizer"].startswith("tokenizer.json") and report["token_mismatches"] == []
    lower, upper = OnnxEmbedder(tmp_path / "out").embed(["the light", "THE LIGHT"])
    assert not np.allclose(lower, upper, atol=0.01)


# ---- what is refused


def refused(folder: Path, target: Path, role: str, **options: Any) -> str:
    before = sorted(target.parent.iterdir())
    with pytest.raises(EdgeRagError) as error:
        export(folder, target, role, **options)
    assert sorted(target.parent.iterdir()) == before
    assert "\n" not in str(error.value) and error.value.mend
    return str(error.value)


CONFIGS: list[tuple[str, dict[str, Any], str]] = [
    ("embedder", {"model_type": "deberta-v2"}, "model_type is 'deberta-v2'"),
    ("embedder", {"model_type": None}, "model_type is None"),
    ("embedder", {"hidden_act": "relu"}, "hidden_act is 'relu'"),
    ("embedder", {"position_embedding_type": "relative_key"}, "relative_key"),
    ("embedder", {"is_decoder": True}, "is_decoder"),
    ("embedder", {"quantization_config": {"bits": 4}}, "quantization_config"),
    ("embedder", {"num_hidden_layers": 4}, "no weights for"),
    ("embedder", {"hidden_size": 32}, "weights for|cannot be opened"),
    ("embedder", {"vocab_size": 100}, "weights for|cannot be opened"),
    ("selector", {"architectures": ["BertModel"]}, "no cross-encoder"),
    ("selector", {"architectures": None}, "no cross-encoder"),
    ("selector", {"id2label": {"0": "no", "1": "yes"}, "label2id": {"no": 0, "yes": 1}}, "2 labels"),
]


@pytest.mark.parametrize(("role", "changes", "said"), CONFIGS)
def test_an_unknown_architecture_is_refused(
    source: Folder, tmp_path: Path, role: str, changes: dict[str, Any], said: str
) -> None:
    folder = shutil.copytree(source("bert", role), tmp_path / "model")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8")) | changes
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert re.search(said, refused(folder, tmp_path / "out", role))


POOLINGS: list[tuple[dict[str, str | None], str]] = [
    ({"1_Pooling/config.json": '{"pooling_mode_max_tokens": true}'}, "pooling_mode_max_tokens"),
    ({"1_Pooling/config.json": '{"pooling_mode": ["mean", "cls"]}'}, "mean and cls"),
    ({"1_Pooling/config.json": "{}"}, "not named"),
    ({"1_Pooling/config.json": "{"}, "cannot be read"),
    ({"1_Pooling/config.json": None}, "no config.json"),
    ({"modules.json": None}, "no modules.json"),
    ({"modules.json": "{}"}, "cannot be read"),
    (
        {
            "modules.json": '[{"type": "x.Transformer"}, {"type": "x.Pooling", "path": "1_Pooling"}, {"type": "x.Dense"}]'
        },
        "Dense",
    ),
    ({"config_sentence_transformers.json": '{"default_prompt_name": "query"}'}, "puts a prompt"),
    ({"config.json": None}, "no config.json"),
    ({"config.json": "[]"}, "no JSON object"),
    ({"model.safetensors": None}, "no model.safetensors"),
    ({"model.safetensors": "damaged"}, "no whole safetensors"),
    ({"tokenizer.json": None}, "no tokenizer.json"),
    ({"tokenizer.json": "{}"}, "tokenizer cannot be opened"),
]


@pytest.mark.parametrize(("changes", "said"), POOLINGS)
def test_a_folder_that_is_not_whole_or_pools_otherwise_is_refused(
    source: Folder, tmp_path: Path, changes: dict[str, str | None], said: str
) -> None:
    folder = shutil.copytree(source("bert", "embedder"), tmp_path / "model")
    for name, text in changes.items():
        (folder / name).unlink(missing_ok=True)
        if text is not None:
            (folder / name).write_text(text, encoding="utf-8")
    assert said in refused(folder, tmp_path / "out", "embedder")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"precision": "int4"}, "'int4' is no precision"),
        ({"pooling": "max"}, "'max' is no pooling"),
        ({"pooling": "cls"}, "trained with mean pooling"),
        ({"max_tokens": 301}, "positions for 300 tokens"),
        ({"max_tokens": 3}, "too few"),
        ({"sample": Path(__file__).parent / "conftest.py"}, "are needed"),
        ({"sample": Path("/no/such/file")}, "cannot be read"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    source: Folder, tmp_path: Path, options: dict[str, Any], said: str
) -> None:
    assert said in refused(source("bert", "embedder"), tmp_path / "out", "embedder", **options)


def test_an_unknown_role_and_a_missing_folder_are_refused(source: Folder, tmp_path: Path) -> None:
    assert "no role" in refused(source("bert", "embedder"), tmp_path / "out", "generator")
    assert "there is no folder" in refused(tmp_path / "none", tmp_path / "out", "embedder")


def test_below_a_floor_nothing_is_left(source: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(onnx_parity.FLOORS, ("embedder", "int8"), {"cosine_mean": 1.1})
    said = refused(source("bert", "embedder"), tmp_path / "out", "embedder")
    assert "cosine_mean" in said and "is below 1.1" in said


def test_what_is_no_number_is_below_every_floor() -> None:
    found = {"spearman": float("nan"), "top5_overlap": 1.0, "logit_difference": float("nan")}
    assert len(onnx_parity.below_floors("selector", "fp32", found)) == 2


def test_a_tokenizer_that_reads_otherwise_fails(
    source: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edge_rag.models.wordpiece import WordPiece

    read = WordPiece._ids
    monkeypatch.setattr(WordPiece, "_ids", lambda self, text: read(self, text.replace("é", "?")))
    assert "hostile texts get other token ids" in refused(source("bert", "embedder"), tmp_path / "out", "embedder")


def test_a_selector_is_no_embedder(exported: Folder) -> None:
    with pytest.raises(ModelError, match="holds the selector"):
        open_embedder(str(exported("bert", "selector")))
    with pytest.raises(ModelError, match="holds the embedder"):
        OnnxScorer(exported("bert", "embedder"))


# ---- the command


def test_the_command_prints_one_screen_and_replaces_nothing(
    source: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGE_RAG_THREADS", "1")
    args = ["-q", "export", "onnx", str(source("bert", "embedder")), "-o", str(tmp_path / "out"), "--role", "embedder"]
    args += ["--sample", typing.__file__]
    done = CliRunner().invoke(app, args, catch_exceptions=False)
    assert done.exit_code == 0 and len(done.output.splitlines()) < 24
    assert "ten nearest that stay" in done.output and "texts/s on this processor: original" in done.output
    assert (tmp_path / "out" / "model.json").is_file()
    with pytest.raises(UsageError, match="is there already"):
        CliRunner().invoke(app, args, catch_exceptions=False)
