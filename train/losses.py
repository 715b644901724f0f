"""What a model is trained to make small, as plain functions of log-probabilities.

`logps` are the log-probabilities of the tokens of answers: (rows, answers, tokens), where a row is one prompt and its answers
are, in preference pairs, the chosen one and the rejected one; `mask` is 1 where there is a token. A loss has one number for
each row, so that a step may be cut into pieces of any size and adds up to the same. What selectors are trained by stands at
the end: it has scores of passages instead.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

PreferenceLoss = Literal["orpo", "dpo", "simpo"]

NEARLY_CERTAIN = -1e-6  # mean log-probability; log(1 - p) has no value at p = 1


def mean_logps(logps: Tensor, mask: Tensor) -> Tensor:
    """Return the mean over the tokens of each answer: (rows, answers)."""
    return (logps * mask).sum(-1) / mask.sum(-1).clamp(min=1)


def sum_logps(logps: Tensor, mask: Tensor) -> Tensor:
    return (logps * mask).sum(-1)


def answer_nll(logps: Tensor, mask: Tensor, usual: Tensor | None = None) -> Tensor:
    """Negative log-likelihood of a token of the answer, mean over it: the prompt's tokens have no part in it.

    `usual`: the length to divide by instead of the answer's own, (rows).
    """
    lengths = mask[:, 0].sum(-1).clamp(min=1) if usual is None else usual
    return -sum_logps(logps, mask)[:, 0] / lengths


def answers_nll(logps: Tensor, mask: Tensor, usual: Tensor, weights: Tensor) -> Tensor:
    """The same of rows whose answers are all to be likely, by their weights: (rows, answers)."""
    return -(sum_logps(logps, mask) * weights).sum(-1) / usual


def log_odds_ratio(chosen: Tensor, rejected: Tensor) -> Tensor:
    """Log of odds(chosen) / odds(rejected), where odds(y) = p(y) / (1 - p(y)) and log p(y) is the mean over y's tokens.

    ORPO, equation 7 (arXiv 2403.07691).
    """
    chosen, rejected = chosen.clamp(max=NEARLY_CERTAIN), rejected.clamp(max=NEARLY_CERTAIN)
    return (chosen - rejected) - (_log1mexp(chosen) - _log1mexp(rejected))


def orpo(logps: Tensor, mask: Tensor, usual: Tensor | None = None, *, beta: float) -> Tensor:
    """Likelihood of the chosen answer, and beta times a penalty while the odds of the rejected one come near its own."""
    means = mean_logps(logps, mask)
    return answer_nll(logps, mask, usual) - beta * F.logsigmoid(log_odds_ratio(means[:, 0], means[:, 1]))


def dpo(logps: Tensor, mask: Tensor, reference: Tensor, *, beta: float) -> Tensor:
    """DPO (arXiv 2305.18290, equation 7). `reference`: the sums of log-probabilities before training, (rows, 2)."""
    gained = sum_logps(logps, mask) - reference
    return -F.logsigmoid(beta * (gained[:, 0] - gained[:, 1]))


def simpo(logps: Tensor, mask: Tensor, *, beta: float, margin: float) -> Tensor:
    """SimPO (arXiv 2405.14734, equation 6): means instead of a reference, and a margin that the chosen answer must lead by."""
    means = mean_logps(logps, mask)
    return -F.logsigmoid(beta * (means[:, 0] - means[:, 1]) - margin)


def group_kl(scores: Tensor, shares: Tensor, mask: Tensor) -> Tensor:
    """KL divergence of the softmax over each group's scores from the shares that its members are to have; all (groups, members).

    With shares that are softmax(gain) it is GainRAG's loss (arXiv 2505.18710); where one member has all, it is InfoNCE.
    """
    predicted = scores.masked_fill(mask == 0, -torch.inf).log_softmax(-1).masked_fill(mask == 0, 0.0)
    return (torch.special.xlogy(shares, shares) - shares * predicted).sum(-1)


def _log1mexp(x: Tensor) -> Tensor:
    """Return log(1 - exp(x)) for x < 0 without losing digits at either end."""
    return torch.where(x > -0.6931, torch.log(-torch.expm1(x)), torch.log1p(-torch.exp(x)))
