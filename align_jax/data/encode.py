"""Text to tokens: templates, exactly one BOS, EOS once, truncation that is counted."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import jinja2
import numpy as np

from align_jax.data.config import DataConfig
from align_jax.data.formats.example import Example, Text
from align_jax.data.sources import RowError
from align_jax.errors import UserError


class Encoder:
    """Turns prompts, beliefs and responses into token ids.

    Prompt, belief statement and response are tokenized apart and joined as ids, so the boundaries between them are
    lengths and nothing in a text can be mistaken for one. A tokenizer that puts a space before whatever it is given
    (SentencePiece) puts one before a plain response too: it then begins as it would after a space.

    Args:
      tokenizer: a transformers tokenizer with an end-of-sequence token.
      config: templates and lengths.
      vocab_size: of the model; a token beyond it is an error. None does not check.

    Raises:
      UserError: no end-of-sequence token, or `data.chat_template: always` with a tokenizer that has none.
    """

    def __init__(self, tokenizer: Any, config: DataConfig, vocab_size: int | None = None):
        self.tokenizer, self.config, self._vocab_size = tokenizer, config, vocab_size
        self.bos, self.eos = tokenizer.bos_token_id, tokenizer.eos_token_id
        has_template = getattr(tokenizer, "chat_template", None) is not None
        if self.eos is None:
            raise UserError("the tokenizer has no end-of-sequence token, which ends every response")
        if config.chat_template == "always" and not has_template:
            raise UserError("data.chat_template is 'always', but the tokenizer has no chat template")
        self._chat = has_template and config.chat_template != "never"
        # Without a template every special token is ours, and "</s>" in a text is text. One mode for all texts: switching it
        # would change the tokenizer under the other threads.
        self._split_special = not has_template
        self._beliefs: dict[str, np.ndarray] = {}
        # Also the first call, before there are threads: it may change the tokenizer's own settings, later ones do not.
        self._inserts_space = self._ids("\na")[-1:] != self._ids("a")

    def key(self) -> str:
        """A hash of all that decides the tokens of a text."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        vocabulary = backend.to_str() if backend is not None else repr(sorted(self.tokenizer.get_vocab().items()))
        parts = (vocabulary, str(self.tokenizer.chat_template), self.bos, self.eos, self.config.chat_template)
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    def encode_prompt(self, prompt: Text, group: str = "", context: str = "") -> tuple[np.ndarray, bool]:
        """Token ids `[m]` of a prompt, BOS first, and whether it was cut to `max_prompt_tokens`."""
        ids = self._ids(self._render_prompt(prompt, group, context))
        if self.bos is not None:
            # Templates may hold BOS already, even twice.
            first = next((i for i, token in enumerate(ids) if token != self.bos), len(ids))
            ids = [self.bos, *ids[first:]]
        if not ids:
            raise RowError("field 'prompt' has no tokens")
        most = self.config.max_prompt_tokens
        if len(ids) <= most:
            return np.asarray(ids, np.int32), False
        if self.config.truncate_prompt == "right":
            return np.asarray(ids[:most], np.int32), True
        head = ids[:1] if ids[0] == self.bos else []
        return np.asarray([*head, *ids[len(ids) - most + len(head) :]], np.int32), True

    def encode_response(self, prompt: Text, response: Text, before: np.ndarray | None = None) -> tuple[np.ndarray, bool]:
        """Token ids `[n]` of a response, EOS last, and whether it was cut to `max_response_tokens`.

        Args:
          prompt: what it answers (a chat template may need it).
          response: the text.
          before: ids that are part of the response and stand before the text (a belief statement).
        """
        ids = self._response_ids(prompt, response)
        if not ids or ids[-1] != self.eos:
            ids.append(self.eos)
        ids = [*(before.tolist() if before is not None else ()), *ids]
        most = self.config.max_response_tokens
        return np.asarray(ids[:most], np.int32), len(ids) > most

    def cut_sample(self, tokens: Sequence[int]) -> tuple[np.ndarray, bool]:
        """Token ids `[n]` of a response that was sampled, and whether it was cut to `max_response_tokens`."""
        if self._vocab_size is not None and max(tokens) >= self._vocab_size:
            raise RowError(
                f"field 'tokens': the vocabulary ends at {self._vocab_size - 1}, got {max(tokens)}; data.format groups "
                "reads the texts instead"
            )
        most = self.config.max_response_tokens
        return np.asarray(tokens[:most], np.int32), len(tokens) > most

    def encode_belief(self, number: int, belief: str) -> np.ndarray:
        """Token ids of a belief statement, the same whatever text follows."""
        statement = self.config.belief_template.format(id=number, belief=belief)
        if statement not in self._beliefs:
            ids = self._ids(statement)
            if not ids:
                raise RowError(f"field 'options': the statement of belief {belief!r} has no tokens")
            self._beliefs[statement] = np.asarray(ids, np.int32)
        return self._beliefs[statement]

    def _ids(self, text: str) -> list[int]:
        ids = self.tokenizer(text, add_special_tokens=False, split_special_tokens=self._split_special)["input_ids"]
        if self._vocab_size is not None and ids and max(ids) >= self._vocab_size:
            token = self.tokenizer.convert_ids_to_tokens(max(ids))
            raise UserError(
                f"the tokenizer gives token {token!r} the number {max(ids)}, but the model's vocabulary ends at "
                f"{self._vocab_size - 1}; use the tokenizer that belongs to the model (model.tokenizer)"
            )
        return ids

    def _render_prompt(self, prompt: Text, group: str, context: str) -> str:
        if isinstance(prompt, str):
            prompt = self.config.prompt_template.format(prompt=prompt, group=group, context=context)
        if isinstance(prompt, str) and not self._chat:
            bos = self.tokenizer.bos_token
            while bos and prompt.startswith(bos):
                prompt = prompt.removeprefix(bos)
            return prompt
        return self._begin(as_messages(prompt))

    def _response_ids(self, prompt: Text, response: Text) -> list[int]:
        if isinstance(response, str) and isinstance(prompt, str) and not self._chat:
            # Some data sets write the end of the sequence out.
            return self._ids(response.removesuffix(self.tokenizer.eos_token))
        start, text = self._render_turn(prompt, response)
        if self._inserts_space:
            # Such a tokenizer puts a space before whatever it is given; within a conversation there is none.
            before, whole = self._ids(start), self._ids(start + text)
            if whole[: len(before)] == before:
                return whole[len(before) :]
        return self._ids(text)

    def _render_turn(self, prompt: Text, response: Text) -> tuple[str, str]:
        """The rendered prompt, and what the template adds to it for the response."""
        messages = as_messages(prompt)
        start = self._begin(messages)
        answer = [{"role": "assistant", "content": response}] if isinstance(response, str) else list(response)
        whole = self._apply(_joined(messages, answer), add_generation_prompt=False)
        if not whole.startswith(start):
            raise UserError(
                "the tokenizer's chat template does not render a conversation as prompt + response: it changes the prompt "
                "when the response follows. Set data.chat_template to 'never', or mend the template"
            )
        text = whole[len(start) :]
        end = self.tokenizer.eos_token
        # Templates may end a turn with EOS and a newline: the model stops at EOS.
        return start, text.rstrip() if end and text.rstrip().endswith(end) else text

    def _begin(self, messages: list[dict]) -> str:
        """The rendered prompt; where the assistant has begun its turn, the response continues it."""
        if messages[-1]["role"] == "assistant":
            return self._apply(messages, continue_final_message=True)
        return self._apply(messages, add_generation_prompt=True)

    def _apply(self, messages: list[dict], **options: bool) -> str:
        if getattr(self.tokenizer, "chat_template", None) is None:
            raise UserError(
                "the data holds conversations, but the tokenizer has no chat template; give a file of one as "
                "model.chat_template, or use plain text"
            )
        try:
            return self.tokenizer.apply_chat_template(messages, tokenize=False, **options)
        except (jinja2.TemplateError, ValueError) as error:  # a ValueError where there is nothing to continue
            raise RowError(f"the chat template refuses this conversation: {error}") from error


def as_messages(text: Text) -> list[dict]:
    """A conversation; plain text is what the user said."""
    return [{"role": "user", "content": text}] if isinstance(text, str) else [dict(m) for m in text]


def _joined(messages: list[dict], answer: list[dict]) -> list[dict]:
    """The conversation, in which an answer continues a turn that the assistant has begun."""
    if not messages[-1]["role"] == answer[0]["role"] == "assistant":
        return [*messages, *answer]
    whole = {**answer[0], "content": messages[-1]["content"] + answer[0]["content"]}
    return [*messages[:-1], whole, *answer[1:]]


def plain_key(example: Example) -> str:
    """What makes two rows rows of the same prompt: prompt, context, group and, where it has them, the options."""
    options = example.opinion.options if example.opinion is not None else None
    return repr((example.prompt, example.context, example.group, options))
