"""Inputs as strangers might write them: what is well formed, with one thing or a few changed into something hostile."""

from __future__ import annotations

import copy
import json
import struct
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

DEEP = 400  # json and yaml write no deeper ones


def nested(depth: int, of: type = list) -> Any:
    """Lists or objects in one another."""
    value: Any = 1
    for _ in range(depth):
        value = [value] if of is list else {"a": value}
    return value


TEXTS = st.sampled_from([
    "", " ", "\0", "a\0b", "../../x", "/etc/passwd", "~", "..", ".", "\n", "a" * 5000, "9" * 400, "1e999", "nan", "null",
    "{prompt", "{prompt:d}", "{prompt.__class__}", "{prompt[0]}", "{0}", "{}", "${", "${oc.env:NOT_SET}", "${a.b}", "${model}",
    "${run.dir}", "${oc.env:HOME}", "${oc.decode:'[1'}", "\\${x}", "\ufdd0", "\ufdd0</s>\ufdd1", "</s>", "<s>", "\u200b", "é",
    "@", "💥",
    "builtins:exec", "os:system", "align_jax.nothing:X", ":", "a:b:c", "auto", "float32", "http://", "https://[::1", "a@b",
    "dpo", "gdpo", "null/null", "%s%n", "2020-01-01", "True", "inf", "-1", "0", "1" * 4500,
])  # fmt: skip
NUMBERS = st.sampled_from([
    *(0, -1, 1, 2, 3, 7, 255, 256, 2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**63, 2**64, 10**9, 10**30, 10**400, -(10**30)),
    *(0.0, -0.0, 0.5, 1.0, 1e-30, 5e-324, 1e12, 3e38, 3.4e39, 1e308, float("inf"), -float("inf"), float("nan"), 1e9, 1.5),
])  # fmt: skip
CONTAINERS = st.sampled_from([
    *([], {}, [[]], [{}], {"": 1}, {"a": 1}, [1, "a", None], [None], {"name": "dpo"}, [{"name": "dpo"}], {"path": 1}),
    *([{"role": "user"}], [{"role": "user", "content": "q"}], [{"role": "assistant", "content": "a"}]),
    *([{"role": 1, "content": 2}], [{"content": "q"}]),
    *(nested(DEEP), nested(DEEP, dict), nested(90), list(range(2000)), {"name": ["dpo"]}, {"weight": -1}, {"limit": 0}),
])  # fmt: skip
JUNK = st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS, CONTAINERS, st.text(max_size=12))


def places(value: Any, at: tuple = ()) -> Iterator[tuple]:
    """The path of everything in a tree, itself first."""
    yield at
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in pairs:
        yield from places(inner, (*at, key))


@st.composite
def changed(draw: Any, value: Any, most: int = 3) -> Any:
    """A tree in which up to `most` places were replaced, taken out, or given something beside them."""
    made = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, most))):
        at = draw(st.sampled_from([place for place in places(made) if len(place) < 8]))
        how = draw(st.sampled_from(["replace", "replace", "remove", "add"]))
        junk = copy.deepcopy(draw(JUNK))
        if not at:
            if how == "add" and isinstance(made, dict):
                made[draw(TEXTS)] = junk
            elif draw(st.integers(0, 9)) == 0:
                made = junk
            continue
        parent = made
        for key in at[:-1]:
            parent = parent[key]
        if how == "remove":
            del parent[at[-1]]
        elif how == "add" and isinstance(parent[at[-1]], dict):
            parent[at[-1]][draw(TEXTS)] = junk
        elif how == "add" and isinstance(parent[at[-1]], list):
            parent[at[-1]].append(junk)
        else:
            parent[at[-1]] = junk
    return made


def spelled(value: Any) -> str:
    """JSON, also of what JSON has no word for."""
    return json.dumps(value)


@st.composite
def damaged(draw: Any, data: bytes) -> bytes:
    """Bytes of which a few were changed, taken out or put in, or the end cut off."""
    made = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(made) - 1)))
        how = draw(st.sampled_from(["change", "cut", "insert", "open"]))
        if how == "cut":
            del made[at:]
        elif how == "change" and made:
            made[at] = draw(st.integers(0, 255))
        else:
            few = st.sampled_from([b"\0", b"\xff\xfe", b"{", b"}", b"&a [*a]", b"9" * 5000])
            made[at:at] = b"[" * 3000 if how == "open" else draw(few)
    return bytes(made)


def safetensors_of(header: Any, data: bytes, length: int | None = None) -> bytes:
    """A file in safetensors format: the header's length (or another one that is claimed), the header, the data."""
    text = (spelled(header) if not isinstance(header, str) else header).encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(text) if length is None else length) + text + data
