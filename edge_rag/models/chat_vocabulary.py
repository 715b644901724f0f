"""Messages to tokens by a chat template: the same text for every engine that runs a model, llama.cpp or torch.

A prompt ends where the answer begins. If its last message is the assistant's, that is a begun answer, and what comes next
continues it.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from edge_rag.errors import ModelError, UsageError
from edge_rag.interfaces import Message

_MARK = "the answer"


class ChatVocabulary(ABC):
    """The tokeniser and the chat template of one model. An engine says how it tokenises."""

    def __init__(self, template: str, where: str, *, bos: str, add_bos: bool) -> None:
        """`where` names the model in messages; `add_bos`: its tokeniser begins a text with `bos`."""
        self._template = _compile_template(template, where)
        self._where = where
        self._bos = bos
        self._add_bos = add_bos

    @abstractmethod
    def tokenize(self, text: str, *, add_special: bool) -> list[int]: ...
    @abstractmethod
    def is_end(self, token: int) -> bool: ...  # no answer goes on after it
    @abstractmethod
    def is_control(self, token: int) -> bool: ...  # it means something to the template: no text of others may hold it
    @abstractmethod
    def special_text(self, token: int) -> str: ...
    @property
    @abstractmethod
    def usual_end(self) -> int: ...  # the end of an answer whose template writes none

    def prompt_tokens(self, messages: Sequence[Message]) -> list[int]:
        """Render the chat template up to where the answer begins, or goes on."""
        begun = messages[-1:] if messages and messages[-1].role == "assistant" else []
        text = self._render(messages[: len(messages) - len(begun)], to_answer=True)
        has_bos = bool(self._bos) and text.startswith(self._bos)
        tokens = self.tokenize(text, add_special=self._add_bos and not has_bos)
        return tokens + [token for message in begun for token in self.answer_tokens(message.content, ended=False)]

    def answer_tokens(self, text: str, *, ended: bool) -> list[int]:
        """Tokenise an answer as it stands after a prompt, with the token that ends it unless it is to go on.

        It is tokenised alone. That gives the tokens of the whole text where the prompt ends in a control token or a line end
        and the answer begins with no white space, and where an answer goes on between words; elsewhere the tokeniser might
        have joined characters from both sides.
        """
        tokens = self.tokenize(self._defused(text), add_special=False)
        return [*tokens, self.end_token] if ended else tokens

    def fitting_prompts(
        self, prompts: Sequence[Sequence[Message]], max_tokens: int, context_tokens: int
    ) -> list[list[int]]:
        """Return the tokens of many prompts; UsageError if one leaves no room for an answer."""
        tokens = [self.prompt_tokens(messages) for messages in prompts]
        for number, prompt in enumerate(tokens):
            _check_fits(number, prompt, max_tokens, context_tokens)
        return tokens

    def fitting_answers(
        self,
        prompts: Sequence[Sequence[Message]],
        answers: Sequence[Sequence[str]],
        context_tokens: int,
        *,
        ended: bool,
    ) -> tuple[list[list[int]], list[list[list[int]]]]:
        """Return the tokens of many prompts, and of the answers to each; UsageError if one does not fit, or is nothing."""
        if len(answers) != len(prompts):
            raise UsageError(
                f"{len(prompts)} prompts came with answers to {len(answers)}", mend="give a list of answers for each"
            )
        tokens = [self.prompt_tokens(messages) for messages in prompts]
        given = [[self.answer_tokens(text, ended=ended) for text in texts] for texts in answers]
        for number, (prompt, texts) in enumerate(zip(tokens, given, strict=True)):
            if not all(texts):
                raise UsageError(
                    f"answer {texts.index([])} to prompt {number} (counted from 0) is empty: without an end there is"
                    " nothing to score",
                    mend="leave it out",
                )
            _check_fits(number, prompt, max(map(len, texts), default=0), context_tokens)
        return tokens, given

    @cached_property
    def end_token(self) -> int:
        """The token that the chat template ends an answer with."""
        try:
            text = self._render([Message("user", "a question"), Message("assistant", _MARK)], to_answer=False)
        except UsageError:
            return self.usual_end
        after = self.tokenize(text.rpartition(_MARK)[2], add_special=False)
        return next((token for token in after if self.is_end(token)), self.usual_end)

    def _render(self, messages: Sequence[Message], *, to_answer: bool) -> str:
        from jinja2 import TemplateError

        chat = [{"role": m.role, "content": self._defused(m.content)} for m in messages]
        try:
            text: str = self._template.render(
                messages=chat, add_generation_prompt=to_answer, bos_token=self._bos, eos_token="", enable_thinking=False
            )
        except TemplateError as error:
            raise UsageError(f"{self._where}: its chat template cannot render these messages: {error}") from error
        return text

    def _defused(self, content: str) -> str:
        """Break up what the tokenizer would take for a control token, so that no text can end its own message."""
        controls = {t for t in self.tokenize(content, add_special=False) if self.is_control(t)}
        while controls:
            for token in controls:
                text = self.special_text(token)
                content = content.replace(text, f"{text[0]} {text[1:]}")
            controls = {t for t in self.tokenize(content, add_special=False) if self.is_control(t)} - controls
        return content


def _check_fits(number: int, prompt: list[int], answer_tokens: int, context_tokens: int) -> None:
    if len(prompt) + answer_tokens > context_tokens:
        raise UsageError(
            f"prompt {number} (counted from 0) has {len(prompt)} tokens: with an answer of {answer_tokens} it does"
            f" not fit into {context_tokens}",
            mend="show it fewer passages, or raise context_tokens",
        )


def _compile_template(template: str, where: str) -> Any:
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    if not template:
        raise ModelError(f"{where} has no chat template", mend="use an instruction-tuned model")
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda pattern: ""
    try:
        return environment.from_string(template)
    except TemplateError as error:
        raise ModelError(f"{where}: its chat template cannot be read: {error}", mend="use another model") from error


def _raise_exception(message: str) -> None:
    raise UsageError(f"the model's chat template refuses these messages: {message}")
