"""The `data` section."""

from __future__ import annotations

import dataclasses
import datetime
import re
import string
from typing import Any

from align_jax.data.formats import AUTO, find_format
from align_jax.data.members import members_of, named_sets
from align_jax.data.sources import Part
from align_jax.errors import UserError, check_fields

# Keys that came later, at the value that means what was there before: neither runs nor rows are others for them.
LATER: dict[str, object] = {
    "subset": None,
    "revision": None,
    "on_empty": "keep",
    "score": "assistant",
    "control_tokens": "text",
    "target": "auto",
    "target_shrink": "none",
}

_PROMPT_FIELDS, _BELIEF_FIELDS = {"prompt", "group", "context"}, {"id", "belief"}


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """What is read, and how it becomes tokens."""

    # a file of JSONL, JSON, Parquet, CSV, TSV or Arrow; a folder of these, whose splits are told by their names as on the hub;
    # one of datasets.save_to_disk; or a hub id; or a data set by name, `{name: ultrafeedback, limit: 1000}`; or a list of
    # such, a mixture
    train: Any = None
    # the same, for evaluation; or a fraction of the prompts of `train`, such as 0.05, that are then not trained on: the same
    # ones in every run on these rows; or several of these by name, `{safety: safety.jsonl, held_out: 0.05}`
    eval: Any = None
    # texts of plain language modelling, which tell how much of it a run forgets: a .txt file, or one whose rows have `text`
    # (what data.train may name, too); cut into pieces of max_response_tokens, max_rows of them at most
    eval_text: Any = None
    # groups, ultrafeedback, pairs, unpaired, gdpo, messages, completions and others of docs/data.md; samples: groups with the
    # ids that were sampled in `tokens`, of the same tokenizer; prompts: `prompt` alone, for on-policy rounds;
    # package.module:Class, a `data.formats.Format` of your own; auto: by the columns of the first row
    format: str = AUTO
    split: str | None = None  # what of `train` is trained on, where it has splits; null is train
    eval_split: str | None = None  # what of `eval` is evaluated on, where it has splits; null is test
    subset: str | None = None  # the configuration of a data set that has several
    revision: str | None = None  # branch, tag or commit of a hub data set; null is the newest
    streaming: bool = False  # read a hub data set row by row; the rows are kept in the run folder
    max_rows: int | None = None  # read no more rows than this of each, `train` and `eval`
    max_prompt_tokens: int = 512  # longer prompts are cut, and counted
    max_response_tokens: int = 512  # longer responses are cut and lose their end-of-sequence token, and are counted
    max_responses: int | None = None  # keep at most this many of a group, the best and the worst among them
    on_bad_row: str = "error"  # error, or skip: leave malformed rows out and list them in the run folder
    on_empty: str = "keep"  # answers without words: keep, as the end token alone; drop, leave them out; or error
    shuffle: bool = True  # a new order every epoch, from run.seed
    prompt_template: str = "{prompt}"  # text of a plain prompt; may use {prompt}, {group} and {context}
    belief_template: str = "{id}<{belief}>"  # text of a belief statement; may use {id} and {belief}
    belief_prior: float = 1.0  # pseudo-count of every belief where its distribution is estimated from the rows
    # which belief distribution (p*) is learned: given, the rows' `probabilities`; estimate, from the accepted beliefs of
    # a prompt's rows; auto: given where a row has one
    target: str = "auto"
    # an estimated distribution is shrunk towards the mean of all prompts with the same options (overall), or of those of its
    # `group` too; how strongly, held-out answers say. none: towards equal probabilities, by belief_prior
    target_shrink: str = "none"
    chat_template: str = "auto"  # always, never, or auto: for conversations, and for plain prompts of a chat tokenizer
    date: str | None = None  # the day, YYYY-MM-DD, for chat templates that print one; null: that on which the run was started
    # of a conversation as an answer, which words are scored: the assistant's (those that the template marks as generated,
    # or its turns), or all of them
    score: str = "assistant"
    control_tokens: str = "text"  # control tokens written in prompts and responses: stay text, or become tokens
    truncate_prompt: str = "left"  # which end of a long prompt is cut
    workers: int = 2  # threads that tokenize and pack ahead of the device
    prefetch: int = 4  # batches made ahead
    # several short prompts or responses per row, where the attention backend takes them (xla, and pallas on TPU); else one
    pack: bool = True

    def __post_init__(self):
        if self.format != AUTO:
            find_format(self.format)
        _check_eval(self)
        for key in ("split", "eval_split", "subset", "revision"):
            if isinstance(getattr(self, key), str) and not getattr(self, key).strip():
                raise UserError(f"data.{key}: {getattr(self, key)!r} is blank; an environment variable that is not set?")
        for key in ("train", "eval_text"):
            if getattr(self, key) is not None:
                _check_named(f"data.{key}", getattr(self, key))
        for key, allowed in (
            ("on_bad_row", ("error", "skip")),
            ("on_empty", ("keep", "drop", "error")),
            ("chat_template", ("auto", "always", "never")),
            ("truncate_prompt", ("left", "right")),
            ("target", ("auto", "given", "estimate")),
            ("target_shrink", ("none", "overall", "group")),
            ("score", ("assistant", "all")),
            ("control_tokens", ("text", "tokens")),
        ):
            if getattr(self, key) not in allowed:
                raise UserError(f"data.{key}: {getattr(self, key)!r} is not one of {', '.join(allowed)}")
        _check_date(self.date)
        check_fields("data", self, "max_rows", "max_prompt_tokens", "max_response_tokens", "workers", "prefetch", low=1)
        check_fields("data", self, "max_responses", low=2, hint="or null for all")
        check_fields("data", self, "belief_prior", low=0)
        if self.target == "given" and self.target_shrink != "none":
            raise UserError(f"data.target_shrink: {self.target_shrink!r} has no effect with data.target: given; leave one out")
        _check_template("prompt_template", self.prompt_template, _PROMPT_FIELDS, "prompt")
        _check_template("belief_template", self.belief_template, _BELIEF_FIELDS, None)

    @property
    def held_out(self) -> float | None:
        """The fraction of the prompts of `train` that is evaluated on, if one is."""
        sets = named_sets(self.eval) or {"": self.eval}
        return next((value for value in sets.values() if _is_number(value)), None)

    def eval_sets(self) -> dict[str, DataConfig]:
        """The evaluation sets by name, each as the section that has it alone; of one alone the name is empty."""
        sets = {} if self.eval is None else named_sets(self.eval) or {"": self.eval}
        return {name: dataclasses.replace(self, eval=value) for name, value in sets.items()}

    def part(self, which: str) -> Part:
        """What is read of `train`, of `eval`, or of what is scored."""
        split = self.eval_split if which == "eval" else self.split
        apart = not isinstance(self.eval, float | int | None) and self.eval != self.train and self.train is not None
        return Part(which, split, self.subset, self.revision, self.streaming, self.max_rows, shared=apart or which == "score")


def _is_number(value: Any) -> bool:
    return isinstance(value, float | int) and not isinstance(value, bool)


def _check_eval(data: DataConfig) -> None:
    """UserError for what `data.eval` cannot be, or one of its sets."""
    sets = named_sets(data.eval)
    for name, value in (sets or {"": data.eval}).items():
        key = f"data.eval.{name}" if name else "data.eval"
        if name and (name == "text" or not re.fullmatch(r"[\w-]+", str(name))):
            why = (
                "is the name of the metrics of data.eval_text"
                if name == "text"
                else "has other signs than letters, digits, _ and -"
            )
            raise UserError(f"data.eval: {name!r} {why}; choose another name for this set")
        if _is_number(value) and not 0 < value < 1:
            raise UserError(f"{key}: {value!r} is neither a path nor a fraction of data.train between 0 and 1")
        if isinstance(value, str) and re.fullmatch(r"[\d.]+ *%?", value):
            raise UserError(f"{key}: {value!r} is text; a fraction of data.train is a number, without quotes: 0.05")
        if value is None and name:
            raise UserError(f"{key}: null is no data set; leave the name out")
        if value is not None and not _is_number(value):
            _check_named(key, value)
    fractions = [name for name, value in (sets or {}).items() if _is_number(value)]
    if len(fractions) > 1:
        raise UserError(f"data.eval: {fractions[0]} and {fractions[1]} are both fractions of data.train; only one set may be")


def _check_named(key: str, value: Any) -> None:
    if isinstance(value, str) and not value.strip():
        raise UserError(f"{key}: {value!r} is blank; an environment variable that is not set?")
    members_of(value, key)


def _check_date(date: str | None) -> None:
    try:
        datetime.date.fromisoformat(date or "2000-01-01")
    except (TypeError, ValueError) as error:
        raise UserError(f"data.date: {date!r} is no day; write it as YYYY-MM-DD, in quotes") from error


def _check_template(key: str, text: str, allowed: set[str], required: str | None) -> None:
    try:
        parts = [part for part in string.Formatter().parse(text) if part[1] is not None]
    except ValueError as error:
        raise UserError(f"data.{key}: {text!r:.200} is not a template: {error}; write {{{{ for a brace") from error
    fields = {name for _, name, _, _ in parts}
    if more := next((part for part in parts if part[2] or part[3]), None):
        _, name, form, change = more
        written = f"{{{name}{'!' + change if change else ''}{':' + form if form else ''}}}"
        raise UserError(
            f"data.{key}: {written:.200} says how its text is formatted; a template knows names alone: {{{name:.80}}}"
        )
    if fields - allowed:
        raise UserError(f"data.{key}: {{{min(fields - allowed):.200}}} is unknown; it may use {', '.join(sorted(allowed))}")
    if required is not None and required not in fields:
        raise UserError(f"data.{key}: {text!r:.200} does not use {{{required}}}")
    if required is None and not fields:
        raise UserError(f"data.{key}: {text!r:.200} is the same for every belief; use {{id}} or {{belief}}")
