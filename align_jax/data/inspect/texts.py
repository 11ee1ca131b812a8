"""What can be told from a text without a model: its words, a sketch for near-duplicates, what it shares with its prompt."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

# Of the sketch: texts with a Jaccard similarity of 0.9 share a band with probability 0.99, of 0.5 with 0.23.
BANDS, _ROWS = 4, 4
_SHINGLE = 3  # words
_EDGE = 30  # words of a beginning or an ending
_WORD = re.compile(r"\w+|[^\w\s]")
_CONTENT = re.compile(r"[^\W_]{4,}|[\u3040-\u30ff\u4e00-\u9fff]")  # long words; of scripts without spaces every sign
_draw = np.random.default_rng(0)
_FACTORS = _draw.integers(1, 1 << 63, BANDS * _ROWS, dtype=np.uint64) | np.uint64(1)
_SHIFTS = _draw.integers(0, 1 << 63, BANDS * _ROWS, dtype=np.uint64)
_MIX = _draw.integers(1, 1 << 63, 64, dtype=np.uint64) | np.uint64(1)


def plain(text: Any) -> str:
    """A text, or all that is said in a conversation, tool calls as JSON."""
    if isinstance(text, str):
        return text
    return "\n".join(part for message in text for part in _parts(message))


def _parts(message: Any) -> Iterable[str]:
    content = message.get("content")
    if isinstance(content, str):
        yield content
    elif content is not None:
        yield from (str(part.get("text") or "") for part in content)
    if message.get("tool_calls"):
        yield json.dumps(message["tool_calls"], ensure_ascii=False)


def words(text: str) -> list[str]:
    """Words and signs in lower case."""
    return _WORD.findall(text.lower())


def content_words(text: str) -> set[str]:
    """The longer words of a text, which say what it is about."""
    return set(_CONTENT.findall(text.lower()))


def share(of: set[str], there: set[str]) -> float:
    """The share of some words that are there."""
    return len(of & there) / len(of) if of else 0.0


def hashed(parts: Sequence[str]) -> np.ndarray:
    """uint64 `[n]`, the same in every process."""
    return np.fromiter((zlib.crc32(p.encode("utf-8", "surrogatepass")) for p in parts), np.uint64, len(parts))


def joined_hash(hashes: np.ndarray) -> np.uint64:
    """One number of hashes in their order."""
    with np.errstate(over="ignore"):
        value = np.uint64(len(hashes))
        for start in range(0, len(hashes), len(_MIX)):
            part = hashes[start : start + len(_MIX)]
            value = value * _MIX[0] + ((part + np.uint64(1)) * _MIX[: len(part)]).sum(dtype=np.uint64)
    return value ^ (value >> np.uint64(29))


def shingles(hashes: np.ndarray) -> np.ndarray:
    """uint64, one number of every three words that follow each other; of all where there are fewer."""
    if len(hashes) < _SHINGLE:
        return np.asarray([joined_hash(hashes)])
    with np.errstate(over="ignore"):
        return hashes[:-2] * _MIX[0] + hashes[1:-1] * _MIX[1] + hashes[2:] * _MIX[2]


def sketch(hashes: np.ndarray) -> np.ndarray:
    """uint64 `[BANDS]`: near-duplicates share at least one (MinHash of shingles of three words, banded).

    Source: Broder 1997 (resemblance); Leskovec, Rajaraman and Ullman, "Mining of Massive Datasets", 3.4 (bands).
    """
    if len(hashes) < _SHINGLE:
        return np.full(BANDS, joined_hash(hashes))
    with np.errstate(over="ignore"):
        least = ((shingles(hashes)[:, None] * _FACTORS + _SHIFTS) >> np.uint64(16)).min(0)
        bands = (least.reshape(BANDS, _ROWS) * _MIX[: BANDS * _ROWS].reshape(BANDS, _ROWS)).sum(-1, dtype=np.uint64)
    return bands


def edges(hashes: np.ndarray) -> tuple[np.uint64, np.uint64]:
    """One number each of the first and of the last thirty words; 0 where the text is too short to have both."""
    if len(hashes) < 2 * _EDGE:
        return np.uint64(0), np.uint64(0)
    return joined_hash(hashes[:_EDGE]), joined_hash(hashes[-_EDGE:])


def shortened(text: str, most: int = 60) -> str:
    """A text in one line, cut, quoted."""
    line = " ".join(text.split())
    return repr(line if len(line) <= most else line[: most - 4].rstrip() + " ...")
