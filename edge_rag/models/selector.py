"""How well passages fit a question, by a cross-encoder that `edge-rag export selector` or `export onnx` made."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from edge_rag.errors import ModelError
from edge_rag.models.cores import usable_cores
from edge_rag.models.onnx_folder import MANIFEST, Files, OnnxFolder, read_folder, run_each
from edge_rag.models.precision import choose


@dataclass(frozen=True, slots=True)
class Calibration:
    """What a selector's scores mean, found on questions that it was not trained with (`edge-rag export selector`)."""

    slope: float  # of the logistic that turns the best score into a probability that what is kept holds the answer
    bias: float
    threshold: float  # of that probability, below which to abstain
    margin: float  # a passage that scores so much less than the best one is not kept
    settled: float  # a best score from which the passages that were not scored yet are left alone

    def confidence(self, best: float) -> float:
        return 1 / (1 + math.exp(-max(-50.0, min(50.0, self.slope * best + self.bias))))


class OnnxScorer:
    """Scores pairs of a question and a passage. What scores mean belongs to one fingerprint."""

    def __init__(self, files: Files, *, threads: int = 0, precision: str = "", fingerprint: str = "") -> None:
        """Where both precisions are there: the one asked for, the one with that fingerprint, or this machine's choice."""
        folder = read_folder(files, "selector")
        self.precision = precision or folder.precision_of(fingerprint) or choose(folder).precision
        self.name = folder.name
        self.fingerprint = folder.fingerprint(self.precision)
        self.calibration = _calibration(folder, self.precision)
        self.max_tokens = folder.max_tokens  # of question, passage and special tokens together
        self._tokenizer, self._session = folder.open(self.precision)
        self._takes_segments = any(value.name == "token_type_ids" for value in self._session.get_inputs())
        self._threads = usable_cores(threads)

    def score(self, question: str, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Return (n,) float32: the model's logit for each text, higher is better.

        Texts are cut where they are too long beside the question. The question is never cut: UsageError if it leaves
        no room.
        """
        pairs = [self._tokenizer.encode_pair(question, text, self.max_tokens) for text in texts]
        scores = np.empty(len(texts), dtype=np.float32)

        def run(row: int) -> None:
            ids, segments = pairs[row]
            inputs = {"input_ids": np.array([ids], dtype=np.int64)}
            if self._takes_segments:
                inputs["token_type_ids"] = np.array([segments], dtype=np.int64)
            scores[row] = self._session.run(["logit"], inputs)[0][0, 0]

        run_each(run, [len(ids) for ids, _ in pairs], self._threads)
        return scores


def _calibration(folder: OnnxFolder, precision: str) -> Calibration | None:
    found = folder.calibration.get(precision)
    if found is None:
        return None
    try:
        return Calibration(**{f.name: float(found[f.name]) for f in fields(Calibration)})
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(
            f"{folder.name}: its calibration in {MANIFEST} is damaged: {error!r}",
            mend="make it again: edge-rag export selector",
        ) from error
