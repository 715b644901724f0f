"""edge-rag export onnx: an encoder as embedder or selector, compared with its original."""

from pathlib import Path
from typing import Annotated, Any

import typer

from edge_rag.cli.common import JsonFlag, print_json, progress_of, settings_of


def onnx(
    context: typer.Context,
    model: Annotated[Path, typer.Argument(help="Hugging Face folder of the model.", metavar="MODEL_DIR")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder to write; must be new.", metavar="DIR")],
    role: Annotated[str, typer.Option(help="embedder (bi-encoder) or selector (cross-encoder).", metavar="ROLE")],
    precision: Annotated[
        str, typer.Option(help="int8, fp32, or both: each machine takes the one that suits it.", metavar="PRECISION")
    ] = "int8",
    pooling: Annotated[
        str, typer.Option(help="mean or cls, where the folder has no modules.json that says so.", metavar="HOW")
    ] = "",
    max_tokens: Annotated[
        int, typer.Option(help="Most tokens of a run. [default: as the folder says]", metavar="N", show_default=False)
    ] = 0,
    name: Annotated[str, typer.Option(help="Name of the model. [default: that of the folder]", metavar="NAME")] = "",
    sample: Annotated[
        Path | None,
        typer.Option(help="Text to calibrate and compare with. [default: Python's manual]", metavar="FILE"),
    ] = None,
    timed: Annotated[
        bool, typer.Option("--timed/--untimed", help="Measure how fast original and export are on this processor.")
    ] = True,
    json: JsonFlag = False,
) -> None:
    """Write an encoder as ONNX: graph, weights, tokenizer, manifest.

    BERT (MiniLM), RoBERTa, XLM-R and ModernBERT with mean or CLS pooling, or with one label; others are refused. The folder
    appears when the runtime has been found to compute with it what transformers computes with the original; if it is
    below a floor, it does not. DIR/parity.json says how near it is.

    Example: edge-rag export onnx ./minilm-trained -o ./minilm --role embedder
    """
    check_extras()
    from edge_rag.export.to_onnx import export_onnx

    report = export_onnx(
        model, out, role, precision=precision, pooling=pooling, max_tokens=max_tokens, name=name, sample=sample,
        timed=timed, threads=settings_of(context).threads, progress=progress_of(context),
    )  # fmt: skip
    if json:
        print_json(report)
    else:
        _print(report)


def selector(
    context: typer.Context,
    run: Annotated[Path, typer.Argument(help="Folder of a run of train gain, radio or relevance.", metavar="RUN")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder to write; must be new.", metavar="DIR")],
    precision: Annotated[
        str, typer.Option(help="int8, fp32, or both: each machine takes the one that suits it.", metavar="PRECISION")
    ] = "int8",
    name: Annotated[str, typer.Option(help="Name of the selector. [default: that of the run]", metavar="NAME")] = "",
    passages: Annotated[
        int,
        typer.Option(
            help="Most passages that it is to keep. [default: as the settings say]", min=0, show_default=False
        ),
    ] = 0,
    timed: Annotated[
        bool, typer.Option("--timed/--untimed", help="Measure how fast original and export are on this processor.")
    ] = True,
    json: JsonFlag = False,
) -> None:
    """Write a trained selector as ONNX, and find out on the run's dev questions what its scores mean.

    From then on it keeps as many passages as come near the best one, tells when the documents do not hold the answer, and
    leaves candidates alone once it is sure. The folder is for --selector of ask, chat, eval and bundle build.

    Example: edge-rag export selector ./gain -o ./selector
    """
    check_extras()
    from edge_rag.export.selector import export_selector

    settings = settings_of(context)
    report = export_selector(
        run, out, precision=precision, name=name, most=passages or settings.passages, timed=timed,
        threads=settings.threads, progress=progress_of(context),
    )  # fmt: skip
    if json:
        print_json(report)
        return
    _print(report)
    for each, found in report["calibration"].items():
        print(f"  {each}, calibrated on {found['n_questions']} dev questions, at most {found['most']} passages kept")
        for key, label in _CALIBRATED.items():
            value, *bounds = found[key] if isinstance(found[key], list) else [found[key]]
            print(f"  {label:44}{value:10}" + ("   ({} to {})".format(*bounds) if bounds else ""))


_CALIBRATED = {
    "auroc": "gold there or taken away, told apart (AUC)",
    "threshold": "threshold of the confidence",
    "wrongly_refused": "refused though gold is there",
    "wrongly_answered": "answered though it is not",
    "margin": "margin to the best score",
    "gold_in_best": "all gold among the best",
    "gold_kept": "all gold within the margin",
    "mean_kept": "passages kept, mean",
    "settled_early": "settled by the first candidates",
}


def check_extras() -> None:
    from importlib.util import find_spec

    from edge_rag.errors import MissingExtraError

    if any(find_spec(package) is None for package in ("onnx", "safetensors", "torch", "transformers")):
        raise MissingExtraError("export", "exporting a model")


def _print(report: dict[str, Any]) -> None:
    print(f"{report['file']}: {report['role']}, {report['size_bytes'] / 1e6:,.1f} MB, from {report['source']}"
          f" ({report['architecture']}, {report['source_size_bytes'] / 1e6:,.1f} MB)")  # fmt: skip
    for precision, found in report["precisions"].items():
        compared = f"{found['n_texts']} texts" if report["role"] == "embedder" else f"{found['n_pairs']} pairs"
        print(f"  {precision}, compared with the original on {compared}")
        print(f"  {'':28}{'found':>10}{'floor':>10}")
        for key, label in _FIGURES.items():
            if key in found:
                print(f"  {label:28}{found[key]:10}{found['floors'].get(key, ''):>10}")
        print(f"  {'size in MB':28}{found['size_bytes'] / 1e6:10.1f}")
        print(f"  {'load in ms':28}{found['load_ms']:10}")
    n_same = report["hostile_texts"] - len(report["token_mismatches"])
    print(f"  {'hostile texts, same ids':28}{n_same:10}{report['hostile_texts']:10}   tokenizer: {report['tokenizer']}")
    if "speed" in report:
        what = "texts" if report["role"] == "embedder" else "pairs"
        speeds = ", ".join(f"{key.removesuffix('_texts_s')} {value:,.1f}" for key, value in report["speed"].items())
        print(f"  {what}/s on this processor: {speeds}")


_FIGURES = {
    "cosine_mean": "cosine of the vectors, mean",
    "cosine_min": "cosine of the vectors, least",
    "top10_overlap": "ten nearest that stay",
    "spearman": "rank correlation (Spearman)",
    "top5_overlap": "five best that stay",
    "logit_difference": "largest difference of logits",
    "logit_range": "range of logits",
}
