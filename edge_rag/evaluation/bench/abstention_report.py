"""The abstention rule's fit as a report, beside the constants that ship: `edge-rag bench abstain`."""

import math
from collections.abc import Sequence
from dataclasses import astuple, fields

from edge_rag.answering import OnnxSelector, evidence
from edge_rag.evaluation.bench import abstention
from edge_rag.evaluation.figures import Figure, Report, check_counts, load_average, surroundings
from edge_rag.interfaces import Embedder, Progress
from edge_rag.models import is_lister, open_scorer
from edge_rag.settings import Settings

ALIKE = 97.0  # % of dev examples: kernels of other processors round vectors differently, and other train samples weigh a little


def measure(
    embedder: Embedder, settings: Settings, *, limit: int, command: str, progress: Progress | None = None
) -> Report:
    """Fit on the train part, measure on dev, and say whether the shipped constants are those of the fit."""
    check_counts(limit=limit)
    load_before = load_average()
    selector, threshold_of_selector = _selector(settings)
    examples = abstention.collect(embedder, settings, limit=limit, selector=selector, progress=progress)
    fit = abstention.fit(examples)
    n_train, n_dev = sum(not e.dev for e in examples), sum(e.dev for e in examples)
    names = ["bias", *(f.name for f in fields(evidence.Signals))]
    figures = [*fit.rates]
    figures.append(Figure("AUC: the passages hold the answer", "", n_dev, fit.auc_dev, fit.auc_dev, fit.auc_dev))
    if selector:
        figures += abstention.by_selector(examples, threshold_of_selector)
    figures += [
        Figure(f"weight of {name}", "", n_train, fitted, fitted, fitted, f"shipped: {shipped:g}")
        for name, fitted, shipped in zip(names, fit.weights, evidence.WEIGHTS, strict=True)
    ]
    threshold = fit.threshold
    figures.append(
        Figure("threshold", "", n_train, threshold, threshold, threshold, f"shipped: {evidence.THRESHOLD:g}")
    )
    alike = 100 * sum(_decides(fit.weights, threshold, e) == _decides_as_shipped(e) for e in examples if e.dev) / n_dev
    agree = alike >= ALIKE
    figures.append(
        Figure("fitted and shipped rule decide alike", "%", n_dev, alike, alike, alike, f"at least {ALIKE:g}", agree)
    )
    in_force = embedder.fingerprint == evidence.FITTED_WITH
    notes = [
        f"fitted on {n_train:,} train examples (at most {limit} questions of each set), error rates on {n_dev:,} dev"
        " examples with 95% bootstrap intervals",
        f"the constants in answering/evidence.py {'agree' if agree else 'do NOT agree'} with this fit",
        f"they {'are in force' if in_force else 'are NOT in force'} with this embedder ({embedder.fingerprint})",
    ]
    if selector:
        notes.append(
            "both: one more signal, how sure the selector is; it may have been trained with some of the train examples"
        )
    return Report("Abstention", tuple(figures), tuple(notes), surroundings(command, load_before))


def _selector(settings: Settings) -> tuple[OnnxSelector | None, float]:
    """Return the settings' selector and its threshold, if it was calibrated."""
    if not settings.selector or is_lister(settings.selector):
        return None, 0.0
    scorer = open_scorer(settings.selector, threads=settings.threads)
    if scorer.calibration is None:
        return None, 0.0
    return OnnxSelector(lambda: scorer, settings.passages), scorer.calibration.threshold


def _decides(weights: Sequence[float], threshold: float, example: abstention.Example) -> bool:
    bias, *others = weights
    z = bias + sum(w * v for w, v in zip(others, astuple(example.signals), strict=True))
    return 1 / (1 + math.exp(-z)) >= threshold


def _decides_as_shipped(example: abstention.Example) -> bool:
    return evidence.confidence(example.signals) >= evidence.THRESHOLD
