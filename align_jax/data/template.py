"""Conversations as the text that a chat template makes of them, and where in it the assistant's words begin and end."""

from __future__ import annotations

import dataclasses
import datetime
import functools
import json
import os
import re
from collections.abc import Sequence
from typing import Any

from align_jax.data.conversation import Conversation, Message, each_text, for_template, joined, renamed
from align_jax.data.formats.messages import words
from align_jax.data.guarded import SECONDS, TooMuch, bounded, check_template
from align_jax.data.sources import RowError
from align_jax.data.tokens import TextTokens, is_marked, marker, unmarked

# The answer of a conversation that is rendered to see what a template does; no template changes it.
_STAND_IN = "\ufdd2answer\ufdd2"
# transformers lets no function in but its own, which is today's.
_DAY = (
    "{% macro strftime_now(format) %}{% if format not in day_formats %}{{ raise_exception('strftime_now: a format that is not "
    "written out in the template: ' ~ format) }}{% endif %}{{ day_formats[format] }}{% endmacro %}{{ '' }}"
)
_THOUGHT = re.compile(r"[<\[|][^<>\[\]]*think", re.IGNORECASE)  # what opens one


class ChatTemplate:
    """A tokenizer's chat template.

    Args:
      tokens: its tokenizer. date: the day, `YYYY-MM-DD`, that the template prints where it prints one.
      keep_control: let control tokens that are written in messages be control tokens.

    Attributes:
      exists: whether the tokenizer has one.
    """

    def __init__(self, tokens: TextTokens, date: str | None = None, keep_control: bool = False):
        self._tokens, self._tokenizer, self._date = tokens, tokens.tokenizer, date
        template = getattr(self._tokenizer, "chat_template", None)
        self.exists = template is not None
        written = json.dumps(template, ensure_ascii=False) if self.exists else ""
        for text in template.values() if isinstance(template, dict) else [template] if self.exists else ():
            check_template(text)
        self._marks_generation = re.search(r"\{%-?\s*generation\s*-?%\}", written) is not None
        self._knows = {name: name in written for name in ("tools", "documents", "strftime_now")}
        # An assistant may write what opens and closes a thought or a call; what opens and closes a turn is the template's.
        self._mark = marker(() if keep_control else tokens.special)
        self._mark_others = marker(() if keep_control else (*tokens.special, *tokens.added_in(written)))

    @property
    def day(self) -> str | None:
        """The day that the template may print; None where it prints none."""
        return (self._date or datetime.date.today().isoformat()) if self._knows["strftime_now"] else None

    def prompt(self, conversation: Conversation, answers: bool = True) -> str:
        """The rendered prompt, up to where an answer begins.

        Args:
          answers: False: what follows begins with the user's words, so that there is no header of the assistant.
        """
        last = conversation.messages[-1]
        if last["role"] == "assistant" and answers:
            text = self.rendered(conversation, continue_final_message=True)
        else:
            text = self.rendered(conversation, add_generation_prompt=answers)
        self._check_said(conversation, text)
        return text

    def whole(self, conversation: Conversation, answer: Sequence[Message]) -> str:
        """The conversation with its answer, as rendered, up to the end of the answer's last turn."""
        text = self.rendered(joined(conversation, answer))
        tail, end = self._tail
        if tail and text.endswith(tail):
            return text[: len(text) - len(tail)] + end
        return self._cut_behind_control(text)

    def shared(self, conversation: Conversation, start: str, wholes: Sequence[str]) -> str:
        """The beginning that a prompt has with and without its answers: for templates that render it otherwise then.

        Args:
          start: the prompt alone, as rendered. wholes: it with each of its answers.

        Raises:
          RowError: the template changes what was said before the answer.
        """
        common = self._whole_tokens(start, os.path.commonprefix([start, *wholes]))
        if not common.startswith(self._needed(conversation, start)):
            other = next(whole for whole in wholes if not whole.startswith(start))
            at = len(os.path.commonprefix([start, other]))
            raise RowError(
                "the chat template does not render this conversation as prompt + answer: with the answer it prints "
                f"{_excerpt(other, at)} where the prompt alone has {_excerpt(start, at)}; give another template "
                "(model.chat_template), or set data.chat_template to never where prompts are plain text"
            )
        return common

    def _needed(self, conversation: Conversation, start: str) -> str:
        """What every answer must stand behind: what was said, and the header of its turn up to where a thought is opened."""
        if conversation.messages[-1]["role"] == "assistant":
            said = words(conversation.messages[-1]).strip()
            return start[: start.rindex(said) + len(said)] if said and said in start else start
        said = self.rendered(conversation)
        whole = self.rendered(joined(conversation, ({"role": "assistant", "content": _STAND_IN},)))
        before = whole[: whole.index(_STAND_IN)] if _STAND_IN in whole else start
        at = len(os.path.commonprefix([said, before]))
        thought = _THOUGHT.search(before, at)
        return before[: thought.start()] if thought else before

    def spans(self, conversation: Conversation, answer: Sequence[Message], whole: str) -> list[tuple[int, int]]:
        """Where in the rendered whole the assistant's turns of an answer stand, their end-of-turn tokens included.

        Raises:
          RowError: the template renders the beginning of the answer otherwise once more follows.
        """
        found = []
        for i, message in enumerate(answer):
            if message["role"] != "assistant":
                continue
            before, with_it = joined(conversation, answer[:i]), joined(conversation, answer[: i + 1])
            begun = self.rendered(before, continue_final_message=True) if _continues(conversation, answer, i) else None
            start = self.rendered(before, add_generation_prompt=True) if begun is None else begun
            begin = len(self._whole_tokens(start, os.path.commonprefix([start, whole])))
            through = self.whole(before, (message,)) if i + 1 < len(answer) else whole
            end = len(os.path.commonprefix([through, whole]))
            if end < len(through):  # an earlier turn is rendered otherwise than the last one: to its own end of turn
                end = self._end_of_turn(whole, begin)
            if end <= begin:
                raise RowError(
                    f"message {len(with_it.messages) - 1}: its words cannot be found in what the chat template renders, so "
                    "that they cannot be scored alone; data.score: all scores every word of the answer"
                )
            found.append((begin, end))
        return found

    def assistant_mask(self, conversation: Conversation, answer: Sequence[Message]) -> list[int] | None:
        """Whether the template marks each token of the rendered conversation as the assistant's; None: it has no marks."""
        if not self._marks_generation or is_marked(self.rendered(joined(conversation, answer))):
            return None  # transformers marks the ids of the text as it is given, control tokens in it included
        flags = {"return_assistant_tokens_mask": True, "return_dict": True, "tokenize": True}
        made = joined(conversation, answer)
        return self._apply(made.messages, made.tools, made.documents, flags)["assistant_masks"]

    @property
    def end_of_turn(self) -> str:
        """What the template ends an answer with: a control token, and what stands before it; empty where there is none."""
        return self._tail[1] if self.exists else ""

    def rendered(self, conversation: Conversation, **flags: bool) -> str:
        """What the template prints; control tokens in what was said are marked.

        Raises:
          RowError: the template refuses it, or there is none.
        """
        messages = [each_text(m, self._mark if m["role"] == "assistant" else self._mark_others) for m in conversation.messages]
        tools, documents = (each_text(extra, self._mark_others) for extra in (conversation.tools, conversation.documents))
        return self._apply(messages, tools, documents, {"tokenize": False, **flags})

    def _apply(self, messages: Sequence[Message], tools: Any, documents: Any, flags: dict[str, bool]) -> Any:
        if not self.exists:
            raise RowError(
                "the data holds conversations (messages, or a column `system`, `tools` or `documents`), but the tokenizer has "
                "no chat template; give a file of one as model.chat_template, or use plain text"
            )
        extras = {name: list(value) for name, value in (("tools", tools), ("documents", documents)) if value}
        try:
            more = self._on_the_day(extras.get("tools"))
            with bounded():
                return self._tokenizer.apply_chat_template([for_template(m) for m in messages], **extras, **flags, **more)
        except TooMuch as error:
            raise RowError(
                f"the chat template does not end with this conversation: after {SECONDS:g} s, or 1 GiB of memory, it was "
                "stopped; give another template (model.chat_template)"
            ) from error
        except Exception as error:  # a template may raise whatever Python does
            reason = unmarked(str(error)) or type(error).__name__
            raise RowError(f"the chat template refuses this conversation: {reason}") from error

    def _on_the_day(self, tools: Any) -> dict[str, Any]:
        """What makes the template print the day that was given, where it prints today's."""
        if self._date is None or not self._knows["strftime_now"]:
            return {}
        template, day = self._tokenizer.get_chat_template(None, tools), datetime.datetime.fromisoformat(self._date)
        formats = {a or b for a, b in re.findall(r"'([^'{}]*%[^'{}]*)'|\"([^\"{}]*%[^\"{}]*)\"", template)}
        return {"chat_template": _DAY + template, "day_formats": {form: day.strftime(form) for form in formats}}

    @functools.cached_property
    def _tail(self) -> tuple[str, str]:
        """What the template prints behind an answer, and how much of that ends the answer's turn."""
        question = Conversation(({"role": "user", "content": "question"},))
        start, asked = self.rendered(question), self.rendered(question, add_generation_prompt=True)
        text = self.rendered(joined(question, ({"role": "assistant", "content": _STAND_IN},)))
        tail = text[text.rindex(_STAND_IN) + len(_STAND_IN) :] if _STAND_IN in text else ""
        at, always_a_header = self._control(tail), start == asked
        if at is None:
            return tail, "" if always_a_header else tail.rstrip()
        end, token = at
        opens_a_turn = always_a_header and token != self._tokenizer.eos_token and token in text[: text.find("question")]
        return tail, "" if opens_a_turn else tail[:end]

    def _control(self, text: str) -> tuple[int, str] | None:
        """Where the first control token of a text ends, and the token."""
        places = ((text.find(token), -len(token), token) for token in self._tokens.added if token in text)
        place = min(places, default=None)
        return None if place is None else (place[0] + len(place[2]), place[2])

    def _end_of_turn(self, text: str, begin: int) -> int:
        end = self.end_of_turn
        place = text.find(end, begin) if end else -1
        return place + len(end) if place >= 0 else 0

    def _cut_behind_control(self, text: str) -> str:
        """The text without blanks behind its last control token."""
        stripped = text.rstrip()
        return stripped if any(stripped.endswith(token) for token in self._tokens.added) else text

    def _whole_tokens(self, text: str, beginning: str) -> str:
        """A beginning of a text, cut back to where it ends inside no control token."""
        for token in self._tokens.added:
            for length in range(1, len(token)):
                at = len(beginning) - length
                if at >= 0 and text.startswith(token, at) and len(beginning) < at + len(token):
                    return self._whole_tokens(text, beginning[:at])
        return beginning

    def check_answer(self, conversation: Conversation, answer: Sequence[Message], added: str) -> None:
        """RowError where the template leaves out the words, the thoughts or the calls of an answer.

        Args:
          added: what it prints behind the prompt.
        """
        said, last = unmarked(added), answer[-1]
        pieces = {"its words": last.get("content"), "its reasoning_content": last.get("reasoning_content")}
        for what, text in pieces.items():
            for piece in re.split(r"</?think>", text) if isinstance(text, str) else ():
                if unmarked(piece).strip() not in said:
                    missing = unmarked(piece).strip()
                    raise RowError(
                        f"the chat template leaves out {what}: {_excerpt(missing, 0)} is in the answer, and not in what the "
                        "model would be trained on; give a template that prints it (model.chat_template), or take it out of "
                        "the data"
                    )
        self._check_calls(conversation, answer)
        self._check_printed(conversation, answer)

    def _check_printed(self, conversation: Conversation, answer: Sequence[Message]) -> None:
        """RowError where what another than user or system said is not printed: other words are looked for in its place."""
        messages, marked = joined(conversation, answer).messages, {}
        changed = list(messages)
        for i, message in enumerate(messages[:-1]):
            if message["role"] not in ("user", "system") and words(message).strip():
                marked[i] = f"{_STAND_IN}{i}{_STAND_IN}"
                changed[i] = {**message, "content": marked[i]}
        if not marked:
            return
        try:
            text = self.rendered(dataclasses.replace(conversation, messages=tuple(changed)))
        except RowError:
            return  # a template that reads what tools answer
        for i, words_of in marked.items():
            if words_of not in text:
                role, said = messages[i]["role"], words(messages[i])[:40]
                raise RowError(f"the chat template leaves out message {i}, of the {role}: {said!r}")

    def _check_said(self, conversation: Conversation, text: str) -> None:
        """RowError where the template leaves out what was said, or what it was given besides."""
        plain = unmarked(text)
        for i, message in enumerate(conversation.messages):
            content = message.get("content")
            content = unmarked(content).strip() if isinstance(content, str) else ""
            if message["role"] in ("user", "system") and content not in plain:
                raise RowError(f"the chat template leaves out message {i}, of the {message['role']}: {content[:40]!r}")
        self._check_calls(conversation, ())
        for name, given in (("tools", conversation.tools), ("documents", conversation.documents)):
            if given and not self._knows[name]:
                raise RowError(
                    f"field {name!r}: the chat template prints none; give one that does (model.chat_template), or leave them "
                    "out"
                )

    def _check_calls(self, conversation: Conversation, answer: Sequence[Message]) -> None:
        """RowError where a call of a tool is not printed: one of another name is looked for in its place."""
        for messages, first in ((conversation.messages, 0), (answer, len(conversation.messages))):
            for i, message in enumerate(messages):
                if not message.get("tool_calls"):
                    continue
                named = {**message, "tool_calls": [renamed(call, _STAND_IN) for call in message["tool_calls"]]}
                changed = [*messages[:i], named, *messages[i + 1 :]]
                if messages is answer:
                    text = self.rendered(joined(conversation, changed))
                else:
                    text = self.rendered(dataclasses.replace(conversation, messages=tuple(changed)))
                if text.count(_STAND_IN) < len(message["tool_calls"]):
                    raise RowError(
                        f"message {first + i}: the chat template leaves out its tool call; give a template that prints tool "
                        "calls (model.chat_template)"
                    )


def _continues(conversation: Conversation, answer: Sequence[Message], at: int) -> bool:
    """Whether a message of an answer goes on with a turn of the prompt."""
    return at == 0 and conversation.messages[-1]["role"] == "assistant"


def _excerpt(text: str, at: int) -> str:
    return repr(unmarked(text)[at : at + 24])
