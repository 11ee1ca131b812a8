"""Lengths in place of data: token counts of prompts and answers, as a data set that a loader can pack.

A file has a line a prompt, `{"prompt": 120, "responses": [300, 41]}`: tokens of the prompt, and of each answer with its
end-of-sequence token. Some come with the package and are given by name, see `tools/typical_lengths.py`.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from align_jax.data import DataConfig, Segment, TokenGroup
from align_jax.data.packing.plan import GroupSize, group_size
from align_jax.errors import UserError
from align_jax.objectives import Objective, name_of
from align_jax.parsing import json_of
from align_jax.registry import suggest

_FOLDER = Path(__file__).parent / "lengths"


@dataclasses.dataclass(frozen=True)
class GroupLengths:
    """Tokens of a prompt and of each of its answers, at least one each."""

    prompt: int
    responses: tuple[int, ...]


def packaged_lengths() -> dict[str, Path]:
    """Name -> file of the lengths that come with the package."""
    return {file.stem: file for file in sorted(_FOLDER.glob("*.jsonl"))}


def read_lengths(given: str, option: str = "--lengths") -> list[GroupLengths]:
    """The lengths of a file, or of one that comes with the package, by its name.

    Args:
      option: where that was given, for errors.

    Raises:
      UserError: no such file or name, or a line that is not as said above; with its place.
    """
    path, known = Path(given), packaged_lengths()
    if not path.exists():
        near = suggest(given, known)
        if given not in known:
            raise UserError(f"{option} {given}: no such file, and none that comes with align_jax; {near}{', '.join(known)} do")
        path = known[given]
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{option} {given}: cannot be read: {error}") from error
    found = [_group(line, f"{option} {given}:{number}") for number, line in enumerate(lines, start=1) if line.strip()]
    if not found:
        raise UserError(f"{option} {given}: has no line")
    return found


def _group(line: str, where: str) -> GroupLengths:
    example = '{"prompt": 120, "responses": [300, 41]}'
    try:
        row = json_of(line)
    except ValueError as error:
        raise UserError(f"{where}: is no JSON ({error}); a line is {example}") from error
    prompt, responses = (row.get(key) for key in ("prompt", "responses")) if isinstance(row, dict) else (None, None)
    if not (isinstance(responses, list) and responses and all(_counts(x) for x in (prompt, *responses))):
        raise UserError(f"{where}: {line.strip()[:80]} is not like {example}, with whole numbers from 1 to {_MOST:,}")
    return GroupLengths(prompt, tuple(responses))


_MOST = 1 << 24  # tokens of a text


def _counts(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= _MOST


class LengthData:
    """Groups of these lengths, cut as the `data` section says. What a `BatchLoader` asks of a data set.

    Args:
      lengths: of the groups. config: which lengths are cut, and how many answers are kept (the first ones).
      objective: which slots and labels a group has.
      vocab_size: tokens are random ones below it; by default all are 0.

    Attributes:
      slots: K. limits: positions of the longest prompt, and of the longest answer, that there may be.

    Raises:
      UserError: an objective whose groups are more than a prompt and its answers, or answers too few for it.
    """

    def __init__(self, lengths: list[GroupLengths], config: DataConfig, objective: Objective, vocab_size: int = 1):
        arrangement, self._objective, self._vocab_size = objective.arrangement, objective, vocab_size
        most = arrangement.responses or config.max_responses
        self._lengths = [
            GroupLengths(
                min(group.prompt, config.max_prompt_tokens),
                tuple(min(n, config.max_response_tokens) for n in group.responses[:most]),
            )
            for group in lengths
        ]
        fixed = arrangement.responses or 1
        self._lengths = [group for group in self._lengths if len(group.responses) >= fixed]
        if arrangement.random_labels(fixed) is None:
            raise UserError(
                f"lengths: a prompt and its answers do not say what objective {name_of(objective)} computes of a row; give "
                "data.train in their place"
            )
        if not self._lengths:
            raise UserError(f"lengths: no prompt has the {fixed} answers that objective {name_of(objective)} needs")
        self.slots = max(len(group.responses) for group in self._lengths)
        ends = objective.head == "score"
        self.limits = max(1, config.max_prompt_tokens - 1), config.max_response_tokens + ends

    def __len__(self) -> int:
        return len(self._lengths)

    def __getitem__(self, index: int) -> TokenGroup:
        group, arrangement = self._lengths[index], self._objective.arrangement
        k, rng = len(group.responses), np.random.default_rng(int(index))
        labels = {name: np.zeros(shape, dtype) for name, (shape, dtype) in arrangement.label_shapes(k).items()}
        labels |= {name: np.asarray(value) for name, value in arrangement.random_labels(k).items()}
        return TokenGroup(
            int(index),
            self._tokens(rng, group.prompt),
            tuple(Segment(self._tokens(rng, n), slot) for slot, n in enumerate(group.responses)),
            k,
            labels,
            self._objective.head == "score",
            tuple(name for name, label in arrangement.labels.items() if label.per_response),
        )

    def _tokens(self, rng: np.random.Generator, count: int) -> np.ndarray:
        return rng.integers(0, self._vocab_size, count).astype(np.int32)

    @property
    def sizes(self) -> list[GroupSize]:
        """Lengths of all groups."""
        return [group_size(self[i]) for i in range(len(self))]

    def describe(self) -> str:
        """One line: how many there are, and how long they are."""
        prompts, answers = ([g.prompt for g in self._lengths], [n for g in self._lengths for n in g.responses])
        return (
            f"{len(self)} prompts of {np.mean(prompts):.0f} tokens, {len(answers)} answers of {np.mean(answers):.0f} tokens "
            "(means, after cutting)"
        )
