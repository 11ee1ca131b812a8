"""The `data` section."""

from __future__ import annotations

import dataclasses
import datetime
import re
import string

from align_jax.data.formats import AUTO, find_format
from align_jax.errors import UserError, check_fields

# Keys that came later, at the value that means what was there before: neither runs nor rows are others for them.
LATER: dict[str, object] = {"score": "assistant", "control_tokens": "text"}

_PROMPT_FIELDS, _BELIEF_FIELDS = {"prompt", "group", "context"}, {"id", "belief"}


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """What is read, and how it becomes tokens."""

    train: str | None = None  # JSONL or Parquet file, folder of Parquet files or of datasets.save_to_disk, or hub id
    # the same, for evaluation; or a fraction of the prompts of `train`, such as 0.05, that are then not trained on: the same
    # ones in every run on these rows
    eval: str | float | int | None = None
    # groups, ultrafeedback, pairs, unpaired or gdpo; samples: groups with the ids that were sampled in `tokens`, of the same
    # tokenizer; prompts: `prompt` alone, for on-policy rounds; package.module:Class, a `data.formats.Format` of your own; auto:
    # by the columns of the first row
    format: str = AUTO
    split: str = "train"  # of a hub data set, for training
    eval_split: str = "test"  # of a hub data set, for evaluation
    streaming: bool = False  # read a hub data set row by row; the rows are kept in the run folder
    max_rows: int | None = None  # read no more rows than this of each, `train` and `eval`
    max_prompt_tokens: int = 512  # longer prompts are cut, and counted
    max_response_tokens: int = 512  # longer responses are cut and lose their end-of-sequence token, and are counted
    max_responses: int | None = None  # keep at most this many of a group, the best and the worst among them
    on_bad_row: str = "error"  # error, or skip: leave malformed rows out and list them in the run folder
    shuffle: bool = True  # a new order every epoch, from run.seed
    prompt_template: str = "{prompt}"  # text of a plain prompt; may use {prompt}, {group} and {context}
    belief_template: str = "{id}<{belief}>"  # text of a belief statement; may use {id} and {belief}
    belief_prior: float = 1.0  # pseudo-count of every belief where its distribution is estimated from the rows
    chat_template: str = "auto"  # always, never, or auto: for conversations, and for plain prompts of a chat tokenizer
    date: str | None = None  # the day, YYYY-MM-DD, for chat templates that print one; null: that on which the run was started
    # of a conversation as an answer, which words are scored: the assistant's (those that the template marks as generated, or its
    # turns), or all of them
    score: str = "assistant"
    control_tokens: str = "text"  # control tokens written in prompts and responses: stay text, or become tokens
    truncate_prompt: str = "left"  # which end of a long prompt is cut
    workers: int = 2  # threads that tokenize and pack ahead of the device
    prefetch: int = 4  # batches made ahead
    pack: bool = True  # several short prompts or responses per row, where the attention backend allows it (xla); else one

    def __post_init__(self):
        if self.format != AUTO:
            find_format(self.format)
        if isinstance(self.eval, float | int) and not 0 < self.eval < 1:
            raise UserError(f"data.eval: {self.eval!r} is neither a path nor a fraction of data.train between 0 and 1")
        if isinstance(self.eval, str) and re.fullmatch(r"[\d.]+ *%?", self.eval):
            raise UserError(f"data.eval: {self.eval!r} is text; a fraction of data.train is a number, without quotes: 0.05")
        for key in ("train", "eval"):
            if isinstance(getattr(self, key), str) and not getattr(self, key).strip():
                raise UserError(f"data.{key}: {getattr(self, key)!r} is blank; an environment variable that is not set?")
        for key, allowed in (
            ("on_bad_row", ("error", "skip")),
            ("chat_template", ("auto", "always", "never")),
            ("truncate_prompt", ("left", "right")),
            ("score", ("assistant", "all")),
            ("control_tokens", ("text", "tokens")),
        ):
            if getattr(self, key) not in allowed:
                raise UserError(f"data.{key}: {getattr(self, key)!r} is not one of {', '.join(allowed)}")
        _check_date(self.date)
        check_fields("data", self, "max_rows", "max_prompt_tokens", "max_response_tokens", "workers", "prefetch", low=1)
        check_fields("data", self, "max_responses", low=2, hint="or null for all")
        check_fields("data", self, "belief_prior", low=0)
        _check_template("prompt_template", self.prompt_template, _PROMPT_FIELDS, "prompt")
        _check_template("belief_template", self.belief_template, _BELIEF_FIELDS, None)


def _check_date(date: str | None) -> None:
    try:
        datetime.date.fromisoformat(date or "2000-01-01")
    except (TypeError, ValueError) as error:
        raise UserError(f"data.date: {date!r} is no day; write it as YYYY-MM-DD, in quotes") from error


def _check_template(key: str, text: str, allowed: set[str], required: str | None) -> None:
    try:
        fields = {name for _, name, _, _ in string.Formatter().parse(text) if name is not None}
    except ValueError as error:
        raise UserError(f"data.{key}: {text!r} is not a template: {error}; write {{{{ for a brace") from error
    if fields - allowed:
        raise UserError(f"data.{key}: {{{min(fields - allowed)}}} is unknown; it may use {', '.join(sorted(allowed))}")
    if required is not None and required not in fields:
        raise UserError(f"data.{key}: {text!r} does not use {{{required}}}")
    if required is None and not fields:
        raise UserError(f"data.{key}: {text!r} is the same for every belief; use {{id}} or {{belief}}")
