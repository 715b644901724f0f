"""A language model for training that torch runs: a Hugging Face folder with or without an adapter, or a model in memory.

A prompt is computed once, and its keys and values are expanded for all of its answers; what questions about the same passages
have in common is computed once for all of them. Batches are made by tokens, so that memory stays bounded whatever the lengths
are; the longest come first, so that a batch that does not fit says so at once.
"""

import copy
import os
import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = (
    "1"  # read when transformers is loaded: models lie on this machine, and nothing is fetched
)

import torch
import transformers
from tokenizers import Tokenizer

from edge_rag.errors import EdgeRagError, ModelError, UsageError
from edge_rag.interfaces import Message
from edge_rag.models import sampling
from edge_rag.models.cores import usable_cores
from edge_rag.models.gguf_vocabulary import is_loop

from .language_model import Contrasted, Prompts, Sampled, Scored
from .torch_vocabulary import TorchVocabulary

# What models call keys and values from before, in what they take and give.
_CACHE = "cache" if tuple(map(int, transformers.__version__.split(".")[:2])) >= (5, 24) else "past_key_values"

BATCH_TOKENS = {"cpu": 8192, "mps": 16384, "cuda": 131072}  # of prompts and answers that are computed and held at once
HELD_TOKENS = {"cpu": 32768, "mps": 16384, "cuda": 131072}  # of answers that are being written, and what is before them
LOGITS_BYTES = {"cpu": 256 << 20, "mps": 512 << 20, "cuda": 2 << 30}  # for the answers of one call, in 32 bits
_MEND = "make such a folder: edge-rag export hf NAME -o DIR"


class TorchModel:
    """A language_model.LanguageModel. Scores do not depend on the batch but for rounding: 1e-4 in float32."""

    def __init__(
        self,
        folder: Path,
        adapter: Path | None = None,
        *,
        device: str = "",
        dtype: str = "float32",
        threads: int = 0,
        context_tokens: int = 0,
        batch_tokens: int = 0,
    ) -> None:
        """Open a folder, and apply a peft adapter.

        `device`: "" is the GPU if there is one. `context_tokens`: 0 is what the model was made for. `batch_tokens`: 0 is what
        fits most machines; fewer take less memory.
        """
        torch.set_num_threads(usable_cores(threads))
        model, tokenizer, chat = open_folder(folder, adapter, device or _best_device(), dtype)
        self._take(model, tokenizer, chat, folder.resolve().name, str(folder), context_tokens, batch_tokens)

    @classmethod
    def of(cls, model: Any, tokenizer: Any, *, name: str = "model in memory", batch_tokens: int = 0) -> "TorchModel":
        """Use a model where it is, with its tokenizer as transformers opens it: one that is being trained, say.

        It is switched to evaluation while it answers, and back.
        """
        self = cls.__new__(cls)
        self._take(model, tokenizer.backend_tokenizer, tokenizer, name, name, 0, batch_tokens)
        return self

    def _take(
        self, model: Any, tokenizer: Tokenizer, chat: Any, name: str, where: str, context_tokens: int, batch_tokens: int
    ) -> None:
        self.name = name
        config = model.config.get_text_config()
        self.context_tokens = context_tokens or int(config.max_position_embeddings)
        kind = model.device.type
        self._batch_tokens = batch_tokens or BATCH_TOKENS.get(kind, BATCH_TOKENS["cpu"])
        self._held_tokens = batch_tokens or HELD_TOKENS.get(kind, HELD_TOKENS["cpu"])
        logits_bytes = LOGITS_BYTES.get(kind, LOGITS_BYTES["cpu"])
        self._logits_tokens = max(1, logits_bytes // (8 * config.vocab_size))  # as the model gives them, and in 32 bits
        self.vocabulary = TorchVocabulary(tokenizer, chat, _end_ids(model), where)
        self._model = model

    def count_tokens(self, messages: Sequence[Message]) -> int:
        return len(self.vocabulary.prompt_tokens(messages))

    def sample(
        self,
        prompts: Prompts,
        *,
        n: int,
        max_tokens: int,
        temperature: float,
        seed: int,
        top_p: float = 1.0,
        on_done: Callable[[int, list[Sampled]], None] | None = None,
    ) -> list[list[Sampled]]:
        sampling.check_sampling(n=n, max_tokens=max_tokens, temperature=temperature, top_p=top_p)
        tokens = self.vocabulary.fitting_prompts(prompts, max_tokens, self.context_tokens)
        done: dict[int, list[Sampled]] = {}
        with self._answering():
            for chosen in _batches(tokens, [n * max_tokens] * len(tokens), self._batch_tokens):
                read = self._read([tokens[i] for i in chosen])
                drafts = [
                    _Draft(place, sampling.draws_for(seed, prompts[index], number), not max_tokens)
                    for place, index in enumerate(chosen)
                    for number in range(n)
                ]
                rows = max(1, self._held_tokens // (read.length + max_tokens))
                for start in range(0, len(drafts), rows):
                    self._write(read, drafts[start : start + rows], max_tokens, temperature, top_p)
                for place, index in enumerate(chosen):
                    done[index] = [self._sampled(draft) for draft in drafts[place * n : (place + 1) * n]]
                    if on_done is not None:
                        on_done(index, done[index])
        return [done[index] for index in range(len(tokens))]

    def score(
        self,
        prompts: Prompts,
        answers: Sequence[Sequence[str]],
        on_done: Callable[[int, list[Scored]], None] | None = None,
        *,
        ended: bool = True,
    ) -> list[list[Scored]]:
        tokens, given = self.vocabulary.fitting_answers(prompts, answers, self.context_tokens, ended=ended)
        done: dict[int, list[Scored]] = {}
        with self._answering():
            for chosen in _batches(tokens, [sum(map(len, texts)) for texts in given], self._batch_tokens):
                read = self._read([tokens[i] for i in chosen])
                wanted = [_Given(p, n, a) for p, index in enumerate(chosen) for n, a in enumerate(given[index])]
                self._score(read, wanted)
                for place, index in enumerate(chosen):
                    values = [w.logprobs for w in wanted if w.place == place]
                    done[index] = [Scored(t, tuple(v)) for t, v in zip(answers[index], values, strict=True)]
                    if on_done is not None:
                        on_done(index, done[index])
        return [done[index] for index in range(len(tokens))]

    def contrast(
        self,
        prompts: Sequence[Prompts],
        without: Prompts,
        answers: Sequence[Sequence[str]],
        on_done: Callable[[int, list[list[Contrasted]]], None] | None = None,
        *,
        alpha: float,
    ) -> list[list[list[Contrasted]]]:
        plain, given = self.vocabulary.fitting_answers(without, answers, self.context_tokens, ended=False)
        done = []
        with self._answering():
            for number, (several, texts) in enumerate(zip(prompts, answers, strict=True)):
                tokens, _ = self.vocabulary.fitting_answers(
                    several, [texts] * len(several), self.context_tokens, ended=False
                )
                before = [_Given(0, n, answer) for n, answer in enumerate(given[number])]
                self._keep(self._read([plain[number]]), before)
                found: dict[int, list[Contrasted]] = {}
                for chosen in _batches(tokens, [sum(map(len, given[number]))] * len(tokens), self._batch_tokens):
                    read = self._read([tokens[i] for i in chosen])
                    wanted = [_Given(p, n, a) for p in range(len(chosen)) for n, a in enumerate(given[number])]
                    self._contrast(read, wanted, before, alpha)
                    for place, index in enumerate(chosen):
                        own = [w for w in wanted if w.place == place]
                        found[index] = [
                            Contrasted(text, tuple(w.logprobs), tuple(w.contrasts))
                            for text, w in zip(texts, own, strict=True)
                        ]
                done.append([found[index] for index in range(len(tokens))])
                if on_done is not None:
                    on_done(number, done[-1])
        return done

    def _read(self, prompts: list[list[int]]) -> "_Read":
        """Compute prompts together, with padding on their left: once, what most of them is alike."""
        alike = _alike(prompts)
        before = self._read([prompts[0][:alike]]).rows(self._tensor([0] * len(prompts))) if alike else None
        rests = [prompt[alike:] for prompt in prompts]
        length = max(map(len, rests))
        padded = [[0] * (length - len(rest)) + rest for rest in rests]
        mask = self._tensor([[0] * (length - len(rest)) + [1] * len(rest) for rest in rests])
        if before is not None:
            mask = torch.cat([before.mask, mask], 1)
        found = self._compute(self._tensor(padded), mask, before and before.cache, logits_to_keep=1)
        return _Read(found[_CACHE], mask, found.logits[:, -1].float(), alike + length)

    def _write(self, read: "_Read", drafts: list["_Draft"], max_tokens: int, temperature: float, top_p: float) -> None:
        """Finish drafts, a token of each at a time."""
        places = self._tensor([draft.place for draft in drafts])
        held, logits = read.rows(places), read.logits[places]
        going = list(drafts)
        while not all(draft.is_finished for draft in going):
            tokens = self._draw(logits, [draft.draws.random() for draft in going], temperature, top_p)
            logprobs = logits.log_softmax(-1).gather(1, tokens[:, None])[:, 0].tolist()
            for draft, token, logprob in zip(going, tokens.tolist(), _checked(logprobs), strict=True):
                if not draft.is_finished:
                    draft.add(token, logprob, self.vocabulary.is_end(token), max_tokens)
            left = [i for i, draft in enumerate(going) if not draft.is_finished]
            # To leave some out copies the others, which costs more than a token of those that are done.
            if len(left) <= len(going) // 2:
                going = [going[i] for i in left]
                held, tokens = held.rows(self._tensor(left)), tokens[self._tensor(left)]
            if going:
                held.mask = torch.cat([held.mask, torch.ones_like(held.mask[:, :1])], 1)
                found = self._compute(tokens[:, None], held.mask, held.cache, logits_to_keep=1)
                held.cache, logits = found[_CACHE], found.logits[:, -1].float()

    def _draw(self, logits: Any, draws: list[float], temperature: float, top_p: float) -> Any:
        """Choose a token for each row by a random number, as sampling.sampler does."""
        if temperature == 0:
            return logits.argmax(-1)
        exact = torch.float32 if logits.device.type == "mps" else torch.float64  # MPS has no 64 bits
        weights = ((logits - logits.amax(-1, keepdim=True)) / temperature).exp().to(exact)
        if top_p < 1:
            ordered, order = weights.sort(dim=-1, descending=True, stable=True)
            before = ordered.cumsum(-1) - ordered
            ordered[before >= top_p * ordered.sum(-1, keepdim=True)] = 0
            weights = torch.zeros_like(weights).scatter(-1, order, ordered)
        up_to = weights.cumsum(-1)
        drawn = torch.tensor(draws, dtype=exact, device=logits.device)[:, None] * up_to[:, -1:]
        return torch.searchsorted(up_to, drawn, right=True)[:, 0].clamp(max=logits.shape[-1] - 1)

    def _score(self, read: "_Read", wanted: list["_Given"]) -> None:
        """Add the log-probabilities of given answers to prompts that have been read."""

        def take(together: list[_Given], tokens: Any, logits: Any) -> None:
            values = logits.gather(2, tokens[:, :, None])[:, :, 0] - logits.logsumexp(-1)
            for w, row in zip(together, values.tolist(), strict=True):
                w.logprobs += _checked(row[: len(w.tokens) - len(w.logprobs)])

        self._follow(read, wanted, take)

    def _contrast(self, read: "_Read", wanted: list["_Given"], plain: Sequence["_Given"], alpha: float) -> None:
        """Do so, and add those by what the prompts add to the one whose answers are `plain`, by their numbers."""

        def take(together: list[_Given], tokens: Any, logits: Any) -> None:
            for w, row, targets in zip(together, logits, tokens, strict=True):
                start, n = len(w.logprobs), min(len(w.tokens) - len(w.logprobs), len(targets))
                without = torch.stack(plain[w.number].logits[start : start + n])
                both = torch.stack([row[:n], (1 + alpha) * row[:n] - alpha * without])
                values = both.gather(2, targets[None, :n, None].expand(2, -1, -1))[:, :, 0] - both.logsumexp(-1)
                w.logprobs += _checked(values[0].tolist())
                w.contrasts += _checked(values[1].tolist())

        self._follow(read, wanted, take)

    def _keep(self, read: "_Read", wanted: list["_Given"]) -> None:
        """Keep the logits before each token of given answers to one prompt that has been read."""

        def take(together: list[_Given], tokens: Any, logits: Any) -> None:
            for w, row in zip(together, logits, strict=True):
                w.logits += row[: len(w.tokens) - len(w.logits)]

        self._follow(read, wanted, take)

    def _follow(self, read: "_Read", wanted: list["_Given"], take: "_Take") -> None:
        """Let `take` have the logits before the tokens of given answers: before their first ones, then before all others."""
        for start in range(0, len(wanted), self._logits_tokens):
            some = wanted[start : start + self._logits_tokens]
            places = self._tensor([w.place for w in some])
            take(some, self._tensor([w.tokens[:1] for w in some]), read.logits[places][:, None])
        longer = sorted((w for w in wanted if len(w.tokens) > 1), key=lambda w: -len(w.tokens))
        while longer:
            width = len(longer[0].tokens) - 1
            rows = max(1, min(self._batch_tokens // (read.length + width), self._logits_tokens // width))
            together, longer = longer[:rows], longer[rows:]
            held = read.rows(self._tensor([w.place for w in together]))
            inputs = self._tensor([w.tokens[:-1] + [0] * (width - len(w.tokens) + 1) for w in together])
            targets = self._tensor([w.tokens[1:] + [0] * (width - len(w.tokens) + 1) for w in together])
            real = self._tensor([[1] * (len(w.tokens) - 1) + [0] * (width - len(w.tokens) + 1) for w in together])
            mask = torch.cat([held.mask, real], 1)
            take(together, targets, self._compute(inputs, mask, held.cache).logits.float())

    def _compute(self, tokens: Any, mask: Any, cache: Any, **options: Any) -> Any:
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -tokens.shape[1] :]
        try:
            return self._model(
                input_ids=tokens,
                attention_mask=mask,
                position_ids=positions,
                use_cache=True,
                **{_CACHE: cache},
                **options,
            )
        except torch.OutOfMemoryError as error:
            raise ModelError(
                f"{self.name}: no memory for {tokens.shape[0]} texts of {mask.shape[1]} tokens",
                mend=f"give batch_tokens less than {self._batch_tokens}",
            ) from error

    def _sampled(self, draft: "_Draft") -> Sampled:
        mean = sum(draft.logprobs) / len(draft.logprobs) if draft.logprobs else 0.0
        text = self.vocabulary.text(draft.tokens[:-1] if draft.is_loop else draft.tokens)
        return Sampled(text, mean, len(draft.tokens), draft.is_whole)

    def _tensor(self, values: Any) -> Any:
        return torch.tensor(values, dtype=torch.long, device=self._model.device)

    @contextmanager
    def _answering(self) -> Iterator[None]:
        """Switch the model to evaluation, and back. Not to inference mode: what a model then remembers cannot be trained."""
        was_training = self._model.training
        self._model.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self._model.train(was_training)


@dataclass(slots=True)
class _Read:
    """Prompts that have been computed."""

    cache: Any
    mask: Any  # (prompts, length): 0 where padding is
    logits: Any  # (prompts, vocabulary): after their last tokens
    length: int

    def rows(self, places: Any) -> "_Read":
        """Return these prompts, some of them more than once. Keys and values are new, and those here stay as they are."""
        cache = copy.copy(self.cache)
        cache.layers = [copy.copy(layer) for layer in self.cache.layers]
        cache.batch_select_indices(places)
        return _Read(cache, self.mask[places], self.logits, self.length)


@dataclass(slots=True)
class _Given:
    place: int  # of its prompt in the batch
    number: int  # among the answers to that prompt
    tokens: list[int]
    logprobs: list[float] = field(default_factory=list)
    contrasts: list[float] = field(default_factory=list)
    logits: list[Any] = field(default_factory=list)  # where they are kept


_Take = Callable[
    [list[_Given], Any, Any], None
]  # (answers, (answers, n) tokens, (answers, n, vocabulary) logits before them)


@dataclass(slots=True)
class _Draft:
    """An answer in the making."""

    place: int  # of its prompt in the batch
    draws: random.Random
    is_finished: bool
    is_whole: bool = False
    is_loop: bool = False
    tokens: list[int] = field(default_factory=list)  # without the end
    logprobs: list[float] = field(default_factory=list)

    def add(self, token: int, logprob: float, is_end: bool, max_tokens: int) -> None:
        self.logprobs.append(logprob)
        if is_end:
            self.is_finished = self.is_whole = True
            return
        self.tokens.append(token)
        self.is_loop = is_loop(self.tokens)
        self.is_finished = self.is_loop or len(self.tokens) >= max_tokens


def _batches(prompts: list[list[int]], more: list[int], batch_tokens: int) -> Iterator[list[int]]:
    """Yield prompts that are read together: those that are mostly alike, others by like length; the longest first.

    `more` is what the answers to each may add.
    """
    families, others = [], []
    for family in _families(prompts):
        if len(family) > 1:
            families.append(family)
        else:
            others += family
    batches = [
        batch
        for members in [*families, others]
        for batch in _cut(sorted(members, key=lambda i: -len(prompts[i])), prompts, more, batch_tokens)
    ]
    yield from sorted(batches, key=lambda batch: -len(prompts[batch[0]]))


def _cut(order: list[int], prompts: list[list[int]], more: list[int], batch_tokens: int) -> Iterator[list[int]]:
    batch: list[int] = []
    for index in order:
        longest = len(prompts[batch[0]]) if batch else len(prompts[index])
        if batch and (len(batch) + 1) * longest + sum(more[i] for i in [*batch, index]) > batch_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _families(prompts: list[list[int]]) -> Iterator[list[int]]:
    """Group prompts that follow each other and are mostly alike: questions about the same passages."""
    family: list[int] = []
    for index, prompt in enumerate(prompts):
        if family and not _alike([prompts[family[0]], prompt]):
            yield family
            family = []
        family.append(index)
    if family:
        yield family


def _alike(prompts: list[list[int]]) -> int:
    """Return how many tokens prompts begin with alike, if that is most of each: else 0."""
    if len(prompts) == 1:
        return 0
    n = sum(1 for _ in takewhile(lambda tokens: len(set(tokens)) == 1, zip(*prompts, strict=False)))
    n = min(n, min(map(len, prompts)) - 1)  # something of each is left to be answered
    return n if 2 * n > max(map(len, prompts)) else 0


def _checked(logprobs: list[float]) -> list[float]:
    if not all(-float("inf") < value <= 0.001 for value in logprobs):  # nan, too
        raise ModelError(
            "the model predicts values that are no numbers", mend="check its files, and how it was trained"
        )
    return logprobs


def open_folder(
    folder: Path, adapter: Path | None, device: str, dtype: str, *, is_trainable: bool = False
) -> tuple[Any, Tokenizer, Any]:
    """Return the model, its tokenizer, and transformers' one. An adapter is merged, but if it `is_trainable`."""
    if dtype not in ("float32", "bfloat16", "float16"):
        raise UsageError(f"{dtype!r} is no type to compute in", mend="use float32, bfloat16 or float16")
    check_folder(folder, adapter)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    is_merged = adapter is not None and not is_trainable
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32 if is_merged else getattr(torch, dtype), local_files_only=True
        )
        if adapter is not None:
            import peft

            with warnings.catch_warnings(action="ignore", category=FutureWarning):  # of peft, at transformers
                model = peft.PeftModel.from_pretrained(model, adapter, is_trainable=is_trainable)
        if is_merged:
            model = model.merge_and_unload().to(getattr(torch, dtype))
        chat = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        return model.to(device).eval(), Tokenizer.from_file(str(folder / "tokenizer.json")), chat
    except (EdgeRagError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # whatever damaged files make them raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else "no reason given"
        place = f"{folder} with {adapter}" if adapter else str(folder)
        raise ModelError(f"{place} cannot be opened: {type(error).__name__}: {reason}", mend=_MEND) from error


def check_folder(folder: Path, adapter: Path | None) -> None:
    """Raise UsageError where no model, or no adapter, can be."""
    for path, name in ((folder, "config.json"), (folder, "tokenizer.json"), (adapter, "adapter_config.json")):
        if path is not None and not (path / name).is_file():
            kind = "model" if path == folder else "adapter"
            raise UsageError(
                f"{path} is no folder of a Hugging Face {kind}: it holds no {name}",
                mend=_MEND if path == folder else "give the folder that peft saved",
            )


def _end_ids(model: Any) -> list[int]:
    said = model.generation_config.eos_token_id if model.generation_config is not None else None
    return said if isinstance(said, list) else [] if said is None else [said]


def _best_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
