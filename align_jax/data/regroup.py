"""Rows of any format as rows of another: pairs of one prompt joined into groups, groups taken apart."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from align_jax.data.encode import plain_key
from align_jax.data.formats.example import Example, Text
from align_jax.data.held_out import chosen_prompts, prompt_digest
from align_jax.errors import UserError
from align_jax.terminal import plural

Row = dict[str, Any]


@dataclasses.dataclass
class ConversionCounts:
    """What became of rows.

    Attributes:
      rows: that were read. groups: that came out. joined: rows that went into a group of several.
      repeated: responses that occurred again in their group, of which one stays; `disagreeing`: those with other scores.
      rescored: whether a reward model's scores took the place of all. dropped: reason -> rows that were left out for it.
    """

    rows: int = 0
    groups: int = 0
    joined: int = 0
    repeated: int = 0
    disagreeing: int = 0
    rescored: bool = False
    dropped: collections.Counter = dataclasses.field(default_factory=collections.Counter)

    def _scores(self) -> str:
        """What became of the scores of repeated responses."""
        if self.rescored:
            return "scored by the reward model like the others"
        what = "with its mean score (of pairs: the share that it won)"
        if self.repeated > 1:
            what = "with their mean score (of pairs: the share that they won)"
        return f"{what}; {self.disagreeing} had different ones"

    def describe(self) -> list[str]:
        """Lines for people."""
        lines = [f"{plural(self.rows, 'row')} read, {self.groups} written"]
        if self.joined:
            lines[0] += f", {self.joined} of them joined with others of the same prompt"
        if self.repeated:
            lines.append(
                plural(
                    self.repeated,
                    "response occurred more than once in its group and stands there once",
                    "responses occurred more than once in their group and stand there once",
                )
                + f", {self._scores()}"
            )
        return lines + [f"{plural(count, 'row')} left out: {reason}" for reason, count in self.dropped.items()]


def scored(example: Example) -> Example:
    """The example with scores where it has a label: 1 for desirable, 0 for not."""
    if example.scores is None and example.desirable is not None:
        return dataclasses.replace(example, scores=(float(example.desirable),), desirable=None)
    return example


def joined(examples: Iterable[Example], counts: ConversionCounts) -> list[Example]:
    """One example per prompt (with the same group, context, tools and documents), in the order in which they first occur.

    A response that occurs several times stands once, with the mean of its scores: of pairs, whose scores are 1 and 0, that is
    the share of its comparisons that it won.

    Raises:
      UserError: rows with beliefs, which are no groups of responses.
    """
    found: dict[str, list[Example]] = {}
    for example in examples:
        if example.opinion is not None:
            raise UserError("--join: rows with beliefs stay as they are; training joins those of a prompt by itself")
        found.setdefault(plain_key(example), []).append(scored(example))
    return [_one(members, counts) for members in found.values()]


def _one(members: list[Example], counts: ConversionCounts) -> Example:
    counts.joined += len(members) if len(members) > 1 else 0
    at: dict[str, int] = {}
    responses: list[Text] = []
    scores: list[list[float]] = []
    tokens: list[tuple[int, ...]] = []
    for example in members:
        for k, response in enumerate(example.responses):
            where = at.setdefault(repr(response), len(responses))
            if where == len(responses):
                responses.append(response)
                scores.append([])
                tokens += [example.tokens[k]] if example.tokens is not None else []
            if example.scores is not None:
                scores[where].append(example.scores[k])
    counts.repeated += sum(len(s) > 1 for s in scores)
    counts.disagreeing += sum(len(set(s)) > 1 for s in scores)
    return dataclasses.replace(
        members[0],
        responses=tuple(responses),
        scores=tuple(float(np.mean(s)) for s in scores) if all(scores) else None,
        tokens=tuple(tokens) if len(tokens) == len(responses) else None,
    )


def held_out(examples: Sequence[Example], fraction: float) -> list[bool]:
    """Which examples are held out: those whose prompts `data.eval: fraction` would hold out of the same rows.

    Raises:
      UserError: fewer than two different prompts.
    """
    keys = [prompt_digest(example) for example in examples]
    chosen = chosen_prompts(keys, fraction)
    if not chosen:
        raise UserError(f"--split: {fraction} of the rows cannot be held out: they have {len(set(keys))} different prompts")
    return [key in chosen for key in keys]


def rows_as(to: str, examples: Iterable[Example], counts: ConversionCounts) -> list[Row]:
    """Examples as rows of a format.

    Args:
      to: a name of `TARGETS`.

    Raises:
      UserError: examples that cannot be such rows.
    """
    rows = []
    for example in examples:
        found = TARGETS[to](scored(example))
        if isinstance(found, str):
            counts.dropped[found] += 1
        else:
            rows += found
    if to == "prompts":
        rows = list({repr(row): row for row in rows}.values())
    counts.groups = len(rows)
    return rows


def _text(text: Text) -> Any:
    return text if isinstance(text, str) else [dict(message) for message in text]


def _common(example: Example) -> Row:
    """The columns that all formats have."""
    row = {"prompt": _text(example.prompt)}
    row |= {name: value for name in ("group", "context") if (value := getattr(example, name)) != ""}
    return row | {name: list(value) for name in ("tools", "documents") if (value := getattr(example, name)) is not None}


def _groups(example: Example) -> list[Row] | str:
    if not example.responses:
        return "no responses"
    if example.scores is None:
        return "no scores; --reward-model adds them"
    return [_common(example) | {"responses": list(map(_text, example.responses)), "scores": list(example.scores)}]


def _samples(example: Example) -> list[Row] | str:
    if example.tokens is None:
        raise UserError("--to samples: the rows have no tokens that were sampled; --to groups has texts alone")
    found = _groups(example)
    return found if isinstance(found, str) else [found[0] | {"tokens": list(map(list, example.tokens))}]


def _pairs(example: Example) -> list[Row] | str:
    if example.scores is None or len(set(example.scores)) < 2:
        return "no two responses with different scores"
    best, worst = (example.responses[int(which(example.scores))] for which in (np.argmax, np.argmin))
    return [_common(example) | {"chosen": _text(best), "rejected": _text(worst)}]


def _unpaired(example: Example) -> list[Row] | str:
    if example.scores is None:
        return "no scores; --reward-model adds them"
    if len(example.responses) > 1 and len(set(example.scores)) < 2:
        return "one score for all responses"
    middle = float(np.mean(example.scores)) if len(example.responses) > 1 else 0.5
    pairs = zip(example.responses, example.scores, strict=True)
    return [_common(example) | {"completion": _text(text), "label": bool(score > middle)} for text, score in pairs]


def _completions(example: Example) -> list[Row] | str:
    if not example.responses:
        return "no responses"
    if len(example.responses) == 1 and example.scores == (0.0,):
        return "not desirable"
    best = example.responses if example.scores is None else [example.responses[int(np.argmax(example.scores))]]
    return [_common(example) | {"completion": _text(text)} for text in best]


def _prompts(example: Example) -> list[Row] | str:
    return [_common(example)]


def _gdpo(example: Example) -> list[Row] | str:
    opinion = example.opinion
    if opinion is None:
        raise UserError("--to gdpo: the rows have no beliefs")
    row = _common(example) | {"options": list(opinion.options)}
    if opinion.probabilities is not None:
        row["probabilities"] = list(opinion.probabilities)
    if opinion.answers is not None:
        row["answers"] = opinion.answers
    for name, number, response in zip(
        ("accept", "reject"), (opinion.accepted, opinion.rejected), example.responses, strict=True
    ):
        row[f"{name}_response"] = _text(response)
        if number is not None:
            row |= {f"{name}_choice_id": number, f"{name}_choice": opinion.options[number]}
    return [row]


# The formats that rows can be written in: example -> its rows, or why there are none.
TARGETS: dict[str, Callable[[Example], list[Row] | str]] = {
    "groups": _groups,
    "pairs": _pairs,
    "unpaired": _unpaired,
    "completions": _completions,
    "samples": _samples,
    "prompts": _prompts,
    "gdpo": _gdpo,
}


def _usual(example: Example) -> str:
    """The format in which nothing of an example is lost."""
    if example.opinion is not None:
        return "gdpo"
    if example.tokens is not None:
        return "samples"
    if not example.responses:
        return "prompts"
    return "completions" if example.scores is example.desirable is None else "groups"


def usual_target(examples: Sequence[Example]) -> str:
    """The format in which nothing of such examples is lost.

    Raises:
      UserError: there is none for all of them.
    """
    found = collections.Counter(map(_usual, examples))
    if len(found) > 1:
        needed = ", ".join(f"{name} ({plural(count, 'row')})" for name, count in found.most_common())
        raise UserError(
            f"no one format holds all of these rows; what loses nothing of them is {needed}: convert each data set by itself, "
            "or say with --to which format all become, and what it does not hold is left out and counted"
        )
    return next(iter(found))
