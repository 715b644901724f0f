"""Prompts and the answers that are trained under them: what a piece of a step computes for a language model.

A row is a prompt and its answers. They are computed in one sequence, the prompt once, and each answer sees the prompt and
itself only: a preference pair costs little more than half of what two sequences would, and eight questions about the same
passages less than a quarter. Logits are taken where answers stand and nowhere else; a vocabulary of 49,152 is a fifth of the
work of a small model.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edge_rag.answering.prompt import NOT_FOUND, PROMPT_VERSION
from edge_rag.interfaces import Progress, Style
from edge_rag.models.prompt_style import prompt_fields, write_note

from . import losses
from .attention import branching, for_layers
from .fit import Fitted, Fitting, Losses, fit_stage
from .run import TrainingRun
from .trainable import Trainable


@dataclass(frozen=True, slots=True)
class Row:
    """A prompt and the answers that are trained under it, as tokens."""

    prompt: tuple[int, ...]  # that all answers have in common
    answers: tuple[tuple[int, ...], ...]
    asked: tuple[tuple[int, ...], ...] = ()  # the rest of each answer's prompt, where they differ
    reference: tuple[float, ...] = ()  # log-probability of each answer before training, for losses that want it
    weights: tuple[float, ...] = ()  # of the answers, where they do not count alike
    usual: float = 0.0  # tokens that the first of such answers usually has (see weighed); 0: as many as this one

    @property
    def n_tokens(self) -> int:
        return len(self.prompt) + sum(map(len, (*self.asked, *self.answers)))


# (logps, mask, rows) -> loss of each row, and figures of each row to follow
Loss = Callable[[Tensor, Tensor, Sequence[Row]], tuple[Tensor, dict[str, Tensor]]]


def weighed(rows: Sequence[Row], styles: Sequence[Style]) -> list[Row]:
    """Let all tokens of a style's answers weigh the same, and each style as much as another.

    By a mean over each answer's own tokens the first one of a refusal would weigh five times the first one of reasons, and
    refusing would be learnt as much more eagerly.
    """
    lengths: defaultdict[Style, list[int]] = defaultdict(list)
    for row, style in zip(rows, styles, strict=True):
        lengths[style].append(len(row.answers[0]))
    usual = {style: sum(found) / len(found) for style, found in lengths.items()}
    return [replace(row, usual=usual[style]) for row, style in zip(rows, styles, strict=True)]


def sharing_prompt(rows: Sequence[Row]) -> Row:
    """Return rows as one, with all their answers: what their prompts begin with alike is computed once."""
    if len(rows) == 1:
        return rows[0]
    prompts = [row.prompt for row in rows]
    alike = takewhile(lambda tokens: len(set(tokens)) == 1, zip(*prompts, strict=False))
    n = min(sum(1 for _ in alike), *(len(prompt) - 1 for prompt in prompts))  # answers begin after a token of their own
    return Row(
        prompts[0][:n],
        tuple(answer for row in rows for answer in row.answers),
        tuple(row.prompt[n:] for row in rows for _ in row.answers),
        reference=tuple(value for row in rows for value in row.reference),
        usual=sum(row.usual for row in rows) / len(rows),
    )


def sharing_prompts(rows: Sequence[Row], groups: Iterable[Sequence[int]]) -> list[Row]:
    """Return the rows of each group as one. Each goes on counting as much as another, whatever the size of its group."""
    joined = list(groups)
    share = len(joined) / len(rows)
    return [
        replace(
            sharing_prompt([rows[n] for n in group]),
            weights=tuple(share / len(rows[n].answers) for n in group for _ in rows[n].answers),
        )
        for group in joined
    ]


def usual_lengths(rows: Sequence[Row], like: Tensor) -> Tensor:
    return torch.tensor([row.usual or len(row.answers[0]) for row in rows], dtype=like.dtype, device=like.device)


def answer_weights(rows: Sequence[Row], like: Tensor) -> Tensor:
    """Return how much each answer counts, (rows, answers); where a row does not say so, alike, and together 1."""
    weights = torch.zeros(len(rows), max(len(row.answers) for row in rows), dtype=like.dtype, device=like.device)
    for n, row in enumerate(rows):
        k = len(row.answers)
        weights[n, :k] = torch.tensor(row.weights or [1 / k] * k, dtype=like.dtype)
    return weights


def answers_loss(logps: Tensor, mask: Tensor, rows: Sequence[Row]) -> tuple[Tensor, dict[str, Tensor]]:
    """Likelihood of all answers of a row, by their weights."""
    return losses.answers_nll(logps, mask, usual_lengths(rows, logps), answer_weights(rows, logps)), {}


def fit_to_answers(
    run: TrainingRun,
    name: str,
    inputs: Mapping[str, Any],
    model: Trainable,
    rows: Callable[[], tuple[list[Row], list[Row]]],
    loss: Loss,
    fitting: Fitting,
    style: Style,
    progress: Progress | None,
) -> Fitted:
    """Fit a language model to rows as a stage of a run (see fit_stage); what was trained says for which prompts."""

    def save(folder: Path) -> None:
        write_note(model.save(folder), prompt_fields(style, PROMPT_VERSION, NOT_FOUND))

    computed = answer_losses(loss, pad=model.pad, prompt_loss=fitting.prompt_loss)
    return fit_stage(run, name, inputs, model.network, rows, computed, fitting, save, progress)


def answer_losses(loss: Loss, *, pad: int, prompt_loss: bool = False) -> Losses[Row]:
    """Return what computes the losses of a piece of rows; `prompt_loss`: with the likelihood of the prompt's tokens in it."""

    def compute(model: Any, piece: Sequence[Row]) -> tuple[Tensor, dict[str, Tensor]]:
        logps, mask, prompts = _logps(model, piece, pad, with_prompts=prompt_loss)
        found, figures = loss(logps, mask, piece)
        if prompt_loss:
            n_prompt = torch.tensor([len(row.prompt) - 1 for row in piece], device=logps.device)
            answer, n_answer = (logps * mask)[:, 0].sum(-1), mask[:, 0].sum(-1)
            found = found + answer / usual_lengths(piece, logps) - (prompts + answer) / (n_prompt + n_answer)
        return found, figures

    return compute


def answer_logps(model: Any, rows: Sequence[Row], pad: int) -> tuple[Tensor, Tensor]:
    """Return the log-probabilities of the rows' answers, and their mask: (rows, answers, tokens)."""
    logps, mask, _ = _logps(model, rows, pad, with_prompts=False)
    return logps, mask


def _logps(model: Any, rows: Sequence[Row], pad: int, *, with_prompts: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return what answer_logps does, and the sum of the log-probabilities of each prompt if it is wanted."""
    device = next(model.parameters()).device
    segments, *laid = _lay_out(rows, pad)
    tokens, positions, sources, targets, present = (tensor.to(device) for tensor in laid)
    mask = _mask(segments, positions, model)
    kept = torch.unique(sources[present])  # where logits are wanted
    logits = model(
        input_ids=tokens,
        attention_mask=mask,
        position_ids=positions,
        logits_to_keep=0 if with_prompts else kept,
        use_cache=False,
    ).logits.float()
    own = torch.arange(len(rows), device=device)[:, None, None]
    sums = torch.logsumexp(logits, -1)
    prompts = torch.zeros(len(rows), device=device)
    if with_prompts:
        asked = (segments[:, 1:] == 0) & (segments[:, :-1] == 0)  # the first token has nothing that it follows
        each = logits[:, :-1].gather(-1, tokens[:, 1:, None])[..., 0] - sums[:, :-1]
        prompts = (each * asked.to(device)).sum(-1)
    else:
        sources = torch.searchsorted(kept, sources).clamp(max=len(kept) - 1)
    logps = logits[own, sources, targets] - sums[own, sources]
    return logps, present.to(logps.dtype), prompts


def _lay_out(rows: Sequence[Row], pad: int) -> tuple[Tensor, ...]:
    """Lay rows out as one sequence each: padding, prompt, what is asked and answered. Their ends are aligned, so that answers
    stand together.

    Returns segments (-1: padding, 0: prompt, 1 ...: answers, with what they are asked), tokens, positions, and for each token
    of each answer the place whose logits it is drawn from, which token it is, and whether it is one.
    """
    width = max(row.n_tokens for row in rows)
    longest = max(len(answer) for row in rows for answer in row.answers)
    shape = (len(rows), max(len(row.answers) for row in rows), longest)
    tokens = torch.full((len(rows), width), pad)
    positions = torch.zeros_like(tokens)
    segments = torch.full_like(tokens, -1)
    sources, targets = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    present = torch.zeros(shape, dtype=torch.bool)
    for r, row in enumerate(rows):
        start = width - row.n_tokens
        end = start + len(row.prompt)
        tokens[r, start:end] = torch.tensor(row.prompt)
        positions[r, start:end] = torch.arange(len(row.prompt))
        segments[r, start:end] = 0
        last = end - 1  # of the prompt
        for a, answer in enumerate(row.answers):
            asked = row.asked[a] if row.asked else ()
            branch, n = (*asked, *answer), len(answer)
            begins = end + len(asked)
            tokens[r, end : end + len(branch)] = torch.tensor(branch)
            positions[r, end : end + len(branch)] = len(row.prompt) + torch.arange(len(branch))
            segments[r, end : end + len(branch)] = a + 1
            sources[r, a, :n] = torch.tensor([begins - 1 if asked else last, *range(begins, begins + n - 1)])
            targets[r, a, :n] = torch.tensor(answer)
            present[r, a, :n] = True
            end += len(branch)
    return segments, tokens, positions, sources, targets, present


def _mask(segments: Tensor, positions: Tensor, model: Any) -> Tensor | dict[str, Tensor] | None:
    """Say what each token sees: the prompt, and of the answers its own; None where the usual causal mask will do."""
    if int(segments.max()) == 1:
        return None if bool((segments >= 0).all()) else (segments >= 0).long().to(positions.device)
    config = getattr(model, "module", model).config.get_text_config()  # module: where several processes train
    return for_layers(config, branching(segments.to(positions.device)), positions, positions)
