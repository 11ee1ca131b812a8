"""The `data` section of a config."""

from __future__ import annotations

import dataclasses
import string
from typing import Literal

from align_jax.errors import UserError

FORMATS = ("groups", "ultrafeedback", "pairs", "unpaired", "gdpo")
_CHOICES = {
    "format": FORMATS,
    "on_bad_row": ("error", "skip"),
    "chat_template": ("auto", "always", "never"),
    "truncate_prompt": ("left", "right"),
}
PROMPT_FIELDS, BELIEF_FIELDS = ("prompt", "group", "context"), ("id", "belief")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where the data is, what its rows mean, and how they become tokens."""

    train: str | None = None  # a .jsonl, .json (.gz too) or .parquet file, a folder of either kind, a saved `datasets` folder, or a hub id
    eval: str | None = None  # the same, for evaluation
    format: Literal["groups", "ultrafeedback", "pairs", "unpaired", "gdpo"] = "groups"  # which columns rows have
    split: str = "train"  # split of a hub id or of a saved `datasets` folder, for train
    eval_split: str = "test"  # the same for eval
    streaming: bool = False  # read a hub id row by row, keeping the first max_rows in the run folder
    max_rows: int | None = None  # use the first so many rows only
    max_prompt_tokens: int = 512  # longer prompts are cut (truncate_prompt); BOS counts
    max_response_tokens: int = 512  # longer responses are cut at their end and lose their EOS; EOS counts
    max_responses: int | None = None  # at most so many responses of a row, chosen by run.seed so that contrast stays; null: all
    on_bad_row: Literal["error", "skip"] = "error"  # a malformed row stops the run, or is skipped, counted and listed
    shuffle: bool = True  # a new order every epoch, from run.seed; false: the order of the file
    prompt_template: str = "{prompt}"  # text of a plain prompt; fields prompt, group, context
    belief_template: str = "{id}<{belief}>"  # belief statement of the gdpo format; fields id (from 0), belief
    belief_prior: float = 1.0  # Dirichlet pseudo-count of each belief where rows have no probabilities
    chat_template: Literal["auto", "always", "never"] = "auto"  # auto: the tokenizer's, where it has one
    truncate_prompt: Literal["left", "right"] = "left"  # the end of a long prompt that is cut off; BOS stays
    workers: int = 1  # threads that tokenize and pack ahead of the device; 0: none
    prefetch: int = 2  # optimizer steps kept ready ahead of the device
    pack: bool = True  # several responses a row; false: one, padded

    def __post_init__(self):
        for key, choices in _CHOICES.items():
            if getattr(self, key) not in choices:
                raise UserError(f"data.{key} must be one of {', '.join(choices)}, got {getattr(self, key)!r}")
        for key in ("max_rows", "max_prompt_tokens", "max_response_tokens", "max_responses"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise UserError(f"data.{key} must be at least 1, got {value!r}")
        for key in ("workers", "prefetch"):
            if getattr(self, key) < 0:
                raise UserError(f"data.{key} must not be negative, got {getattr(self, key)!r}")
        if not 0 <= self.belief_prior < float("inf"):
            raise UserError(f"data.belief_prior must be a number of at least 0, got {self.belief_prior!r}")
        _check_template("prompt_template", self.prompt_template, PROMPT_FIELDS, "prompt")
        _check_template("belief_template", self.belief_template, BELIEF_FIELDS, "belief")


def _check_template(key: str, template: str, known: tuple[str, ...], required: str) -> None:
    """UserError for a template with an unknown field, or without the one that it is for."""
    try:
        fields = [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise UserError(f"data.{key}: {template!r} is not a template: {error}; write {{{{ for a brace") from error
    unknown = [name for name in fields if name not in known]
    if unknown:
        accepted = ", ".join(f"{{{name}}}" for name in known)
        raise UserError(f"data.{key}: {template!r} has the unknown field {{{unknown[0]}}}; it may use {accepted}")
    if required not in fields and not (required == "belief" and "id" in fields):
        raise UserError(f"data.{key}: {template!r} must contain {{{required}}}")
