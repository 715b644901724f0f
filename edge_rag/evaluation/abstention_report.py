"""The abstention rule's fit as a report, beside the constants that ship: `edge-rag bench abstain`."""

from dataclasses import fields

from edge_rag.answering import evidence
from edge_rag.evaluation import abstention
from edge_rag.evaluation.figures import Figure, Report, check_counts, load_average, surroundings
from edge_rag.interfaces import Embedder, Progress
from edge_rag.settings import Settings

# Kernels of other processors round vectors differently, so a fit made elsewhere is not the same to the last digit.
WEIGHT_SLACK = 0.1
THRESHOLD_SLACK = 0.01


def measure(
    embedder: Embedder, settings: Settings, *, limit: int, command: str, progress: Progress | None = None
) -> Report:
    """Fit on the train part, measure on dev, and say whether the shipped constants are those of the fit."""
    check_counts(limit=limit)
    load_before = load_average()
    examples = abstention.collect(embedder, settings, limit=limit, progress=progress)
    fit = abstention.fit(examples)
    n_train, n_dev = sum(not e.dev for e in examples), sum(e.dev for e in examples)
    names = ["bias", *(f.name for f in fields(evidence.Signals))]
    figures = [*fit.rates]
    figures.append(Figure("AUC: the passages hold the answer", "", n_dev, fit.auc_dev, fit.auc_dev, fit.auc_dev))
    figures += [
        _constant(f"weight of {name}", fitted, shipped, WEIGHT_SLACK, n_train)
        for name, fitted, shipped in zip(names, fit.weights, evidence.WEIGHTS, strict=True)
    ]
    figures.append(_constant("threshold", fit.threshold, evidence.THRESHOLD, THRESHOLD_SLACK, n_train))
    agree = all(f.met for f in figures if f.met is not None)
    in_force = embedder.fingerprint == evidence.FITTED_WITH
    notes = [
        f"fitted on {n_train:,} train examples (at most {limit} questions of each set), error rates on {n_dev:,} dev"
        " examples with 95% bootstrap intervals",
        f"the constants in answering/evidence.py {'agree' if agree else 'do NOT agree'} with this fit",
        f"they {'are in force' if in_force else 'are NOT in force'} with this embedder ({embedder.fingerprint})",
    ]
    return Report("Abstention", tuple(figures), tuple(notes), surroundings(command, load_before))


def _constant(name: str, fitted: float, shipped: float, slack: float, n: int) -> Figure:
    return Figure(name, "", n, fitted, fitted, fitted, f"shipped: {shipped:g}", abs(fitted - shipped) <= slack)
