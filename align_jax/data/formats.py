"""What the columns of a row mean: every format becomes an `Example`, or an error that names place and field."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from align_jax.errors import UserError

Message = dict[str, Any]
Text = str | tuple[Message, ...]  # plain, or a conversation


@dataclasses.dataclass(frozen=True)
class Opinion:
    """The belief columns of a `gdpo` row.

    Attributes:
      options: the N beliefs. probabilities: their distribution in the group of people, or None where it must be estimated.
      accepted, rejected: index of the belief behind the accepted and the rejected response.
    """

    options: tuple[str, ...]
    probabilities: tuple[float, ...] | None
    accepted: int
    rejected: int


@dataclasses.dataclass(frozen=True)
class Example:
    """One row.

    Attributes:
      prompt: plain text or messages.
      responses: plain texts or messages; chosen before rejected where the format says which is which.
      scores: one a response, higher is better; 1 and 0 where the format only says which is better.
      group, context: further columns that templates and metrics may use.
      opinion: the beliefs of a `gdpo` row.
    """

    prompt: Text
    responses: tuple[Text, ...]
    scores: tuple[float, ...]
    group: str | None = None
    context: str | None = None
    opinion: Opinion | None = None


class Row:
    """Columns of a row with checked access: every complaint names the place and the field."""

    def __init__(self, columns: Mapping[str, Any], where: str):
        self.columns, self.where = columns, where

    def error(self, field: str, message: str) -> UserError:
        """A UserError about a field."""
        return UserError(f"{self.where}: field {field}: {message}")

    def get(self, field: str) -> Any:
        """The value of a column that must be there."""
        if field not in self.columns:
            raise self.error(field, f"is missing; the row has {', '.join(map(str, self.columns)) or 'no columns'}")
        return self.columns[field]

    def has(self, field: str) -> bool:
        """Whether a column is there and not null."""
        return self.columns.get(field) is not None

    def string(self, field: str, value: Any) -> str:
        """A text that is not empty."""
        if not isinstance(value, str):
            raise self.error(field, f"expected text, got {_short(value)}")
        if not value.strip():
            raise self.error(field, "is empty")
        return value

    def text(self, field: str, value: Any) -> Text:
        """A text or a list of messages, each with role and content."""
        if isinstance(value, str):
            return self.string(field, value)
        if not isinstance(value, (list, tuple)):
            raise self.error(field, f"expected text or a list of messages, got {_short(value)}")
        if not value:
            raise self.error(field, "is empty")
        for i, message in enumerate(value):
            if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
                raise self.error(f"{field}[{i}]", f"expected a message with role and content, got {_short(message)}")
            if not isinstance(message["content"], str) or not isinstance(message["role"], str):
                raise self.error(f"{field}[{i}]", f"role and content must be text, got {_short(message)}")
            if message["role"] == "assistant" and not message["content"].strip():
                raise self.error(f"{field}[{i}].content", "is empty")
        return tuple(dict(message) for message in value)

    def number(self, field: str, value: Any) -> float:
        """A finite number."""
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self.error(field, f"expected a number, got {_short(value)}")
        if not math.isfinite(value):
            raise self.error(field, f"is {value}, not a finite number")
        return float(value)

    def index(self, field: str, count: int) -> int:
        """An integer from 0 to count - 1."""
        value = self.get(field)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value != int(value):
            raise self.error(field, f"expected an integer, got {_short(value)}")
        if not 0 <= value < count:
            raise self.error(field, f"{int(value)} is not an index of the {count} options")
        return int(value)

    def items(self, field: str) -> Sequence[Any]:
        """A list that is not empty."""
        value = self.get(field)
        if not isinstance(value, (list, tuple)):
            raise self.error(field, f"expected a list, got {_short(value)}")
        if not value:
            raise self.error(field, "has no items")
        return value

    def optional(self, field: str) -> str | None:
        """A column as text, or None where it is absent or null."""
        value = self.columns.get(field)
        return None if value is None else str(value)


def _groups(row: Row) -> Example:
    responses = tuple(row.text(f"responses[{i}]", r) for i, r in enumerate(row.items("responses")))
    values = row.items("scores")
    if len(values) != len(responses):
        raise row.error("scores", f"{len(values)} scores for {len(responses)} responses")
    scores = tuple(row.number(f"scores[{i}]", s) for i, s in enumerate(values))
    return Example(row.text("prompt", row.get("prompt")), responses, scores)


def _ultrafeedback(row: Row) -> Example:
    completions = row.items("completions")
    responses, scores = [], []
    for i, completion in enumerate(completions):
        field = f"completions[{i}]"
        if not isinstance(completion, Mapping):
            raise row.error(field, f"expected an object, got {_short(completion)}")
        for name in ("response", "overall_score"):
            if completion.get(name) is None:
                raise row.error(f"{field}.{name}", "is null" if name in completion else "is missing")
        responses.append(row.string(f"{field}.response", completion["response"]))
        scores.append(row.number(f"{field}.overall_score", completion["overall_score"]))
    return Example(row.string("instruction", row.get("instruction")), tuple(responses), tuple(scores))


def _pairs(row: Row) -> Example:
    chosen, rejected = (row.text(field, row.get(field)) for field in ("chosen", "rejected"))
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise row.error("rejected", "chosen and rejected must both be text or both be messages")
    if row.has("prompt"):
        prompt = row.text("prompt", row.get("prompt"))
        # TRL's conversational rows may repeat the prompt in both columns
        if not isinstance(prompt, str) and not isinstance(chosen, str):
            chosen, rejected = (m[len(prompt) :] if m[: len(prompt)] == prompt else m for m in (chosen, rejected))
    else:
        prompt, chosen, rejected = _implicit_prompt(row, chosen, rejected)
    for field, value in (("chosen", chosen), ("rejected", rejected)):
        _check_answer(row, field, prompt, value)
    return Example(prompt, (chosen, rejected), (1.0, 0.0))


def _implicit_prompt(row: Row, chosen: Text, rejected: Text) -> tuple[Text, Text, Text]:
    """Splits off what chosen and rejected begin with alike: whole messages, or text up to the last common space.

    Text is cut after the last white space that both share, so that no word is torn: the prompt keeps it.
    """
    common = 0
    while common < min(len(chosen), len(rejected)) and chosen[common] == rejected[common]:
        common += 1
    if isinstance(chosen, str):
        if common < max(len(chosen), len(rejected)):
            common = max((i + 1 for i in range(common) if chosen[i].isspace()), default=0)
    if common == 0:
        raise row.error("prompt", "is missing, and chosen and rejected have no common beginning to take it from")
    if common in (len(chosen), len(rejected)):
        raise row.error("chosen", "one of chosen and rejected is the beginning of the other: no response is left of it")
    return chosen[:common], chosen[common:], rejected[common:]


def _check_answer(row: Row, field: str, prompt: Text, answer: Text) -> None:
    """A conversation is answered by messages that end with the assistant's, plain text by text."""
    if isinstance(answer, str):
        return
    if not answer:
        raise row.error(field, "holds the prompt only, no answer")
    if isinstance(prompt, str):
        raise row.error(field, "is a list of messages, but the prompt is plain text")
    if answer[-1]["role"] != "assistant":
        raise row.error(field, f"must end with a message of the assistant, not of {answer[-1]['role']!r}")


def _unpaired(row: Row) -> Example:
    label = row.get("label")
    if not isinstance(label, bool) and label not in (0, 1):
        raise row.error("label", f"expected true or false, got {_short(label)}")
    prompt, completion = (row.text(field, row.get(field)) for field in ("prompt", "completion"))
    _check_answer(row, "completion", prompt, completion)
    return Example(prompt, (completion,), (float(label),))


_TOLERANCE = 0.01  # published distributions are rounded


def _gdpo(row: Row) -> Example:
    options = tuple(row.string(f"options[{i}]", o) for i, o in enumerate(row.items("options")))
    if len(set(options)) < len(options):
        raise row.error("options", f"the same belief twice: {_short(options)}")
    probabilities = _probabilities(row, len(options)) if row.has("probabilities") else None
    chosen = {}
    for kind in ("accept", "reject"):
        chosen[kind] = row.index(f"{kind}_choice_id", len(options))
        name = f"{kind}_choice"
        if row.has(name) and row.get(name) != options[chosen[kind]]:
            raise row.error(name, f"{row.get(name)!r} is not option {chosen[kind]}, {options[chosen[kind]]!r}")
    responses = tuple(row.string(f"{kind}_response", row.get(f"{kind}_response")) for kind in ("accept", "reject"))
    opinion = Opinion(options, probabilities, chosen["accept"], chosen["reject"])
    return Example(row.text("prompt", row.get("prompt")), responses, (1.0, 0.0), opinion=opinion)


def _probabilities(row: Row, count: int) -> tuple[float, ...]:
    values = [row.number(f"probabilities[{i}]", p) for i, p in enumerate(row.items("probabilities"))]
    if len(values) != count:
        raise row.error("probabilities", f"{len(values)} probabilities for {count} options")
    if min(values) < 0 or abs(sum(values) - 1) > _TOLERANCE:
        raise row.error("probabilities", f"must not be negative and sum to 1, got {values} with sum {sum(values):g}")
    return tuple(p / sum(values) for p in values)


_PARSERS: dict[str, Callable[[Row], Example]] = {
    "groups": _groups,
    "ultrafeedback": _ultrafeedback,
    "pairs": _pairs,
    "unpaired": _unpaired,
    "gdpo": _gdpo,
}


def parse(columns: Mapping[str, Any], format_: str, where: str) -> Example:
    """A row in one of the formats as an `Example`.

    Args:
      columns: column name -> value.
      format_: `groups`, `ultrafeedback`, `pairs`, `unpaired` or `gdpo`.
      where: the row's place, for messages.

    Raises:
      UserError: what is wrong, with place and field.
    """
    row = Row(columns, where)
    example = _PARSERS[format_](row)
    if format_ != "pairs" and not isinstance(example.prompt, str):
        for i, response in enumerate(example.responses):
            _check_answer(row, f"responses[{i}]", example.prompt, response)
    elif isinstance(example.prompt, str):
        for i, response in enumerate(example.responses):
            _check_answer(row, f"responses[{i}]", example.prompt, response)
    return dataclasses.replace(example, group=row.optional("group"), context=row.optional("context"))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
