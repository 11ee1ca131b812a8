"""Data sets of the Hugging Face hub, whole or streamed into a file."""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from align_jax.data.sources.base import Part, Source, at_most
from align_jax.data.sources.given import IndexedRows
from align_jax.data.sources.json_files import JsonLines
from align_jax.data.sources.plain import plain_row
from align_jax.data.sources.structs import row_without_filled, types_of
from align_jax.errors import UserError
from align_jax.network import retried


def open_hub(name: str, part: Part, spool_dir: Path | None) -> Source:
    """A split of a data set of the hub.

    Args:
      name: its id. spool_dir: where streamed rows are kept.

    Raises:
      UserError: it cannot be loaded, with what there is to choose from.
    """
    kept = Path(spool_dir or ".") / _spool_name(name, part)
    if part.streaming and kept.exists():  # of an earlier start, which may have had a network
        return JsonLines(kept)
    import datasets

    more = {"revision": part.revision} if part.revision is not None else {}
    more |= {"name": part.subset} if part.subset is not None else {}
    try:
        load = functools.partial(datasets.load_dataset, name, split=part.wanted, streaming=part.streaming, **more)
        loaded = retried(load, name)
        if not part.streaming:
            label = f"{name} ({', '.join(filter(None, (part.subset, part.wanted, part.revision)))})"
            return at_most(IndexedRows(loaded.with_format(None), label, loaded._fingerprint), part.max_rows)
        retried(lambda: _spool(loaded, kept, part.max_rows), name)
        return JsonLines(kept)
    except UserError:
        raise
    except Exception as error:  # the hub client raises whatever its transport does
        raise UserError(_refusal(name, part, error)) from error


def _spool_name(name: str, part: Part) -> str:
    """A file for each part of a data set; of names without a subset and a revision as it was before there were any."""
    parts = [name, *(p for p in (part.subset, part.revision) if p is not None), part.wanted, str(part.max_rows or "all")]
    return f"{'-'.join(parts).replace('/', '--')}.jsonl"


def _refusal(name: str, part: Part, error: Exception) -> str:
    """What a user can do about an error of the hub client."""
    text = " ".join(str(error).split())
    listed = re.search(r"\[([^\]]*)\]", text)
    there = ", ".join(re.findall(r"['\"]([^'\"]+)['\"]", listed[1])) if listed else ""
    if "config name" in text.lower() and there:
        return f"{name} has several configurations: {there}; set data.subset to one of them"
    if "BuilderConfig" in text and there:
        return f"{name} has no configuration {part.subset or 'default'!r}; data.subset may be {there}"
    if re.search(r"(unknown|bad) split", text, re.IGNORECASE):
        there = there or text.rpartition(":")[2].strip()
        return f"{name} has no split {part.wanted!r}; it has {there}; set {part.key} to one of them"
    at = f" at revision {part.revision!r} (data.revision)" if part.revision is not None else ""
    return f"{name}: neither a file nor a data set that can be loaded from the hub{at}: {text}"


def _spool(rows: Iterable[Mapping[str, Any]], file: Path, max_rows: int | None) -> None:
    """Streamed rows as a file, so that order, random access and exact resuming hold."""
    types = types_of(rows)
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(f".{os.getpid()}.tmp")
    with open(temporary, "w", encoding="utf-8") as out:
        for count, row in enumerate(rows):
            if count == max_rows:
                break
            out.write(json.dumps(plain_row(row_without_filled(row, types))) + "\n")
    os.replace(temporary, file)
