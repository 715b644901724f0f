"""How comparison and report name runs and metrics, write numbers, and make texts from elsewhere safe to show."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from edge_rag.evaluation.predictions import Interval, Run

LABELS = {
    "em": "EM",
    "contains": "contains",
    "f1": "F1",
    "em_kilt": "EM (KILT)",
    "f1_kilt": "F1 (KILT)",
    "accuracy": "yes/no accuracy",
    "mrr": "MRR",
    "auroc": "AUROC",
    "aurc": "AURC",
    "aurc_best": "AURC, best possible",
    "aurc_random": "AURC, at random",
    "aurc_logprob": "AURC by logprob",
    "k_precision": "K-Precision",
    "k_precision_new": "K-Precision, new words",
    "em_with_refusals": "EM with refusals",
    "f1_with_refusals": "F1 with refusals",
    "first_token_ms": "first token",
    "total_ms": "whole answer",
}
LOWER_IS_BETTER = frozenset(("false_refusal_rate", "missed_refusal_rate", "aurc", "aurc_logprob"))
# what a run's config says besides what was tried: when and where, and what follows from the rest
CIRCUMSTANCES = frozenset(("n", "machine", "cores", "started", "command", "limit", "timed"))

_ARM = re.compile(r"(closed|given|gold|none|retrieved)(?:[+:](\d+))?(?:\+(\d+)poisoned)?")
_ARMS = ("closed", "given", "gold", "none", "retrieved")
# Neither XML nor a terminal should be handed these: control characters, halves of surrogate pairs, non-characters, and marks
# that turn the direction of what follows them.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff\u202a-\u202e\u2066-\u2069]")


def metric_label(metric: str) -> str:
    """Name a metric for a reader: "recall@5" and the like name themselves."""
    return LABELS.get(metric) or clean(metric).replace("_", " ").replace("ndcg", "nDCG")


def is_fraction(metric: str) -> bool:
    return not metric.endswith(("_tokens", "_ms"))


def number(metric: str, value: float, *, sign: bool = False) -> str:
    """Write a value of a metric: fractions in percent, tokens as counts, milliseconds in seconds."""
    if metric.endswith("_ms"):
        written = f"{abs(value) / 1000:,.2f}"
    elif is_fraction(metric):
        written = f"{abs(value) * 100:.1f}"
    else:
        written = f"{abs(value):,.0f}" if abs(value) >= 100 else f"{abs(value):.1f}"
    if not written.strip("0.,"):
        return written
    return ("−" if value < 0 else "+" if sign else "") + written


def unit(metric: str) -> str:
    return "s" if metric.endswith("_ms") else "%" if is_fraction(metric) else ""


def span(metric: str, figure: Interval) -> str:
    """Write a figure's interval: "41.0–49.4"."""
    return f"{number(metric, figure.low)}–{number(metric, figure.high)}"


def p_value(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def clean(value: object) -> str:
    """Return a text that can be written as UTF-8, shown in a terminal and put into HTML after escaping."""
    return _UNSAFE.sub("\ufffd", str(value))


def clip(value: object, most: int) -> str:
    """Return a clean text of one line, cut where it is long. Says how long it was."""
    text = str(value)
    short = " ".join(clean(text[: 4 * most]).split())
    if len(text) <= 4 * most and len(short) <= most:
        return short
    return f"{short[:most]} … ({len(text):,} characters)"


def group_of(run: Run) -> str:
    """Name the questions of a run: the set, and the part of it."""
    part = run.config.get("part", "all")
    return clip(run.config["set"] if part == "all" else f"{run.config['set']} ({part})", 80)


def run_labels(runs: Sequence[Run]) -> list[str]:
    """Name each run by its arm, and by what else differs where two of a set have the same arm."""
    labels = []
    for run in runs:
        twins = [r for r in runs if group_of(r) == group_of(run) and r.config["arm"] == run.config["arm"]]
        fields = differing_fields([r.config for r in twins])
        extra = [_setting(name, run.config.get(name)) for name in fields]
        if len(twins) > 1 and not fields:
            extra = [run.folder.name]
        labels.append(clip(" · ".join([str(run.config["arm"]), *extra]), 80))
    return labels


def differing_fields(configs: Iterable[Mapping[str, Any]]) -> list[str]:
    """List the settings in which configs differ. A hash is left out where what it is the hash of differs, too."""
    configs = list(configs)
    names = dict.fromkeys(name for config in configs for name in config)
    found = [n for n in names if n not in CIRCUMSTANCES and any(c.get(n) != configs[0].get(n) for c in configs)]
    return [name for name in found if not (name.endswith("_sha256") and name.removesuffix("_sha256") in found)]


def arm_order(arm: object) -> tuple[int, int, int, str]:
    """Sort arms as a reader expects: closed book first, then by number of passages."""
    match = _ARM.fullmatch(str(arm))
    if match is None:
        return len(_ARMS), 0, 0, str(arm)
    kind, passages, poisoned = match.groups()
    return _ARMS.index(kind), int(poisoned or 0), int(passages or 0), str(arm)


def distractors(arm: object) -> int | None:
    """Return how many distractors stand beside the gold passages; None for an arm that is no step of the noise slope."""
    match = _ARM.fullmatch(str(arm))
    if match is None or match[1] != "gold" or match[3]:
        return None
    return int(match[2] or 0)


def _setting(name: str, value: object) -> str:
    if value is None or value is False:
        return f"no {name}"
    return name if value is True else str(value) if isinstance(value, str) and name != "seed" else f"{name} {value}"
