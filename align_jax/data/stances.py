"""Answers whose beliefs were read off their texts, as rows of format gdpo with the distribution of each prompt."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from align_jax.data.config import DataConfig
from align_jax.data.encode import plain_key
from align_jax.data.formats.example import Example, Opinion
from align_jax.data.regroup import TARGETS
from align_jax.data.tallies import Tallies
from align_jax.terminal import plural

Row = dict[str, Any]
_DIGITS = 6


@dataclasses.dataclass(frozen=True)
class Stance:
    """An answer with the belief that it expresses.

    Attributes:
      row: number of its example. response: which of its answers.
      accepted: whether it is one that people agree with: then it counts in the distribution.
      posterior: float64 `[N]`, the probability of each belief given the answer.
    """

    row: int
    response: int
    accepted: bool
    posterior: np.ndarray

    @property
    def belief(self) -> int:
        return int(np.argmax(self.posterior))

    @property
    def sure(self) -> float:
        """The probability of that belief."""
        return float(self.posterior[self.belief])


def accepted_answers(example: Example) -> list[bool]:
    """Which answers of a row people agree with: the accepted text of a belief, a desirable one, those scored above the row's
    mean; all of them where nothing tells them apart.
    """
    if example.desirable is not None:
        return [example.desirable] * len(example.responses)
    scores = example.scores
    if scores is None or len(set(scores)) < 2:
        return [True] * len(example.responses)
    return [score > float(np.mean(scores)) for score in scores]


def opinion_rows(
    examples: Sequence[Example], options: Sequence[tuple[str, ...]], stances: Sequence[Stance], config: DataConfig
) -> tuple[list[Row], list[str], int]:
    """A row of format gdpo for every accepted answer, set against an answer of another belief.

    That is a rejected one of its own row where there is one; else one of the other answers to its prompt, in turn; else a
    rejected one of its row that has the same belief and another text, which is counted in the notes. p* is the posterior of the
    accepted answers' beliefs by prompt (and group and context), each counted with its posterior. Further columns:
    `probabilities_low` and `probabilities_high`, the 95% interval of each probability; `answers`, how many were counted;
    `belief_posterior`, of the accepted answer.

    Args:
      examples: the rows. options: the beliefs of each. stances: of the answers that are used.
      config: how distributions are estimated.

    Returns:
      The rows, what there is to say of them and of the distributions, and how many accepted answers have none to be set
      against.
    """
    tallies, keys = Tallies(), [None] * len(examples)
    by_prompt: dict[str, list[Stance]] = collections.defaultdict(list)
    for stance in stances:
        example = _believing(examples[stance.row], options[stance.row], stance)
        keys[stance.row] = key = plain_key(example)
        by_prompt[key].append(stance)
        if stance.accepted:
            tallies.add(example, stance.posterior)
    known, notes = tallies.targets(dataclasses.replace(config, target="estimate"))
    own = collections.defaultdict(list)
    for stance in stances:
        if not stance.accepted:
            own[stance.row].append(stance)
    others = {key: _Others(found) for key, found in by_prompt.items()}
    rows, alone, alike = [], 0, 0
    for stance in (stance for stance in stances if stance.accepted):
        key = keys[stance.row]
        against = next((o for o in own[stance.row] if o.belief != stance.belief), None) or others[key].next(stance.belief)
        if against is None:
            texts = examples[stance.row].responses
            against = next((o for o in own[stance.row] if texts[o.response] != texts[stance.response]), None)
            alike += against is not None
        if against is None:
            alone += 1
            continue
        rows.append(_row(examples, options[stance.row], (stance, against), known[key], tallies.by_prompt[key].counts.sum()))
    if alike:
        rows_are = plural(alike, "row is", "rows are")
        said = f"{rows_are} set against a rejected answer of the same belief: no other answer to the prompt has another belief"
        notes = [*notes, said]
    return rows, notes, alone


class _Others:
    """The answers to a prompt that are of another belief than a given one, each in turn."""

    def __init__(self, stances: Sequence[Stance]):
        self._stances, self._turn = stances, collections.Counter()
        self._of: dict[int, list[Stance]] = {}

    def next(self, belief: int) -> Stance | None:
        if belief not in self._of:
            self._of[belief] = [stance for stance in self._stances if stance.belief != belief]
        found = self._of[belief]
        self._turn[belief] += 1
        return found[(self._turn[belief] - 1) % len(found)] if found else None


def _believing(example: Example, options: tuple[str, ...], stance: Stance) -> Example:
    return dataclasses.replace(example, opinion=Opinion(options, None, stance.belief, stance.belief))


def _row(examples, options: tuple[str, ...], pair: tuple[Stance, Stance], known, answers: float) -> Row:
    accepted, rejected = pair
    texts = tuple(examples[stance.row].responses[stance.response] for stance in pair)
    opinion = Opinion(options, _rounded(known.mean), accepted.belief, rejected.belief, round(float(answers), _DIGITS))
    made = dataclasses.replace(examples[accepted.row], responses=texts, scores=(1.0, 0.0), desirable=None, opinion=opinion)
    (row,) = TARGETS["gdpo"](made)
    low, high = known.interval()
    return row | {
        "probabilities_low": list(_rounded(low)),
        "probabilities_high": list(_rounded(high)),
        "belief_posterior": list(_rounded(accepted.posterior)),
    }


def _rounded(values: np.ndarray) -> tuple[float, ...]:
    return tuple(round(float(value), _DIGITS) for value in values)
