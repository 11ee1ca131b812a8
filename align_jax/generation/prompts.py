"""Prompts from JSONL, and results to JSONL as they finish, such that an interrupted run loses nothing that it had."""

from __future__ import annotations

import codecs
import dataclasses
import json
import os
from pathlib import Path
from typing import Any

from align_jax.data.sources import broken_text
from align_jax.errors import UserError
from align_jax.files import INDEX
from align_jax.parsing import json_of


@dataclasses.dataclass(frozen=True)
class PromptRow:
    """A line of the prompts file: `where` is `FILE:LINE`, `values` its columns, `prompt` (text or messages) among them."""

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
        raise UserError(f"generate.prompts: {path} is empty; give one JSON object per line, with `prompt`")
    return rows


def _row(where: str, line: bytes) -> PromptRow:
    try:
        values = json_of(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 text: {error.reason} at byte {error.start} of the line") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: not valid JSON: {error.msg} at column {error.colno}") from error
    except ValueError as error:
        raise UserError(f"{where}: {error}") from error
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
        and all(isinstance(m, dict) and isinstance(m.get("role"), str) and _says(m) for m in prompt)
    )


def _says(message: dict[str, Any]) -> bool:
    """Whether there is content, text or parts of it, or what may stand in its place."""
    return isinstance(message.get("content"), str | list) or bool(message.get("tool_calls"))


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


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
