"""Groups of given lengths, without any text: to count what batches of a data set would compute."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from align_jax.data.packing.plan import GroupSize, group_size
from align_jax.data.records import Segment, TokenGroup
from align_jax.errors import UserError
from align_jax.parsing import json_of

Lengths = tuple[int, tuple[int, ...]]  # tokens of a prompt, and of each of its responses


class GroupsOfLengths:
    """A data set for `BatchLoader` whose groups have these lengths; every token is 1.

    Args:
      lengths: of each group: tokens of the prompt, and of each response (its end token included), at least 1 each.

    Attributes:
      slots: K, that of the group with the most responses. limits: positions of the longest prompt and of the longest response.
    """

    def __init__(self, lengths: Sequence[Lengths]):
        self.lengths = list(lengths)
        self.slots = max(len(responses) for _, responses in self.lengths)
        longest = max(n for _, responses in self.lengths for n in responses)
        self.limits = max(1, max(prompt for prompt, _ in self.lengths) - 1), longest

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> TokenGroup:
        prompt, responses = self.lengths[index]
        segments = tuple(Segment(np.ones(n, np.int32), k) for k, n in enumerate(responses))
        return TokenGroup(int(index), np.ones(prompt, np.int32), segments, len(responses))

    @property
    def sizes(self) -> list[GroupSize]:
        """Lengths of all groups, as packing wants them."""
        return [group_size(self[i]) for i in range(len(self))]


def read_lengths(path: str | Path) -> list[Lengths]:
    """The lengths in a file of lines `{"prompt": 120, "responses": [300, 41]}`, token counts.

    Raises:
      UserError: a file that cannot be read, an empty one, or a line that is not like that.
    """
    try:
        lines = Path(path).expanduser().read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    found = [_lengths(line, f"{path}:{number}") for number, line in enumerate(lines, start=1) if line.strip()]
    if not found:
        raise UserError(f"{path}: no line of lengths; write one per group, {_EXAMPLE}")
    return found


_MOST = 1 << 24
_EXAMPLE = '{"prompt": 120, "responses": [300, 41]}'


def _lengths(line: str, where: str) -> Lengths:
    try:
        row = json_of(line)
        prompt, responses = row["prompt"], tuple(row["responses"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{where}: not a line such as {_EXAMPLE}: {line[:80]!r}") from error
    for value in (prompt, *responses):
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _MOST:
            raise UserError(f"{where}: {value!r:.80} is no number of tokens, 1 to {_MOST:,}; a line is such as {_EXAMPLE}")
    if not responses:
        raise UserError(f"{where}: no response; a line is such as {_EXAMPLE}")
    return prompt, responses
