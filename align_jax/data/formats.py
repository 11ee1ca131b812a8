"""What a row means: each format's columns, checked, as an `Example`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from align_jax.data.sources import RowError

_LARGEST = 3.4e38  # of float32, in which scores travel

Text = str | tuple[Mapping[str, str], ...]  # plain text, or the messages of a conversation


@dataclasses.dataclass(frozen=True)
class Opinion:
    """The belief part of a `gdpo` row; `probabilities` is None where it has to be estimated."""

    options: tuple[str, ...]
    probabilities: tuple[float, ...] | None
    accepted: int
    rejected: int


@dataclasses.dataclass(frozen=True)
class Example:
    """One row of any format.

    Attributes:
      prompt: what is answered.
      responses: the answers; accepted and rejected text for `gdpo` (without the belief).
      scores: one a response (1 and 0 for a pair); None for `unpaired`.
      desirable: the label of an `unpaired` row, else None.
      opinion: the beliefs of a `gdpo` row, else None.
      group, context: optional columns, for templates and for metrics a group of people.
      tokens: ids of every response as a model sampled them, its end token included, for `samples`, else None.
    """

    prompt: Text
    responses: tuple[Text, ...]
    scores: tuple[float, ...] | None = None
    desirable: bool | None = None
    opinion: Opinion | None = None
    group: str = ""
    context: str = ""
    tokens: tuple[tuple[int, ...], ...] | None = None


def _field(row: Mapping, name: str) -> Any:
    if name not in row or row[name] is None:
        raise RowError(f"field {name!r} is missing; the row has {', '.join(map(repr, row)) or 'none'}")
    return row[name]


def _text(row: Mapping, name: str) -> Text:
    return as_text(_field(row, name), name)


def as_text(value: Any, name: str) -> Text:
    """Plain text that is not blank, or a list of messages with `role` and `content`."""
    if isinstance(value, str):
        if not value.strip():
            raise RowError(f"field {name!r} is empty")
        return value
    if isinstance(value, list | tuple) and value:
        for message in value:
            if not (isinstance(message, Mapping) and all(isinstance(message.get(k), str) for k in ("role", "content"))):
                raise RowError(f"field {name!r}: a message needs text in 'role' and 'content', got {message!r}")
        return tuple({"role": m["role"], "content": m["content"]} for m in value)
    raise RowError(f"field {name!r}: expected text or a list of messages, got {_short(value)}")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 60 else text[:57] + "..."


def _number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= _LARGEST:
        raise RowError(f"field {name!r}: expected a finite number, got {value!r}")
    return float(value)


def _list(row: Mapping, name: str) -> list:
    value = _field(row, name)
    if not isinstance(value, list | tuple) or not value:
        raise RowError(f"field {name!r}: expected a list that is not empty, got {_short(value)}")
    return list(value)


def _groups(row: Mapping) -> Example:
    responses, scores = _list(row, "responses"), _list(row, "scores")
    if len(responses) != len(scores):
        raise RowError(f"field 'scores': {len(scores)} scores for {len(responses)} responses")
    texts = tuple(as_text(r, f"responses[{i}]") for i, r in enumerate(responses))
    return Example(_text(row, "prompt"), texts, tuple(_number(s, f"scores[{i}]") for i, s in enumerate(scores)))


def _samples(row: Mapping) -> Example:
    # A model may say nothing: its tokens then are the end token alone, and the text is blank.
    texts, scores, tokens = (_list(row, name) for name in ("responses", "scores", "tokens"))
    if not len(texts) == len(scores) == len(tokens):
        raise RowError(f"field 'tokens': {len(tokens)} lists for {len(texts)} responses and {len(scores)} scores")
    for i, (text, ids) in enumerate(zip(texts, tokens, strict=True)):
        if not isinstance(text, str):
            raise RowError(f"field 'responses[{i}]': expected text, got {_short(text)}")
        if not (isinstance(ids, list | tuple) and ids and all(type(n) is int and n >= 0 for n in ids)):
            raise RowError(f"field 'tokens[{i}]': expected token ids, at least one, got {_short(ids)}")
    numbers = tuple(_number(s, f"scores[{i}]") for i, s in enumerate(scores))
    return Example(_text(row, "prompt"), tuple(texts), numbers, tokens=tuple(map(tuple, tokens)))


def _prompts(row: Mapping) -> Example:
    return Example(_text(row, "prompt"), ())


def _ultrafeedback(row: Mapping) -> Example:
    texts, scores = [], []
    for i, completion in enumerate(_list(row, "completions")):
        if not isinstance(completion, Mapping):
            raise RowError(f"field 'completions[{i}]': expected an object, got {_short(completion)}")
        for name, values, convert in (("response", texts, as_text), ("overall_score", scores, _number)):
            values.append(convert(completion.get(name), f"completions[{i}].{name}"))
    return Example(_text(row, "instruction"), tuple(texts), tuple(scores))


def _pairs(row: Mapping) -> Example:
    chosen, rejected = _text(row, "chosen"), _text(row, "rejected")
    prompt = _text(row, "prompt") if row.get("prompt") is not None else None
    if prompt is None or isinstance(prompt, str) and not isinstance(chosen, str) and not isinstance(rejected, str):
        # A text beside whole conversations repeats what the user says first in them (ultrafeedback_binarized).
        if isinstance(prompt, str) and chosen[0]["role"] == rejected[0]["role"] == "assistant":
            return Example(({"role": "user", "content": prompt},), (chosen, rejected), (1.0, 0.0))
        prompt, chosen, rejected = _implicit_prompt(chosen, rejected)
    elif not isinstance(prompt, str):
        # TRL also writes the whole conversation in `chosen` and `rejected`.
        chosen, rejected = (r[len(prompt) :] if r[: len(prompt)] == prompt else r for r in (chosen, rejected))
    if not chosen or not rejected:
        raise RowError("fields 'chosen' and 'rejected': nothing is left after the prompt that they share")
    return Example(prompt, (chosen, rejected), (1.0, 0.0))


def _implicit_prompt(chosen: Text, rejected: Text) -> tuple[Text, Text, Text]:
    """TRL's rule: what chosen and rejected begin with in common is the prompt (for text, up to a word's end)."""
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise RowError("fields 'chosen' and 'rejected': one is text, the other a conversation")
    n = 0
    while n < min(len(chosen), len(rejected)) and chosen[n] == rejected[n]:
        n += 1
    if isinstance(chosen, str):
        while n and not (chosen[n - 1].isspace() or (n < len(chosen) and chosen[n].isspace())):
            n -= 1
        # As in TRL, a space between prompt and response belongs to the response: so do tokenizers join them.
        n -= n > 0 and chosen[n - 1] == " "
    if not n:
        raise RowError("field 'prompt' is missing, and 'chosen' and 'rejected' do not begin alike")
    return chosen[:n], chosen[n:], rejected[n:]


def _unpaired(row: Mapping) -> Example:
    label = _field(row, "label")
    if not isinstance(label, bool) and label not in (0, 1):
        raise RowError(f"field 'label': expected true or false, got {label!r}")
    return Example(_text(row, "prompt"), (_text(row, "completion"),), desirable=bool(label))


def _gdpo(row: Mapping) -> Example:
    options = tuple(str(as_text(o, f"options[{i}]")) for i, o in enumerate(_list(row, "options")))
    if len(options) < 2 or len(set(options)) != len(options):
        raise RowError(f"field 'options': expected at least two different beliefs, got {_short(list(options))}")
    chosen = {name: _choice(row, name, options) for name in ("accept_choice_id", "reject_choice_id")}
    return Example(
        _text(row, "prompt"),
        (_text(row, "accept_response"), _text(row, "reject_response")),
        (1.0, 0.0),
        opinion=Opinion(options, _probabilities(row, options), chosen["accept_choice_id"], chosen["reject_choice_id"]),
    )


def _choice(row: Mapping, name: str, options: tuple[str, ...]) -> int:
    value = _field(row, name)
    if isinstance(value, str) and value.isdigit():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < len(options):
        raise RowError(f"field {name!r}: {value!r} is not the number of one of the {len(options)} options, from 0")
    written = row.get(name.removesuffix("_id"))
    if written is not None and written != options[value]:
        raise RowError(f"field {name.removesuffix('_id')!r}: {written!r} is not option {value}, {options[value]!r}")
    return value


def _probabilities(row: Mapping, options: tuple[str, ...]) -> tuple[float, ...] | None:
    if row.get("probabilities") is None:
        return None
    values = [_number(p, f"probabilities[{i}]") for i, p in enumerate(_list(row, "probabilities"))]
    if len(values) != len(options) or min(values) < 0 or abs(sum(values) - 1) > 1e-2:
        raise RowError(f"field 'probabilities': expected {len(options)} numbers that sum to 1, got {_short(values)}")
    return tuple(p / sum(values) for p in values)


def _complete(read: Callable[[Mapping], Example]) -> Callable[[Mapping], Example]:
    """With what is the same in every format: optional columns, and answers that end with the assistant's words."""

    def complete(row: Mapping) -> Example:
        example = read(row)
        for i, response in enumerate(example.responses):
            if not isinstance(response, str) and response[-1]["role"] != "assistant":
                raise RowError(f"response {i}: the last message must be the assistant's, not of {response[-1]['role']!r}")
        group, context = (str(row.get(name) or "") for name in ("group", "context"))
        return dataclasses.replace(example, group=group, context=context)

    return complete


def read_responses(row: Mapping, data_format: str) -> Example:
    """The prompt and the responses of a row, its scores left out; a row of format `groups` need not have any.

    Responses that a model generated may be empty: their tokens then are the end token alone.
    """
    if data_format != "groups":
        return dataclasses.replace(READERS[data_format](row), scores=None)
    texts = [t if isinstance(t, str) else as_text(t, f"responses[{i}]") for i, t in enumerate(_list(row, "responses"))]
    return _complete(lambda row: Example(_text(row, "prompt"), tuple(texts)))(row)


READERS: dict[str, Callable[[Mapping], Example]] = {
    "groups": _complete(_groups),
    "samples": _complete(_samples),
    "prompts": _complete(_prompts),
    "ultrafeedback": _complete(_ultrafeedback),
    "pairs": _complete(_pairs),
    "unpaired": _complete(_unpaired),
    "gdpo": _complete(_gdpo),
}
