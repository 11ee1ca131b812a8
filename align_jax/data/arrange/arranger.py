"""What an arrangement makes groups from."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np

from align_jax.data.arrange.answers import encode_answer, segment_of
from align_jax.data.arrange.survey import Item, Survey
from align_jax.data.encode import Answer, Encoder
from align_jax.data.formats.example import Example
from align_jax.data.records import Segment
from align_jax.errors import UserError


class Arranger:
    """The rows of a data set, their tokens, and what was found in all of them.

    Args:
      example: row number -> example.
      survey: what the arrangement's own `survey` gave.
      encoder: text to tokens; its `config` is the `data` section.
      seed: decides which responses `max_responses` keeps and which completions are mismatched.
      group_names: values of the `group` column, sorted. source_names: of a mixture's data sets. of: what it is, for errors.
      ends: as `TokenGroup.ends`.
    """

    def __init__(
        self,
        example: Callable[[int], Example],
        survey: Survey,
        encoder: Encoder,
        *,
        seed: int,
        group_names: Sequence[str] = (),
        source_names: Sequence[str] = (),
        of: str = "the data",
        ends: bool = False,
    ):
        self.of = of
        self.example, self.survey, self.encoder, self.seed, self.ends = example, survey, encoder, seed, ends
        self.group_ids = {name: i for i, name in enumerate(group_names)}
        self.source_ids = {name: i for i, name in enumerate(source_names)}

    def answer(self, example: Example, which: int) -> Answer:
        """One response as tokens."""
        return encode_answer(self.encoder, self.encoder.prompt(example), example, which)

    def segments(self, example: Example, keep: Sequence[int]) -> tuple[list[Segment], int]:
        """Responses of an example in slots 0, 1, ..., and how many of them were cut."""
        prompt = self.encoder.prompt(example)
        answers = [encode_answer(self.encoder, prompt, example, i) for i in keep]
        return [segment_of(answer, k) for k, answer in enumerate(answers)], sum(answer.cut for answer in answers)

    def stranger(self, index: int, example: Example) -> tuple[Item, Example]:
        """An item with another prompt: the next of a cycle through all items, so that each is (nearly) one other's."""
        at = int(self._mismatch[index])
        for _ in range(len(self._mismatch)):
            item = self.survey.items[at]
            other = self.example(item.row)
            if other.prompt != example.prompt:
                return item, other
            at = int(self._mismatch[at])
        raise UserError(
            f"{self.of}: KTO needs at least two different prompts, for its estimate of the KL divergence, and there is one "
            f"(of {len(self._mismatch)} groups)"
        )

    @functools.cached_property
    def _mismatch(self) -> np.ndarray:
        order = np.random.default_rng((self.seed, 17)).permutation(len(self.survey.items))
        following = np.empty(len(order), np.int64)
        following[order] = np.roll(order, -1)
        return following
