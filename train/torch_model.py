"""A language model for training that torch runs: a Hugging Face folder with or without an adapter, or a model in memory.

A prompt is computed once for all of its answers, and so is what questions about the same passages have in common (`branches`).
Batches are made by tokens, so that memory stays bounded whatever the lengths are; the longest come first, so that a batch that
does not fit says so at once, and cores end at about the same time.
"""

import os
import random
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

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

from .attention import for_layers, use_blocks
from .branches import Branches, Tips, n_alike
from .language_model import Contrasted, Prompts, Sampled, Scored
from .torch_vocabulary import TorchVocabulary

# What models call keys and values from before, in what they take and give.
_CACHE = "cache" if tuple(map(int, transformers.__version__.split(".")[:2])) >= (5, 24) else "past_key_values"

# Prompts and answers that are computed and held at once: on each core, or on the GPU.
BATCH_TOKENS = {"cpu": 4096, "mps": 16384, "cuda": 131072}
LOGITS_BYTES = {"cpu": 256 << 20, "mps": 512 << 20, "cuda": 2 << 30}  # for the answers of one call, in 32 bits
_MEND = "make such a folder: edge-rag export hf NAME -o DIR"

P = TypeVar("P")
R = TypeVar("R")


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
        self._config = config = model.config.get_text_config()
        self.context_tokens = context_tokens or int(config.max_position_embeddings)
        kind = model.device.type
        self._cores = torch.get_num_threads() if kind == "cpu" else 1
        self._batch_tokens = batch_tokens or BATCH_TOKENS.get(kind, BATCH_TOKENS["cpu"])
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

        def write(rows: list[list[int]]) -> dict[int, list[Sampled]]:
            read, chosen = self._read_rows(tokens, rows)
            drafts = [
                _Draft(place, sampling.draws_for(seed, prompts[index], number), not max_tokens)
                for place, index in enumerate(chosen)
                for number in range(n)
            ]
            self._write(read, drafts, max_tokens, temperature, top_p)
            samples = [self._sampled(draft) for draft in drafts]
            return {index: samples[place * n : (place + 1) * n] for place, index in enumerate(chosen)}

        self._each(_batches(tokens, [n * max_tokens] * len(tokens), self._batch_tokens), write, _telling(done, on_done))
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

        def score(rows: list[list[int]]) -> dict[int, list[Scored]]:
            read, chosen = self._read_rows(tokens, rows)
            wanted = [_Given(place, n, a) for place, index in enumerate(chosen) for n, a in enumerate(given[index])]
            self._score(read, wanted)
            return {
                index: [Scored(answers[index][w.number], tuple(w.logprobs)) for w in wanted if w.place == place]
                for place, index in enumerate(chosen)
            }

        lengths = [sum(map(len, texts)) for texts in given]
        self._each(_batches(tokens, lengths, self._batch_tokens), score, _telling(done, on_done))
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
        done: dict[int, list[list[Contrasted]]] = {}

        def contrast(number: int) -> dict[int, list[list[Contrasted]]]:
            several, texts = prompts[number], answers[number]
            tokens, _ = self.vocabulary.fitting_answers(
                several, [texts] * len(several), self.context_tokens, ended=False
            )
            before = self._logits_without(plain[number], given[number])
            found: dict[int, list[Contrasted]] = {}
            for rows in _batches(tokens, [sum(map(len, given[number]))] * len(tokens), self._batch_tokens):
                read, chosen = self._read_rows(tokens, rows)
                wanted = [_Given(place, n, a) for place in range(len(chosen)) for n, a in enumerate(given[number])]
                self._contrast(read, wanted, before, alpha)
                for place, index in enumerate(chosen):
                    found[index] = [
                        Contrasted(texts[w.number], tuple(w.logprobs), tuple(w.contrasts))
                        for w in wanted
                        if w.place == place
                    ]
            return {number: [found[index] for index in range(len(tokens))]}

        self._each(range(len(prompts)), contrast, _telling(done, on_done))
        return [done[number] for number in range(len(prompts))]

    def _each(self, pieces: Iterable[P], work: Callable[[P], R], take: Callable[[R], object]) -> None:
        """Work on pieces; `take` has in this thread what comes of each.

        On a processor each core works on a piece of its own: where they share every operation, half of their time is lost.
        """
        was_training = self._model.training
        self._model.eval()

        def alone(piece: P) -> R:
            torch.set_num_threads(1)  # of this thread
            with torch.no_grad():  # not inference mode: what a model then remembers cannot be trained
                return work(piece)

        try:
            if self._cores == 1:
                for piece in pieces:
                    with torch.no_grad():
                        found = work(piece)
                    take(found)
                return
            with ThreadPoolExecutor(self._cores) as pool:
                going = [pool.submit(alone, piece) for piece in pieces]
                try:
                    for done in as_completed(going):
                        take(done.result())
                finally:
                    pool.shutdown(wait=False, cancel_futures=True)
        finally:
            self._model.train(was_training)

    def _read_rows(self, prompts: list[list[int]], rows: list[list[int]]) -> tuple[Branches, list[int]]:
        """Compute rows of prompts, and return which of `prompts` they are."""
        read = Branches(self._compute, [[prompts[n] for n in row] for row in rows], self._model.device)
        return read, [n for row in rows for n in row]

    def _write(self, read: Branches, drafts: list["_Draft"], max_tokens: int, temperature: float, top_p: float) -> None:
        """Finish drafts, a token of each at a time."""
        going = [draft for draft in drafts if not draft.is_finished]
        prompts = [draft.place for draft in going]
        tips, logits = Tips(read, prompts), read.logits[prompts]
        while going:
            tokens = self._draw(logits, [draft.draws.random() for draft in going], temperature, top_p)
            logprobs = logits.log_softmax(-1).gather(1, tokens[:, None])[:, 0].tolist()
            for draft, token, logprob in zip(going, tokens.tolist(), _checked(logprobs), strict=True):
                draft.add(token, logprob, self.vocabulary.is_end(token), max_tokens)
            left = [n for n, draft in enumerate(going) if not draft.is_finished]
            going = [going[n] for n in left]
            if going:
                tips.keep(left)
                logits = tips.grow(tokens[left])

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

    def _score(self, read: Branches, wanted: list["_Given"]) -> None:
        """Find the log-probabilities of given answers to prompts that have been read."""
        for w, logits in self._logits(read, wanted):
            values = logits.gather(1, self._tensor(w.tokens)[:, None])[:, 0] - logits.logsumexp(-1)
            w.logprobs = _checked(values.tolist())

    def _contrast(self, read: Branches, wanted: list["_Given"], without: Sequence[Any], alpha: float) -> None:
        """Do so, and find by what the prompts add to the one whose logits are `without`, by the number of the answer."""
        for w, logits in self._logits(read, wanted):
            both = torch.stack([logits, (1 + alpha) * logits - alpha * without[w.number]])
            targets = self._tensor(w.tokens)[None, :, None].expand(2, -1, -1)
            values = both.gather(2, targets)[:, :, 0] - both.logsumexp(-1)
            w.logprobs, w.contrasts = _checked(values[0].tolist()), _checked(values[1].tolist())

    def _logits_without(self, prompt: list[int], answers: Sequence[list[int]]) -> list[Any]:
        """Return the logits before each token of answers to a prompt."""
        wanted = [_Given(0, n, answer) for n, answer in enumerate(answers)]
        found = {w.number: logits for w, logits in self._logits(self._read_rows([prompt], [[0]])[0], wanted)}
        return [found[n] for n in range(len(answers))]

    def _logits(self, read: Branches, wanted: Sequence["_Given"]) -> Iterator[tuple["_Given", Any]]:
        for place, logits in read.logits_of([(w.place, w.tokens) for w in wanted], self._logits_tokens):
            yield wanted[place], logits

    def _compute(self, tokens: Any, positions: Any, mask: Any, of_keys: Any, cache: Any, places: Any) -> Any:
        try:
            return self._model(
                input_ids=tokens,
                attention_mask=None if mask is None else for_layers(self._config, mask, positions, of_keys),
                position_ids=positions,
                use_cache=True,
                logits_to_keep=places,
                **{_CACHE: cache},
            ).logits
        except torch.OutOfMemoryError as error:
            raise ModelError(
                f"{self.name}: no memory for {tokens.shape[0]} texts of {tokens.shape[1]} tokens",
                mend=f"give batch_tokens less than {self._batch_tokens}",
            ) from error

    def _sampled(self, draft: "_Draft") -> Sampled:
        mean = sum(draft.logprobs) / len(draft.logprobs) if draft.logprobs else 0.0
        text = self.vocabulary.text(draft.tokens[:-1] if draft.is_loop else draft.tokens)
        return Sampled(text, mean, len(draft.tokens), draft.is_whole)

    def _tensor(self, values: Any) -> Any:
        return torch.tensor(values, dtype=torch.long, device=self._model.device)


def _telling(done: dict[int, R], on_done: Callable[[int, R], None] | None) -> Callable[[dict[int, R]], None]:
    """Return what keeps results by their numbers, and tells them."""

    def take(found: dict[int, R]) -> None:
        for index, result in found.items():
            done[index] = result
            if on_done is not None:
                on_done(index, result)

    return take


@dataclass(slots=True)
class _Given:
    place: int  # of its prompt among those that are read
    number: int  # among the answers to that prompt
    tokens: list[int]
    logprobs: list[float] = field(default_factory=list)
    contrasts: list[float] = field(default_factory=list)


@dataclass(slots=True)
class _Draft:
    """An answer in the making."""

    place: int  # of its prompt among those that are read
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


def _batches(prompts: list[list[int]], more: list[int], batch_tokens: int) -> Iterator[list[list[int]]]:
    """Yield rows of prompts that are read together, the longest first. Prompts of a row are mostly alike.

    `more` is what the answers to each may add.
    """
    rows = [*_families(prompts, more, batch_tokens)]
    sizes = [_size([prompts[n] for n in row]) + sum(more[n] for n in row) for row in rows]
    batch: list[list[int]] = []
    longest = 0
    for n in sorted(range(len(rows)), key=lambda n: -sizes[n]):
        if batch and (len(batch) + 1) * longest > batch_tokens:
            yield batch
            batch = []
        longest = longest if batch else sizes[n]
        batch.append(rows[n])
    if batch:
        yield batch


def _families(prompts: list[list[int]], more: list[int], batch_tokens: int) -> Iterator[list[int]]:
    """Group prompts that follow each other and are mostly alike: questions about the same passages."""
    family: list[int] = []
    size = 0
    for index, prompt in enumerate(prompts):
        if family:
            alike = n_alike([prompts[family[0]], prompt])
            size += len(prompt) - alike + more[index]
            if not alike or size > batch_tokens:
                yield family
                family = []
        if not family:
            size = len(prompt) + more[index]
        family.append(index)
    if family:
        yield family


def _size(prompts: Sequence[Sequence[int]]) -> int:
    """Return how many tokens a row of prompts has."""
    return sum(map(len, prompts)) - n_alike(prompts) * (len(prompts) - 1)


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
    opened, mend = str(folder), _MEND
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32 if is_merged else getattr(torch, dtype), local_files_only=True
        )
        if device == "cpu":
            use_blocks(model)
        if adapter is not None:
            import peft

            opened = f"{adapter} on {folder}"
            mend = "give an adapter of this model; if a file is damaged, train it again"
            with warnings.catch_warnings(action="ignore", category=FutureWarning):  # of peft, at transformers
                model = peft.PeftModel.from_pretrained(model, adapter, is_trainable=is_trainable)
        if is_merged:
            model = model.merge_and_unload().to(getattr(torch, dtype))
        opened, mend = str(folder), _MEND
        chat = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        return model.to(device).eval(), Tokenizer.from_file(str(folder / "tokenizer.json")), chat
    except (EdgeRagError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # whatever damaged files make them raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else "no reason given"
        raise ModelError(f"{opened} cannot be opened: {type(error).__name__}: {reason}", mend=mend) from error


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
