"""From what was said to token ids: the tokens that a model would have seen, and which of them are scored."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from align_jax.data.config import DataConfig
from align_jax.data.conversation import Conversation, as_answer, joined, stating, whole_texts, without_end
from align_jax.data.formats.example import Example, Text
from align_jax.data.sources import RowError
from align_jax.data.template import ChatTemplate
from align_jax.data.tokens import TextTokens, marker, unmarked
from align_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A prompt as tokens, and what its answers are joined to.

    Attributes:
      ids: int32 `[m]`, cut to `max_prompt_tokens`. cut: whether it was.
      text: what it was rendered as, control tokens in the data marked.
      whole: ids of `text`, nothing cut, without what the tokenizer puts before a text of its own.
      conversation: what a chat template rendered; None for plain text.
      changed: whether the template renders it otherwise when an answer follows, so that it is what both have in common.
      wholes: each answer of the example, with what the template renders of the conversation and it.
    """

    ids: np.ndarray
    cut: bool
    text: str
    whole: tuple[int, ...]
    conversation: Conversation | None = None
    changed: bool = False
    wholes: tuple[tuple[Sequence[Any], str], ...] = ()

    def known(self, answer: Sequence[Any]) -> str | None:
        """What was rendered of an answer already."""
        return next((whole for known, whole in self.wholes if known == answer), None)


@dataclasses.dataclass(frozen=True)
class Answer:
    """A response as tokens.

    Attributes:
      tokens: int32 `[n]`, its end included unless it was cut to `max_response_tokens`. cut: whether it was.
      scored: bool `[n]`, which of them are; None: all.
      merged: whether a token of prompt and answer together would have reached across their boundary.
    """

    tokens: np.ndarray
    cut: bool
    scored: np.ndarray | None = None
    merged: bool = False


class Encoder:
    """Turns prompts, beliefs and responses into the token ids that a model would have seen.

    Plain text: the prompt's ids are the tokenizer's own call on it; a response is what both together have more, and EOS. A
    conversation: ids are those of the chat template, from where the generation prompt ends to the end of the answer's turn.
    Where a token would reach across the boundary, the prompt keeps its ids, so that all its responses share them, and the
    response is encoded as a continuation. Control tokens that are written in a text stay text.

    Args:
      tokenizer: a transformers tokenizer with an end-of-sequence token.
      config: templates and lengths.
      vocab_size: of the model; a token beyond it is an error. None does not check.

    Raises:
      UserError: no end-of-sequence token, or `data.chat_template: always` with a tokenizer that has none.
    """

    def __init__(self, tokenizer: Any, config: DataConfig, vocab_size: int | None = None):
        self.tokenizer, self.config, self._vocab_size = tokenizer, config, vocab_size
        self.eos = tokenizer.eos_token_id
        if self.eos is None:
            raise UserError("the tokenizer has no end-of-sequence token, which ends every response")
        self.tokens = TextTokens(tokenizer, vocab_size)
        keep = config.control_tokens == "tokens"
        self.template = ChatTemplate(self.tokens, config.date, keep)
        if config.chat_template == "always" and not self.template.exists:
            raise UserError("data.chat_template is 'always', but the tokenizer has no chat template")
        self._chat = self.template.exists and config.chat_template != "never"
        self._mark = marker(() if keep else self.tokens.special)
        self._exclusive: set[tuple[str, ...]] = set()
        # Also before there are threads: what is found once about tokenizer and template.
        _ = self.tokens.continuation("a")

    def key(self) -> str:
        """A hash of all that decides the tokens of a text, with the day where a template may print it."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        vocabulary = backend.to_str() if backend is not None else repr(sorted(self.tokenizer.get_vocab().items()))
        template = str(getattr(self.tokenizer, "chat_template", None))
        parts = (vocabulary, template, self.tokens.prefix, self.eos, self.config.chat_template, self.template.day)
        # Boundaries came to be those of the joint text with version 2.
        return hashlib.sha256(repr(("boundaries 2", *parts)).encode()).hexdigest()

    def prompt(self, example: Example) -> Prompt:
        """The prompt of an example, the same for all its responses.

        Raises:
          RowError: no tokens, or a conversation that the chat template refuses.
        """
        conversation = self._conversation(example)
        if conversation is None:
            text, changed, wholes = self._plain(example), False, ()
        else:
            text, changed, wholes = self._begin(conversation, example)
        own = [] if conversation is not None else self.tokens.prefix
        whole = self.tokens.ids(text)
        if not own and not whole:
            raise RowError("field 'prompt' has no tokens")
        ids, cut = self._cut_prompt([*own, *whole], len(own) or int(whole[0] == self.tokenizer.bos_token_id))
        return Prompt(ids, cut, text, tuple(whole), conversation, changed, wholes)

    def answer(self, prompt: Prompt, response: Text, belief: tuple[int, str] | None = None) -> Answer:
        """A response to a prompt.

        Args:
          response: plain text, or the messages of a conversation.
          belief: number and words of the belief whose statement stands before it, as a part of it.
        """
        if belief is None:
            return self._cut(*self._joined(prompt, prompt.whole, prompt.text, response))
        first = self.belief(prompt, *belief)
        tokens, merged, scored = self._behind_belief(prompt, belief, first, response)
        scored = None if scored is None else np.concatenate([np.ones(len(first), bool), scored])
        return self._cut([*first.tolist(), *tokens], merged, scored)

    def belief(self, prompt: Prompt, number: int, words: str) -> np.ndarray:
        """Ids of a belief statement that begins an answer, int32 `[n]`, the same whatever follows."""
        added = self._belief_text(prompt, self._statement(number, words))[len(prompt.text) :]
        ids, _ = self.tokens.after(prompt.whole, prompt.text, added)
        if not ids:
            raise RowError(f"field 'options': the statement of belief {words!r} has no tokens")
        return np.asarray(ids, np.int32)

    def beliefs(self, prompt: Prompt, options: Sequence[str]) -> list[np.ndarray]:
        """Ids of the statements of all beliefs about a prompt.

        Raises:
          RowError: one begins with another, so that they are not exclusive and their probabilities add to more than one.
        """
        found = [self.belief(prompt, number, words) for number, words in enumerate(options)]
        for i, ids in enumerate(found):
            for k, other in enumerate(found):
                if i != k and other[: len(ids)].tolist() == ids.tolist():
                    raise RowError(
                        f"field 'options': the statement of {options[k]!r} begins with that of {options[i]!r}, so that the "
                        "beliefs are not exclusive; end statements with a mark, such as data.belief_template: "
                        f"'{self.config.belief_template.rstrip()}.' or '{{id}}<{{belief}}>'"
                    )
        return found

    def belief_part(self, prompt: Prompt, belief: tuple[int, str], ids: np.ndarray, template: str) -> np.ndarray:
        """The tokens of a belief statement, of all `ids`, that end within what a beginning of `belief_template` renders.

        Raises:
          RowError: no token ends within it.
        """
        number, words = belief
        part = template.format(id=number, belief=words)
        added = self._belief_text(prompt, part)[len(prompt.text) :]
        own, _ = self.tokens.after(prompt.whole, prompt.text, added)
        same = next((i for i, (a, b) in enumerate(zip(own, ids, strict=False)) if a != b), min(len(own), len(ids)))
        if not same:
            raise RowError(
                f"field 'options': the tokenizer joins {part!r} to what follows in {self._statement(number, words)!r}; change "
                f"data.belief_template ({self.config.belief_template!r})"
            )
        return ids[:same]

    def after_belief(self, prompt: Prompt, belief: tuple[int, str], ids: np.ndarray, response: Text) -> Answer:
        """A response behind the statement of a belief, whose `ids` are not part of it."""
        return self._cut(*self._behind_belief(prompt, belief, ids, response))

    def encode_response(self, prompt: Text, response: Text) -> tuple[np.ndarray, bool]:
        """Ids of a response, and whether it was cut: for arrangements of one's own from before `Arranger.segments` did this."""
        made = self.answer(self.prompt(Example(prompt, (response,))), response)
        return made.tokens, made.cut

    def sample(self, tokens: Sequence[int]) -> Answer:
        """A response that was sampled, with the ids that it was sampled as."""
        if self._vocab_size is not None and max(tokens) >= self._vocab_size:
            raise RowError(
                f"field 'tokens': the vocabulary ends at {self._vocab_size - 1}, got {max(tokens)}; data.format groups "
                "reads the texts instead"
            )
        return self._cut(list(tokens), False, None)

    def check(self, example: Example) -> bool:
        """RowError where an example cannot become tokens: what the chat template refuses or leaves out, ids that the vocabulary
        does not have, beliefs that are not exclusive. Texts are rendered, and hardly any is tokenized.

        Returns:
          As `Prompt.changed`.
        """
        for ids in example.tokens or ():
            self.sample(ids)
        if example.opinion is not None:
            self._check_exclusive(example.opinion.options)
        conversation = self._conversation(example)
        if conversation is None:
            return False
        text, changed, wholes = self._begin(conversation, example)
        for response, (answer, whole) in zip(example.responses, wholes, strict=False):  # none of samples
            self._check_begins(whole, text)
            self.template.check_answer(conversation, answer, whole[len(text) :])
            if self._parts(answer):
                self.template.spans(conversation, answer, whole)
            if answer[0]["role"] != "assistant":  # which may be all that is left of it once it is cut
                self.answer(self.prompt(example), response)
        return changed

    def _check_exclusive(self, options: tuple[str, ...]) -> None:
        """As `beliefs`, once for all rows with the same options."""
        if options not in self._exclusive:
            plain = Prompt(np.zeros(0, np.int32), False, "", ())
            self.beliefs(plain, options)
            self._exclusive.add(options)

    @property
    def renders(self) -> bool:
        """Whether there is a chat template that may refuse a row."""
        return self.template.exists

    @functools.cached_property
    def end_ids(self) -> tuple[int, ...]:
        """The tokens that end an answer: EOS, and what the chat template ends a turn with."""
        ids = {self.eos}
        if self._chat:
            # A template that refuses a question with its answer says so of every row.
            with contextlib.suppress(RowError):
                end = self.template.end_of_turn
                ids.update(self.tokens.ids(end)[-1:] if end.endswith(self.tokens.added) else ())
        return tuple(sorted(ids))

    def _conversation(self, example: Example) -> Conversation | None:
        """What a chat template renders; None where prompt and responses are plain text."""
        prompt = example.prompt
        messages = next((r for r in example.responses if not isinstance(r, str)), None)
        extras = example.tools is not None or example.documents is not None
        if isinstance(prompt, str) and not self._chat and messages is None and not extras:
            return None
        if isinstance(prompt, str):
            prompt = ({"role": "user", "content": self._plain_words(example)},)
        return Conversation(whole_texts(prompt), example.tools, example.documents)

    def _plain_words(self, example: Example, mark: Any = lambda text: text) -> str:
        words = {name: mark(getattr(example, name)) for name in ("prompt", "group", "context")}
        return self.config.prompt_template.format(**words)

    def _plain(self, example: Example) -> str:
        text, bos = self._plain_words(example, self._mark), self.tokenizer.bos_token
        if bos and self.tokens.prefix:  # some data sets write the beginning of the sequence out
            while text.startswith((bos, self._mark(bos))):
                text = text.removeprefix(bos).removeprefix(self._mark(bos))
        return text

    def _begin(self, conversation: Conversation, example: Example) -> tuple[str, bool, tuple[tuple[Any, str], ...]]:
        """As `Prompt.text`, `changed` and `wholes`."""
        given = example.responses if example.tokens is None else ()
        answers = [without_end(as_answer(response), self.tokenizer.eos_token) for response in given]
        firsts = {answer[0]["role"] for answer in answers}
        if len(firsts) > 1:
            raise RowError(f"the responses begin with messages of different roles: {', '.join(sorted(firsts))}")
        speaks = firsts != {"user"}
        start = self.template.prompt(conversation, answers=speaks)
        wholes = [self.template.whole(conversation, answer) for answer in answers]
        if all(whole.startswith(start) for whole in wholes):
            return start, False, tuple(zip(answers, wholes, strict=True))
        return self.template.shared(conversation, start, wholes), True, tuple(zip(answers, wholes, strict=True))

    def _whole(self, prompt: Prompt, answer: Sequence[Any]) -> str:
        whole = prompt.known(answer)
        whole = self.template.whole(prompt.conversation, answer) if whole is None else whole
        self._check_begins(whole, prompt.text)
        return whole

    def _check_begins(self, whole: str, text: str) -> None:
        if not whole.startswith(text):
            raise RowError(
                "the chat template renders the prompt otherwise before this answer: "
                f"{unmarked(whole[:200])!r} does not begin with {unmarked(text[:200])!r}"
            )

    def _behind_belief(
        self, prompt: Prompt, belief: tuple[int, str], ids: np.ndarray, response: Text
    ) -> tuple[list[int], bool, np.ndarray | None]:
        statement = self._statement(*belief)
        text = self._belief_text(prompt, statement)
        return self._joined(prompt, (*prompt.whole, *ids.tolist()), text, response, statement)

    def _joined(
        self, prompt: Prompt, before: Sequence[int], text: str, response: Text, statement: str = ""
    ) -> tuple[list[int], bool, np.ndarray | None]:
        """Ids behind `before`, whose text is `text`; whether a token would have merged; which of them are scored.

        Args:
          statement: of a belief, with which `text` ends and the answer of a conversation begins.
        """
        if prompt.conversation is None:
            if not isinstance(response, str):
                raise RowError("the response is a conversation, but the prompt is plain text")
            words = response.removesuffix(self.tokenizer.eos_token)  # some data sets write the end of the sequence out
            ids, merged = self.tokens.after(before, text, self._mark(words))
            return ids if ids[-1:] == [self.eos] else [*ids, self.eos], merged, None
        answer = stating(as_answer(response), statement)
        answer = without_end(answer, self.tokenizer.eos_token)
        whole = self._whole(prompt, answer)
        if not whole.startswith(text):  # a blank text, and a template that strips the statement
            whole = text + self.template.end_of_turn
        ids, merged = self.tokens.after(before, text, whole[len(text) :])
        scored = self._scored(prompt, answer, whole, len(ids)) if self._parts(answer) else None
        if ids and (ids[-1] in self._ends or ids[-1] in self.end_ids):
            return ids, merged, scored
        return [*ids, self.eos], merged, scored if scored is None else np.append(scored, True)

    @functools.cached_property
    def _ends(self) -> frozenset[int]:
        """The control tokens that a template may end a turn with."""
        others = (self.tokenizer.unk_token_id, self.tokenizer.bos_token_id, self.tokenizer.pad_token_id)
        return self.tokens.special_ids - {token for token in others if token != self.eos}

    def _parts(self, answer: Sequence[Any]) -> bool:
        """Whether an answer has words that are not the assistant's, and they are not scored."""
        return self.config.score == "assistant" and any(message["role"] != "assistant" for message in answer)

    def _scored(self, prompt: Prompt, answer: Sequence[Any], whole: str, count: int) -> np.ndarray:
        found, at = np.zeros(count, bool), len(prompt.whole)
        mask = self.template.assistant_mask(prompt.conversation, answer)
        whole_ids = [] if mask is None else self.tokens.ids(self.template.rendered(joined(prompt.conversation, answer)))
        if mask is not None and whole_ids[:at] == [*prompt.whole]:
            kept = np.asarray(mask[at : at + count], bool)
            found[: len(kept)] = kept
            return found
        for span in self.template.spans(prompt.conversation, answer, whole):
            begin, end = (self._tokens_before(prompt, whole, place) for place in span)
            found[begin:end] = True
        return found

    def _tokens_before(self, prompt: Prompt, whole: str, place: int) -> int:
        """How many tokens of an answer end before a place in what is rendered, without one that reaches across it."""
        all_ids, _ = self.tokens.after(prompt.whole, prompt.text, whole[len(prompt.text) :])
        ids, _ = self.tokens.after(prompt.whole, prompt.text, whole[len(prompt.text) : place])
        both = enumerate(zip(all_ids, ids, strict=False))
        same = next((i for i, (a, b) in both if a != b), min(len(ids), len(all_ids)))
        behind = len(self._decoded(ids[same:]))
        more = range(same + 1, len(all_ids) + 1) if behind else ()
        return max(itertools.takewhile(lambda n: len(self._decoded(all_ids[same:n])) <= behind, more), default=same)

    def _decoded(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)

    def _statement(self, number: int, words: str) -> str:
        return self.config.belief_template.format(id=number, belief=words)

    def _belief_text(self, prompt: Prompt, statement: str) -> str:
        """Prompt and belief statement as they are rendered, whatever follows."""
        if prompt.conversation is None:
            return prompt.text + self._mark(statement)
        behind = "\ufdd3"
        whole = self._whole(prompt, stating(as_answer(behind), statement))
        return whole[: whole.rindex(behind)]

    def _cut(self, tokens: list[int], merged: bool, scored: np.ndarray | None) -> Answer:
        most = self.config.max_response_tokens
        kept = None if scored is None else scored[:most]
        if kept is not None and not kept.any():
            raise RowError(
                f"a response begins with words that are not the assistant's, and cut to {most} tokens nothing else is left of "
                "it; raise data.max_response_tokens"
            )
        return Answer(np.asarray(tokens[:most], np.int32), len(tokens) > most, kept, merged)

    def _cut_prompt(self, ids: list[int], head: int) -> tuple[np.ndarray, bool]:
        most = self.config.max_prompt_tokens
        if len(ids) <= most:
            return np.asarray(ids, np.int32), False
        if self.config.truncate_prompt == "right":
            return np.asarray(ids[:most], np.int32), True
        first = ids[:head]
        return np.asarray([*first, *ids[len(ids) - most + len(first) :]][-most:], np.int32), True


def plain_key(example: Example) -> str:
    """What makes two rows rows of the same prompt: prompt, context, group and, where it has them, the options."""
    options = example.opinion.options if example.opinion is not None else None
    extras = tuple(e for e in (example.tools, example.documents) if e is not None)
    return repr((example.prompt, example.context, example.group, options, *extras))
