"""Text that strangers wrote, as values: JSON and YAML with a depth and a size, so that no file can hang or end a job."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import yaml

DEPTH = 100  # of lists and objects in one another; json and copies of values recurse
NODES = 100_000  # of a YAML text, what its aliases stand for counted each time
_DIGITS = 400  # of a whole number: no float holds more


def json_of(text: str | bytes, pairs: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """The value of a JSON text.

    Args:
      text: UTF-8. pairs: as `object_pairs_hook` of the json module.

    Raises:
      ValueError: no JSON, lists or objects that are too deep in one another, a whole number of hundreds of digits; what `pairs`
        raises.
    """
    try:
        value = json.loads(text, object_pairs_hook=pairs)
    except RecursionError:
        raise ValueError(_too_deep()) from None
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 text: {error.reason} at byte {error.start}") from None
    except ValueError as error:
        if "integer string conversion" in str(error):
            raise ValueError(f"a whole number of more than {_DIGITS} digits") from None
        raise
    brackets = text.count("[") + text.count("{") if isinstance(text, str) else text.count(b"[") + text.count(b"{")
    if brackets > DEPTH:
        _check_depth(value)
    return value


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(DEPTH + 1):
        level = [inner for each in level if isinstance(each, list | dict) for inner in _inside(each)]
        if not level:
            return
    raise ValueError(_too_deep())


def _inside(value: list | dict) -> list:
    return list(value.values()) if isinstance(value, dict) else value


def _too_deep() -> str:
    return f"lists or objects too deep in one another; at most {DEPTH} may be"


def check_yaml(text: str) -> None:
    """Whether a YAML text may be read: nothing in it recurses or grows without end.

    Raises:
      ValueError: lists or keys too deep in one another, aliases that stand for too much, a whole number of hundreds of digits;
        begins with the line, `12: `. What is no YAML at all is a `yaml.YAMLError`.
    """
    sizes: dict[str, int] = {}  # of what has an anchor, once it is complete
    open_: list[list[Any]] = []  # of every list or mapping that is not closed: its anchor, and its size so far
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        line = event.start_mark.line + 1
        if isinstance(event, yaml.CollectionStartEvent):
            open_.append([event.anchor, 1])
            if len(open_) > DEPTH:
                raise ValueError(f"{line}: lists or keys too deep in one another; at most {DEPTH} may be")
            continue
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in sizes:
                raise ValueError(f"{line}: the alias *{event.anchor} stands in what it names, or for nothing")
            size = sizes[event.anchor]
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, size = open_.pop()
            sizes |= {anchor: size} if anchor else {}
        elif isinstance(event, yaml.ScalarEvent):
            if len(event.value) > _DIGITS and event.implicit[0] and re.fullmatch(r"[-+]?[\d_]+", event.value):
                raise ValueError(f"{line}: a whole number of {len(event.value)} digits; at most {_DIGITS} may be")
            size = 1
            sizes |= {event.anchor: 1} if event.anchor else {}
        else:
            continue
        if open_:
            open_[-1][1] += size
        if size > NODES or (open_ and open_[-1][1] > NODES):
            raise ValueError(f"{line}: aliases (*) stand for more than {NODES:,} values")


def broken(text: str) -> str | None:
    """What no path and no file of text can hold, in words; None of any other text."""
    if "\0" in text:
        return "holds the character NUL, which no path and no command has"
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return f"holds half a character (\\u{ord(text[error.start]):04x})"
    return None
