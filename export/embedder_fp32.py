"""A MiniLM-like sentence embedder (Hugging Face files) to a plain fp32 ONNX file: what `edge-rag bench ingest` compares with.

    python -m edge_rag.export.embedder_fp32 SOURCE -o MODEL.onnx

It is traced from torch with the inputs and the output that such files have everywhere: input_ids, attention_mask and
token_type_ids, (batch, tokens) each, and last_hidden_state. Pooling and normalisation are left to who runs it.
"""

import argparse
from pathlib import Path

import torch
from transformers import AutoModel

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
OUTPUT = "last_hidden_state"


def main() -> None:
    parser = argparse.ArgumentParser(description="Sentence embedder to fp32 ONNX")
    parser.add_argument("source", type=Path, help="folder with config.json and model.safetensors")
    parser.add_argument("-o", "--output", type=Path, required=True, help="file to write")
    arguments = parser.parse_args()
    export(arguments.source, arguments.output)


def export(source: Path, output: Path) -> None:
    # Eager attention, traced: of the graphs that can be had, the one that ONNX Runtime runs fastest.
    model = AutoModel.from_pretrained(source, dtype=torch.float32, attn_implementation="eager")
    example = torch.ones((2, 8), dtype=torch.int64)
    axes = {0: "batch", 1: "tokens"}
    torch.onnx.export(
        _LastHiddenState(model).eval(),
        (example, example, example),
        str(output),
        input_names=[*INPUTS],
        output_names=[OUTPUT],
        dynamic_axes=dict.fromkeys((*INPUTS, OUTPUT), axes),
        opset_version=17,
        dynamo=False,
    )


class _LastHiddenState(torch.nn.Module):  # type: ignore[misc, unused-ignore]  # torch is not there where types are checked
    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor
    ) -> torch.Tensor:
        output = self.model(input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids)
        state: torch.Tensor = output.last_hidden_state
        return state


if __name__ == "__main__":
    main()
