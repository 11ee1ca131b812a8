"""Conversations of a row: messages as chat templates take them, whatever layout they are written in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from align_jax.data.formats.example import Text
from align_jax.data.sources import RowError
from align_jax.data.sources.plain import parsed

# ShareGPT's words for who speaks
_ROLES = {
    **{"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant", "bard": "assistant"},
    **{"function_call": "assistant", "observation": "tool", "function_response": "tool"},
}
# Where no template looks for an assistant's words
_NOT_CONTENT = ("text", "value", "message", "response", "answer", "output", "completion")
# What an assistant may give in place of words
_INSTEAD = ("tool_calls", "reasoning_content", "thinking", "function_call")


def conversation(value: Any, name: str) -> tuple[Mapping[str, Any], ...]:
    """A list of messages, each whole: `role`, `content`, and what else it has a value for.

    Args:
      value: list of messages with `role` and `content`, or with ShareGPT's `from` and `value`. name: its field, for errors.

    Raises:
      RowError: a message without a role, or whose content is neither text nor made of text.
    """
    messages = list(value)
    if not messages:
        raise RowError(f"field {name!r}: expected text or a list of messages, got an empty list")
    return tuple(_message(message, f"{name}[{i}]") for i, message in enumerate(messages))


def short(value: Any) -> str:
    """A value for an error, cut to a line."""
    spelled = repr(value)
    return spelled if len(spelled) < 60 else spelled[:57] + "..."


def _message(message: Any, name: str) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise RowError(f"field {name!r}: a message needs 'role' and 'content', got {short(message)}")
    if message.get("role") is None and message.get("from") is not None:
        message = {"role": message["from"], "content": message.get("value")} | _rest(message, "from", "value")
    role = message.get("role")
    if not isinstance(role, str) or not role.strip():
        raise RowError(f"field {name!r}: a message needs text in 'role' and 'content', got {short(dict(message))}")
    found = {"role": _role(role.strip())}
    content = _content(message.get("content"), name)
    more = _rest(message, "role", "content")
    if "tool_calls" in more:  # which may be JSON text
        more["tool_calls"] = objects(more["tool_calls"], f"{name}.tool_calls")
    more = {key: value for key, value in more.items() if value is not None and value != []}
    if content is None and not any(more.get(key) for key in _INSTEAD):
        if found["role"] != "assistant":
            raise RowError(f"field {name!r}: a message needs text in 'role' and 'content', got {short(dict(message))}")
        if found_in := next((key for key in _NOT_CONTENT if isinstance(more.get(key), str) and more[key].strip()), None):
            raise RowError(
                f"field {name!r}: a message needs text in 'content', and this one has it in {found_in!r}: "
                f"{short(dict(message))}"
            )
        content = ""  # an empty answer
    return found | ({} if content is None else {"content": content}) | more


def _role(name: str) -> str:
    """The word that chat templates know, where it is another spelling of one."""
    plain = name.lower()
    return _ROLES.get(plain) or (plain if plain in ("system", "user", "assistant", "tool") else name)


def _rest(message: Mapping, *read: str) -> dict[str, Any]:
    return {key: value for key, value in message.items() if key not in read and value is not None}


def _content(value: Any, name: str) -> str | None:
    """The text of a content; parts are joined, since most templates print what they are given."""
    if value is None or isinstance(value, str):
        return value
    if not isinstance(value, list | tuple):
        raise RowError(f"field {name!r}: a message needs text in 'role' and 'content', got {short(value)}")
    for part in value:
        kind = (part.get("type") or "text") if isinstance(part, Mapping) else type(part).__name__
        if kind != "text" or not isinstance(part.get("text"), str):
            raise RowError(f"field {name!r}: its content has a part of type {kind!r}; only text is read: {short(part)}")
    return "".join(part["text"] for part in value)


def listed(value: Any) -> Any:
    """A list of objects where `datasets` made lists of their fields of it (a `Sequence` of structs); else the value."""
    if not isinstance(value, Mapping) or not value or not all(isinstance(column, list | tuple) for column in value.values()):
        return value
    if len({len(column) for column in value.values()}) > 1:
        return value
    return [dict(zip(value, fields, strict=True)) for fields in zip(*value.values(), strict=True)]


def objects(value: Any, name: str) -> list[dict[str, Any]] | None:
    """A list of objects, or JSON text of one; each may be JSON text itself. None where it is empty.

    Raises:
      RowError: anything else.
    """
    found = _parsed(value, name) if isinstance(value, str) else value
    if not found:
        return None
    if not isinstance(found, list | tuple):
        raise RowError(f"field {name!r}: expected a list of objects, or JSON text of one, got {short(value)}")
    items = [_parsed(item, name) if isinstance(item, str) else item for item in found]
    for item in items:
        if not isinstance(item, Mapping):
            raise RowError(f"field {name!r}: expected a list of objects, or JSON text of one; it has {short(item)}")
    return items


def _parsed(text: str, name: str) -> Any:
    if not text.strip():
        return None
    try:
        return parsed(text)
    except RowError as error:
        raise RowError(f"field {name!r}: {error}") from error
    except ValueError as error:
        raise RowError(f"field {name!r}: expected a list of objects, or JSON text of one, got {short(text)}") from error


def words(message: Mapping[str, Any]) -> str:
    """The text of a message's content, the parts of one that was not read from a row joined."""
    content = message.get("content") or ""
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def is_empty(response: Text) -> bool:
    """Whether an answer says nothing: blank text, or messages with no words, no calls of tools and no thoughts."""
    if isinstance(response, str):
        return not response.strip()
    return not any(words(message).strip() or any(message.get(key) for key in _INSTEAD) for message in response)


def last_answer(messages: tuple[Mapping[str, Any], ...], name: str) -> tuple[Text, Text]:
    """The last turn of the assistant, and all that stands before it.

    Raises:
      RowError: another one has the last word, or the assistant alone speaks.
    """
    if messages[-1]["role"] != "assistant":
        raise RowError(f"field {name!r}: the last message must be the assistant's, not of {messages[-1]['role']!r}")
    if len(messages) < 2:
        raise RowError(f"field {name!r}: the assistant's message is the only one; nothing that it answers stands before it")
    return messages[:-1], messages[-1:]


def answered(messages: tuple[Mapping[str, Any], ...], name: str) -> tuple[Text, Text]:
    """All turns from the assistant's first one that answers somebody, as one answer, and what stands before it.

    Raises:
      RowError: another one has the last word, or the assistant alone speaks.
    """
    last_answer(messages, name)
    speaks = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    asked = next((i for i, message in enumerate(messages) if message["role"] not in ("assistant", "system")), len(messages))
    first = next((i for i in speaks if i > asked), speaks[-1])
    return messages[:first], messages[first:]


def with_system(prompt: Text, system: str) -> Text:
    """The prompt as a conversation that a system turn opens.

    Raises:
      RowError: it has another one.
    """
    first = {"role": "system", "content": system}
    messages = ({"role": "user", "content": prompt},) if isinstance(prompt, str) else prompt
    if messages[0]["role"] != "system":
        return (first, *messages)
    if words(messages[0]).strip() != system.strip():
        raise RowError(f"field 'system': the conversation has another system turn, {short(words(messages[0]))}")
    return messages
