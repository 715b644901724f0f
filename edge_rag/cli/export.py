"""edge-rag export: models to and from the files that the runtime loads, each compared with its original."""

from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from edge_rag.cli import export_onnx
from edge_rag.cli.common import JsonFlag, one_of, print_json, progress_of, settings_of
from edge_rag.interfaces import Style

app = typer.Typer(
    help="Turn trained models into the files that the runtime loads, with proof.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

OutFile = Annotated[Path, typer.Option("-o", "--out", help="File to write.", metavar="FILE")]
ForceFlag = Annotated[bool, typer.Option("--force", help="Replace what is there.")]
TimedFlag = Annotated[
    bool, typer.Option("--timed/--untimed", help="Measure how fast original and export are on this processor.")
]
PromptOption = Annotated[
    str | None,
    typer.Option(
        help="How it was trained to be asked: sentence, words, rationale. [default: as `train` has noted beside it]",
        metavar="STYLE",
    ),
]


@app.command()
def gguf(
    context: typer.Context,
    model: Annotated[Path, typer.Argument(help="Hugging Face folder of the model.", metavar="MODEL_DIR")],
    out: OutFile,
    type: Annotated[str, typer.Option(help="f32, f16, q8_0, q6_k, q5_k_m, q4_k_m or q4_0.", metavar="TYPE")] = "q8_0",
    lora: Annotated[
        Path | None, typer.Option(help="Folder of a peft adapter to merge into the model.", metavar="PEFT_DIR")
    ] = None,
    prompt: PromptOption = None,
    timed: TimedFlag = True,
    force: ForceFlag = False,
    json: JsonFlag = False,
) -> None:
    """Write a model as GGUF: weights, tokenizer, chat template, stop tokens.

    Llama (SmolLM2), Mistral, Qwen2, Qwen3 and Gemma 3; others are refused. The file appears when llama.cpp
    has been found to compute with it what transformers computes with the original; if it is below a floor of its type, it
    does not. FILE.parity.json says how near it is.

    Example: edge-rag export gguf ./smollm2-trained -o answers.gguf --type q8_0
    """
    _check_extras()
    from edge_rag.export.to_gguf import export_gguf

    report = export_gguf(
        model, out, type, lora=lora, prompt=_style(prompt), force=force, timed=timed, threads=settings_of(context).threads,
        progress=progress_of(context),
    )  # fmt: skip
    _print(report, json)


@app.command()
def hf(
    context: typer.Context,
    file: Annotated[
        str, typer.Argument(help="A GGUF file, the folder of an exported embedder, or a name.", metavar="FILE|NAME")
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder to write; must be new or empty.", metavar="DIR")],
    json: JsonFlag = False,
) -> None:
    """Turn a GGUF, or an embedder that export onnx made, back into a Hugging Face folder that can be trained.

    The weights are in float32, and the tokenizer gives the ids that the runtime gives. The folder appears when it has been
    found to compute the same.

    Example: edge-rag export hf smollm2-135m-instruct -o ./smollm2
    """
    from edge_rag.models import is_embedder

    if is_embedder(file):
        _embedder(context, file, out, json)
        return
    _check_extras()
    from edge_rag.errors import UsageError
    from edge_rag.export.hf_from_gguf import export_hf
    from edge_rag.models import locate_generator

    source = locate_generator(file)
    if source is None:
        raise UsageError(f"{file} is a server", mend="give a GGUF file, or the name of a generator")
    _print(export_hf(source, out, threads=settings_of(context).threads, progress=progress_of(context)), json)


def _embedder(context: typer.Context, name: str, out: Path, json: bool) -> None:
    export_onnx.check_extras()
    from edge_rag.export.hf_from_onnx import export_hf_encoder
    from edge_rag.models import locate_embedder

    threads = settings_of(context).threads
    report = export_hf_encoder(locate_embedder(name), out, threads=threads, progress=progress_of(context))
    if json:
        print_json(report)
        return
    print(f"{report['file']}: {report['size_bytes'] / 1e6:,.1f} MB, from {report['source']} ({report['precision']})")
    print(
        f"  cosine of the vectors of {report['n_texts']} texts: mean {report['cosine_mean']}, least {report['cosine_min']}"
    )


@app.command()
def peft(
    context: typer.Context,
    file: Annotated[
        str,
        typer.Argument(
            help="A GGUF adapter, or a model's name whose adapter comes with edge_rag.", metavar="FILE|NAME"
        ),
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder to write; must be new or empty.", metavar="DIR")],
    base: Annotated[Path, typer.Option(help="Hugging Face folder of its base.", metavar="MODEL_DIR")],
    json: JsonFlag = False,
) -> None:
    """Turn a GGUF adapter back into a folder that peft opens, to train it further: the default model's, too.

    The folder appears when it has been found to compute the same. Exported again in the same type it is the same file.

    Example: edge-rag export peft smollm2-135m-rag -o ./adapter --base ./smollm2
    """
    _check_extras()
    from edge_rag.export.lora_from_gguf import export_peft
    from edge_rag.models import locate_adapter

    report = export_peft(
        locate_adapter(file), out, base=base, threads=settings_of(context).threads, progress=progress_of(context)
    )
    _print(report, json)


@app.command()
def lora(
    context: typer.Context,
    adapter: Annotated[Path, typer.Argument(help="Folder of a peft adapter.", metavar="PEFT_DIR")],
    out: OutFile,
    base: Annotated[
        Path | None,
        typer.Option(
            help="Hugging Face folder of its base. [default: the one that the adapter names]", metavar="MODEL_DIR"
        ),
    ] = None,
    type: Annotated[str, typer.Option(help="f16, or q8_0, half as large.", metavar="TYPE")] = "f16",
    prompt: PromptOption = None,
    timed: TimedFlag = True,
    force: ForceFlag = False,
    json: JsonFlag = False,
) -> None:
    """Write a LoRA adapter as GGUF, for --lora of ask, chat and eval.

    It is applied while the model runs, so that the base may be quantised and is there only once. DoRA, trained biases and
    whole trained modules are refused.

    Example: edge-rag export lora ./adapter -o adapter.gguf --base ./smollm2
    """
    _check_extras()
    from edge_rag.export.lora_to_gguf import export_lora

    report = export_lora(
        adapter, out, type, base=base, prompt=_style(prompt), force=force, timed=timed,
        threads=settings_of(context).threads, progress=progress_of(context),
    )  # fmt: skip
    _print(report, json)


app.command()(export_onnx.onnx)
app.command()(export_onnx.selector)


def _style(prompt: str | None) -> Any:
    return None if prompt is None else one_of("--prompt", prompt, get_args(Style))


def _check_extras() -> None:
    from importlib.util import find_spec

    from edge_rag.errors import MissingExtraError
    from edge_rag.models import has_llama_cpp

    if any(find_spec(name) is None for name in ("gguf", "peft", "safetensors", "torch", "transformers")):
        raise MissingExtraError("export", "exporting a model")
    if not has_llama_cpp():
        raise MissingExtraError("llm", "comparing an export with its original")


def _print(report: dict[str, Any], json: bool) -> None:
    if json:
        print_json(report)
        return
    floors, greedy, speed = report["floors"], report["greedy"], report.get("speed")
    print(f"{report['file']}: {report['size_bytes'] / 1e6:,.1f} MB, from {report['source']}"
          f" ({report['source_size_bytes'] / 1e6:,.1f} MB)")  # fmt: skip
    print(f"  compared as {report['type'].upper()} with the original in float32, at {report['positions']} positions")
    print(f"  {'':28}{'found':>10}{'floor':>10}")
    print(f"  {'cosine of the logits':28}{report['cosine_mean']:10.6f}{floors['cosine']:10}")
    print(f"  {'same likeliest token':28}{report['top1']:10.4f}{floors['top1']:10}{_ties(report)}")
    print(f"  {'KL divergence':28}{report['kl_mean']:10.6f}{floors['kl']:10}")
    print(
        f"  {'greedy answers, same until':28}{greedy['agreement']:10.4f}{'':10}   {greedy['whole']} of {greedy['prompts']} whole"
    )
    n_same = report["hostile_texts"] - len(report["token_mismatches"])
    print(f"  {'hostile texts, same ids':28}{n_same:10}{report['hostile_texts']:10}")
    if speed:
        print(f"  {'tokens/s on this processor':28}{'original':>10}{'export':>10}")
        for what in ("read", "written"):
            both = (speed[f"{side}_{what}_tokens_s"] for side in ("original", "export"))
            print(f"  {what:28}" + "".join(f"{value:10,.1f}" for value in both))
    if report["auto_tokenizer_mismatches"]:
        print(
            f"  note: AutoTokenizer gives {len(report['auto_tokenizer_mismatches'])} texts other ids than tokenizer.json"
        )
    for note in report["notes"]:
        print(f"  note: {note}")


def _ties(report: dict[str, Any]) -> str:
    if not report["ties"]:
        return ""
    return (
        f"{report['ties']} ties of less than {report['floors']['tie']}; without them {report['top1_without_ties']:.4f}"
    )
