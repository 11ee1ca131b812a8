"""Rows of prompts as the tokens that responses are sampled behind."""

from __future__ import annotations

import dataclasses
from typing import Any

from align_jax.config.job_sections import GenerateConfig
from align_jax.data import DataConfig, Encoder
from align_jax.data.encode import Prompt
from align_jax.data.formats import Example, as_text, find_format
from align_jax.data.sources import RowError
from align_jax.errors import UserError
from align_jax.generation.prompts import PromptRow
from align_jax.models import ModelConfig


@dataclasses.dataclass(frozen=True)
class Encoded:
    """A prompt as tokens; with beliefs, their statements and which one is fixed."""

    prompt: list[int]
    beliefs: list[list[int]] = dataclasses.field(default_factory=list)
    fixed: int | None = None


def by_group(row: PromptRow, data: DataConfig) -> list[PromptRow]:
    """The row, or one row for each of its `groups`, each with its `group`."""
    groups = row.values.get("groups")
    if groups is None:
        return [row]
    if not isinstance(groups, list) or not groups or not all(isinstance(group, str) for group in groups):
        raise UserError(f"{row.where}: `groups` must be a list of names, got {groups!r}")
    if "{group}" not in data.prompt_template or not isinstance(row.values["prompt"], str):
        raise UserError(
            f"{row.where}: the prompt is the same for all of its `groups`: they are used by {{group}} in "
            "data.prompt_template, in prompts of plain text"
        )
    rest = {key: value for key, value in row.values.items() if key != "groups"}
    return [PromptRow(row.where, {**rest, "group": group}) for group in groups]


def encode(row: PromptRow, encoder: Encoder, options: GenerateConfig, shape: ModelConfig) -> Encoded:
    """The row's tokens.

    Raises:
      UserError: it leaves no room in the context, or it has no such beliefs; names file and line.
    """
    values = row.values
    try:
        example = find_format("prompts").read(values)
    except RowError as error:
        raise UserError(f"{row.where}: {error}") from error
    start = prompt_of(example, encoder, row.where)
    prompt = start.ids.tolist()
    beliefs, fixed = _beliefs(row, start, encoder) if options.beliefs else ([], None)
    room = shape.max_length - len(prompt) - max(map(len, beliefs), default=0)
    if room < 1:
        what = "the prompt with its longest belief" if beliefs else "the prompt"
        raise UserError(
            f"{row.where}: {what} has {shape.max_length - room} tokens, which leaves no room in the model's context of "
            f"{shape.max_length}; shorten it to at most {shape.max_length - 1}"
        )
    return Encoded(prompt, beliefs, fixed)


def prompt_of(prompt: Any, encoder: Encoder, where: str) -> Prompt:
    """A prompt (text, messages or an example) as tokens; UserError with its place where it cannot be one."""
    try:
        if not isinstance(prompt, Example):
            prompt = Example(prompt if isinstance(prompt, str) else as_text(prompt, "prompt"), ())
        return encoder.prompt(prompt)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from error


def _beliefs(row: PromptRow, prompt: Prompt, encoder: Encoder) -> tuple[list[list[int]], int | None]:
    options = row.values.get("options")
    if not isinstance(options, list) or not options or not all(isinstance(o, str) for o in options):
        raise UserError(
            f"{row.where}: generate.beliefs needs `options`, a list of the beliefs, got {options!r}; rows of --prompts FILE "
            "have them, and --prompt gives a prompt alone"
        )
    fixed = row.values.get("belief")
    if isinstance(fixed, str) and fixed in options:
        fixed = options.index(fixed)
    if isinstance(fixed, float) and fixed.is_integer():  # so written by tools that have no missing integers
        fixed = int(fixed)
    if fixed is not None and (isinstance(fixed, (bool, str)) or fixed not in range(len(options))):
        raise UserError(f"{row.where}: `belief` {fixed!r} is not one of the options {options} or a number below {len(options)}")
    try:
        return [ids.tolist() for ids in encoder.beliefs(prompt, options)], fixed
    except ValueError as error:
        raise UserError(f"{row.where}: {error}") from error
