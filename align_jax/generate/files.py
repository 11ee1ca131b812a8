"""Prompts from JSONL, and results to JSONL as they finish, such that an interrupted run loses nothing that it had."""

from __future__ import annotations

import codecs
import dataclasses
import errno
import json
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from align_jax.data.sources import broken_text
from align_jax.errors import UserError
from align_jax.processes import on_first

INDEX = "_index"  # of an unfinished file's rows: which prompt; taken out when the file is complete


@dataclasses.dataclass(frozen=True)
class PromptRow:
    """A line of the prompts file: `where` is `FILE:LINE`, `values` its columns, `prompt` a text or messages among them."""

    where: str
    values: dict[str, Any]


def read_prompts(path: str | os.PathLike) -> list[PromptRow]:
    """Reads JSONL with a column `prompt`: a text, or messages `[{"role": ..., "content": ...}, ...]`.

    Raises:
      UserError: no such file, an empty one, a line that is not a JSON object, or a bad `prompt`; names file and line.
    """
    try:
        lines = Path(path).read_bytes().removeprefix(codecs.BOM_UTF8).split(b"\n")
    except OSError as error:
        raise UserError(f"generate.prompts: cannot read {path}: {error.strerror}") from error
    rows = [_row(f"{path}:{n}", line) for n, line in enumerate(lines, start=1) if line.strip()]
    if not rows:
        raise UserError(f"generate.prompts: {path} is empty; give one JSON object a line, with `prompt`")
    return rows


def _row(where: str, line: bytes) -> PromptRow:
    try:
        values = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 text: {error.reason} at byte {error.start} of the line") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: not valid JSON: {error.msg} at column {error.colno}") from error
    if problem := broken_text(values):
        raise UserError(f"{where}: {problem}")
    if not isinstance(values, dict):
        raise UserError(f"{where}: expected a JSON object with `prompt`, got {_short(values)}")
    if "prompt" not in values:
        raise UserError(f"{where}: no `prompt`; the columns are {', '.join(values) or 'none'}")
    if INDEX in values:
        raise UserError(f"{where}: the column {INDEX!r} is used by unfinished results; rename it")
    prompt = values["prompt"]
    if not (isinstance(prompt, str) and prompt) and not _is_messages(prompt):
        raise UserError(f"{where}: `prompt` must be text or messages with `role` and `content`, got {_short(prompt)}")
    return PromptRow(where, values)


def _is_messages(prompt: Any) -> bool:
    return (
        isinstance(prompt, list)
        and bool(prompt)
        and all(isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str) for m in prompt)
    )


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


def check_apart(paths: dict[str, str | None]) -> None:
    """UserError where two of the files (key of the config -> path) are one: the later would overwrite the earlier."""
    seen: dict[Path, str] = {}
    for key, path in paths.items():
        if path is not None and (other := seen.setdefault(Path(path).resolve(), key)) != key:
            raise UserError(f"{key}: {path} is {other}, too, and would be overwritten; give another file")


class ResultsFile:
    """Results as JSONL at `path`, and what made them at `path + ".settings.json"`.

    While incomplete, rows stand in the order in which they finished, each with its prompt's index under `_index`; `close`
    after the last one brings them into the order of the prompts and takes the index out. Opened again with the same
    settings, it goes on where it was; with other settings, the old file is kept as `path.1`, `path.2`, ...
    Of several processes, the first one reads and writes.

    Args:
      path: the output. settings: everything that decides the results, JSON values. count: how many prompts there are.
      key: the config's name of the output, for errors.

    Attributes:
      done: indices of the prompts that have results. kept_as: where a file of other settings went, or None.
    """

    def __init__(self, path: str | os.PathLike, settings: dict[str, Any], count: int, key: str = "generate.output"):
        self.path, self.count = Path(path), count
        self.done: set[int] = set()
        self.kept_as: Path | None = None
        self._file = None
        failure = None
        if jax.process_index() == 0:
            try:
                self._open(json.loads(json.dumps(settings)))
            except OSError as error:
                failure = error
        if jax.process_count() > 1:
            self._agree(failure is not None)
        if failure is not None:
            raise UserError(f"{key}: cannot write {path}: {failure.strerror}") from failure

    def _open(self, settings: dict[str, Any]) -> None:
        side = self.path.with_name(self.path.name + ".settings.json")
        if self.path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists() and not (side.exists() and _read_json(side) == settings):
            self.kept_as = next(p for n in range(1, 10**6) if not (p := Path(f"{self.path}.{n}")).exists())
            os.replace(self.path, self.kept_as)
        if self.path.exists():
            self._resume()
        else:
            side.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        self._file = open(self.path, "ab")

    def _agree(self, failed: bool) -> None:
        """Tells all processes what the first one found in the file."""
        found = np.zeros(self.count + 1, np.int32)
        found[list(self.done)] = 1
        found[-1] = failed
        found = multihost_utils.broadcast_one_to_all(found)
        self.done = set(np.flatnonzero(found[:-1]).tolist())
        if found[-1] and jax.process_index() != 0:
            raise UserError(f"{self.path}: the first process cannot write it")

    def _resume(self) -> None:
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        rows = [json.loads(line) for line in whole.splitlines()]
        if rows and INDEX not in rows[0]:
            self.done = set(range(self.count))  # complete
            return
        self.done = {row[INDEX] for row in rows}
        if len(whole) < len(content):  # the line that was being written when the process was killed
            os.truncate(self.path, len(whole))

    def write(self, index: int, row: dict[str, Any]) -> None:
        """Appends the result of a prompt; it is in the file when this returns."""
        self.done.add(index)
        if self._file is None:  # another process writes
            return
        line = json.dumps({INDEX: index, **row}, ensure_ascii=False) + "\n"
        self._file.write(line.encode("utf-8"))
        self._file.flush()

    def close(self) -> None:
        """Closes the file, and orders it where it is complete; again, it does nothing."""
        if self._file is None:
            return
        self._file.close()
        self._file = None
        rows = [json.loads(line) for line in self.path.read_bytes().splitlines()]
        if len(rows) < self.count or INDEX not in rows[0]:
            return
        rows.sort(key=lambda row: row[INDEX])
        temporary = self.path.with_name(self.path.name + ".tmp")
        with open(temporary, "wb") as file:
            for row in rows:
                row.pop(INDEX)
                file.write((json.dumps(row, ensure_ascii=False) + "\n").encode("utf-8"))
        os.replace(temporary, self.path)

    def __enter__(self) -> ResultsFile:
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        if kind is None:
            on_first(self.close, str(self.path))
        else:  # of this process alone, perhaps: no other is waited for
            self.close()


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return None


def write_model_outputs(results: Path, path: Path, generator: str) -> int:
    """Writes finished results as AlpacaEval's `model_outputs.json`; returns how many outputs it has.

    A list of `{"instruction", "output", "generator"}`, with `dataset` where the row has it. The instruction is the row's
    `instruction`, or its prompt (of messages the user's last); the output is the first response.

    Args:
      results: the complete JSONL of a `ResultsFile`. path: the JSON file. generator: the model's name on the leaderboard.
    """
    rows = [json.loads(line) for line in results.read_bytes().splitlines()]
    outputs = [
        {"instruction": _instruction(row), "output": row["responses"][0].strip(), "generator": generator}
        | {key: row[key] for key in ("dataset",) if key in row}
        for row in rows
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(outputs, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(temporary, path)
    return len(outputs)


def _instruction(row: dict[str, Any]) -> str:
    prompt = row.get("instruction", row["prompt"])
    if isinstance(prompt, str):
        return prompt
    return next((m["content"] for m in reversed(prompt) if m["role"] == "user"), prompt[-1]["content"])
