"""The belief that an answer expresses, by a language model's own posterior."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from scipy.special import softmax

from align_jax.data import Encoder, Segment, TokenGroup
from align_jax.data.encode import plain_key
from align_jax.data.formats.example import Example, Opinion

_ANSWERS = 4  # of one prompt that are scored together, each after every belief


@dataclasses.dataclass(frozen=True)
class StanceGroup:
    """Answers to one prompt as tokens: N belief statements, then each answer after each of them.

    Attributes:
      tokens: the group, of `N + N A` slots. places: (row, response) of the A answers. beliefs: N. cut: how many were cut.
    """

    tokens: TokenGroup
    places: tuple[tuple[int, int], ...]
    beliefs: int
    cut: int

    def posteriors(self, logps: np.ndarray, uniform: bool = False) -> np.ndarray:
        """The posterior of each answer's belief.

            p(b | y, x) = softmax_b [ log pi(b|x) + log pi(y|b,x) ]

        Args:
          logps: `[N + N A]`, of the slots.
          uniform: leave `log pi(b|x)` out, which says nothing of beliefs where the model never learned their statements.

        Returns:
          float64 `[A, N]`.
        """
        values = np.asarray(logps, np.float64)
        after = values[self.beliefs :].reshape(len(self.places), self.beliefs)
        return softmax(after + (0.0 if uniform else values[: self.beliefs]), axis=1)


def stance_groups(examples: Sequence[Example], options: Sequence[tuple[str, ...]], encoder: Encoder) -> Iterator[StanceGroup]:
    """The answers of all rows, those to one prompt together.

    Args:
      examples: the rows. options: the beliefs of each.

    Raises:
      RowError: a row that cannot be rendered, or beliefs of which one begins with another.
    """
    by_prompt: dict[tuple, list[tuple[int, int]]] = collections.defaultdict(list)
    for row, example in enumerate(examples):
        bare = dataclasses.replace(example, opinion=Opinion(options[row], None, 0, 0))
        for k, response in enumerate(example.responses):
            by_prompt[plain_key(bare), isinstance(response, str)].append((row, k))
    for places in by_prompt.values():
        for start in range(0, len(places), _ANSWERS):
            yield _group(examples, options, encoder, tuple(places[start : start + _ANSWERS]))


def _group(examples, options, encoder: Encoder, places: tuple[tuple[int, int], ...]) -> StanceGroup:
    row = places[0][0]
    prompt = encoder.prompt(examples[row])
    statements = encoder.beliefs(prompt, options[row])
    count = len(statements)
    segments, cut = [Segment(ids, b) for b, ids in enumerate(statements)], 0
    for a, (where, k) in enumerate(places):
        for b, ids in enumerate(statements):
            answer = encoder.after_belief(prompt, (b, options[row][b]), ids, examples[where].responses[k])
            segments.append(Segment(answer.tokens, count + a * count + b, b, answer.scored))
        cut += answer.cut
    return StanceGroup(TokenGroup(row, prompt.ids, tuple(segments), len(segments)), places, count, cut)


def score_stances(
    groups: Sequence[StanceGroup],
    score: Callable[[Sequence[TokenGroup]], Iterator[tuple[int, np.ndarray]]],
    uniform: bool = False,
) -> Iterator[tuple[tuple[int, int], np.ndarray]]:
    """((row, response), posterior `[N]`) of every answer, as they are computed.

    Args:
      score: groups -> (place in them, log-probs of its slots), `FixedScorer.groups`. uniform: see `StanceGroup.posteriors`.
    """
    for place, logps in score([group.tokens for group in groups]):
        yield from zip(groups[place].places, groups[place].posteriors(logps, uniform), strict=True)
