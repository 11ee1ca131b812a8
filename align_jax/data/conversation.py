"""Conversations: what is said before an answer, and answers as messages."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from align_jax.data.formats.example import Text
from align_jax.data.formats.messages import words
from align_jax.parsing import json_of

Message = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Conversation:
    """What is said before the answer, and what else a template may print.

    Attributes:
      messages: with `role`, and `content` or `tool_calls`. tools, documents: what the template prints besides; None: nothing.
    """

    messages: tuple[Message, ...]
    tools: tuple | None = None
    documents: tuple | None = None


def as_answer(response: Text) -> tuple[Any, ...]:
    """The messages of a response; plain text is what the assistant said."""
    return ({"role": "assistant", "content": response},) if isinstance(response, str) else whole_texts(response)


def whole_texts(messages: Sequence[Message]) -> tuple[Message, ...]:
    """Messages whose content, where it is a list of texts, is one text."""
    return tuple({**m, "content": words(m)} if isinstance(m.get("content"), list | tuple) else m for m in messages)


def joined(conversation: Conversation, answer: Sequence[Message]) -> Conversation:
    """The conversation with an answer, which continues a turn that the assistant has begun."""
    messages, answer = list(conversation.messages), list(answer)
    if answer and messages[-1]["role"] == answer[0]["role"] == "assistant":
        content = words(messages[-1]) + words(answer[0])
        messages[-1:], answer = [{**messages[-1], **answer[0], "content": content}], answer[1:]
    return dataclasses.replace(conversation, messages=(*messages, *answer))


def stating(answer: Sequence[Any], statement: str) -> tuple[Any, ...]:
    """An answer that begins with a statement."""
    if not statement:
        return tuple(answer)
    return ({**answer[0], "content": statement + (answer[0].get("content") or "")}, *answer[1:])


def without_end(answer: Sequence[Any], end: str) -> tuple[Any, ...]:
    """An answer without the end of the sequence, which some data sets write out."""
    content = answer[-1].get("content")
    if not isinstance(content, str) or not content.endswith(end):
        return tuple(answer)
    return (*answer[:-1], {**answer[-1], "content": content.removesuffix(end)})


def for_template(message: Message) -> dict[str, Any]:
    """A message as templates expect it: the arguments of calls are objects, not JSON text."""
    if not message.get("tool_calls"):
        return dict(message)
    return {**message, "tool_calls": [_parsed(call) for call in message["tool_calls"]]}


def _parsed(call: Any) -> Any:
    if not isinstance(call, Mapping):
        return call
    if isinstance(call.get("function"), Mapping):
        return {**call, "function": _parsed(call["function"])}
    arguments = call.get("arguments")
    try:
        read = json_of(arguments) if isinstance(arguments, str) else None
    except ValueError:
        read = None
    return {**call, "arguments": read} if isinstance(read, dict) else call


def renamed(call: Any, name: str) -> Any:
    """A call of a tool, with another name."""
    if isinstance(call, Mapping) and isinstance(call.get("function"), Mapping):
        return {**call, "function": renamed(call["function"], name)}
    return {**call, "name": name} if isinstance(call, Mapping) else call


def each_text(value: Any, change: Callable[[str], str]) -> Any:
    """A nested value with every text changed; roles stay."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {key: item if key == "role" else each_text(item, change) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [each_text(item, change) for item in value]
    return value
