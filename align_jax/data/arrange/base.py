"""What every arrangement is: which groups the rows of a data set become, and what stands in the slots of each."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np

from align_jax import registry
from align_jax.data.arrange.arranger import Arranger
from align_jax.data.arrange.labels import Label
from align_jax.data.arrange.survey import Item, Survey
from align_jax.data.config import DataConfig
from align_jax.data.formats import Format
from align_jax.data.formats import spelled as name_of_format
from align_jax.data.formats.example import Example
from align_jax.data.records import Segment, TokenGroup


@dataclasses.dataclass(frozen=True)
class Filled:
    """The slots of one group.

    Attributes:
      segments: responses, beliefs and texts. labels: what `Arrangement.labels` says, without the axis G.
      cut: how many texts were cut. slots: K of the group; None is one per segment.
    """

    segments: list[Segment]
    labels: dict[str, np.ndarray]
    cut: int
    slots: int | None = None


@dataclasses.dataclass(frozen=True)
class Arrangement:
    """Base of all arrangements; a subclass defines `fill`, and `labels` where it has any.

    Its fields are its parameters. What others have to know of an objective's data, they ask here.

    Class attributes:
      name: for an arrangement of this folder.
      responses: how many slots every group has: 2 for a pair; None for any number.
      has_beliefs: whether the first slots are belief statements with a label `target_probs`, and so rows need beliefs.
      contrasts: whether responses to a prompt are set against one another, so that single ones cannot serve.
      needs: what a row that is not dropped has, for the user.
    """

    name: ClassVar[str]
    responses: ClassVar[int | None] = None
    has_beliefs: ClassVar[bool] = False
    contrasts: ClassVar[bool] = True
    needs: ClassVar[str] = "two different scores"

    @property
    def labels(self) -> dict[str, Label]:
        """The labels of every group, `fill` gives them; those that every arrangement has are left out."""
        return {}

    def key(self) -> tuple[str, str]:
        """What tells its groups from those of other arrangements, for fingerprints."""
        parameters = dataclasses.astuple(self)
        # The word of an arrangement without parameters: checkpoints that exist know their data by it.
        return registry.spelled(self, __package__), repr(parameters) if parameters else "dpo"

    def refusal(self, data_format: Format) -> str | None:
        """Why a format cannot serve, or None where it can."""
        name = name_of_format(data_format)
        if data_format.responses == 0:
            return f"data.format {name!r} has no responses: it is for on-policy rounds, which sample them"
        if self.has_beliefs and not data_format.has_beliefs:
            return f"the objective needs beliefs, which data.format {name!r} does not have; use format gdpo"
        if self.contrasts and data_format.responses == 1:
            return f"data.format {name!r} has one response per row, but the objective contrasts several; use kto or sft"
        return None

    def items(self, row: int, example: Example) -> list[Item]:
        """The groups that a row becomes; none drops it."""
        return [Item(row)]

    def check(self, example: Example) -> None:
        """RowError for a row that lacks what the objective learns from."""

    def is_level(self, example: Example) -> bool:
        """Whether a group that is kept gives no contrast; they are counted and said."""
        return False

    def survey(self, rows: Iterable[tuple[int, Example]], config: DataConfig) -> Survey:
        """Looks through all examples once, and keeps none.

        Args:
          rows: row number and example of every row that is not malformed; can be read once.
          config: the data section.
        """
        items, dropped, level, most = [], 0, 0, 0
        for row, example in rows:
            found = self.items(row, example)
            items += found
            if not found:
                dropped += 1
                continue
            level += self.is_level(example)
            k = len(example.responses)
            most = max(most, k if config.max_responses is None else min(k, config.max_responses))
        return Survey(items, dropped, most if self.responses is None else self.responses, level)

    def fill(self, index: int, item: Item, example: Example, arranger: Arranger) -> Filled:
        """What stands in the slots of a group.

        Args:
          index: number of the group. item: which it is. example: the row that it is made of.
          arranger: everything else: tokens, other rows, the survey, the seed.
        """
        raise TypeError(f"{type(self).__name__} does not define `fill`")

    def group(self, index: int, arranger: Arranger) -> TokenGroup:
        """A group as tokens, with the labels that every arrangement has: what was cut, and the number of its `group`."""
        item = arranger.survey.items[index]
        example = arranger.example(item.row)
        prompt = arranger.encoder.prompt(example)
        filled, wanted = self.fill(index, item, example, arranger), self.labels
        if filled.labels.keys() != wanted.keys():
            made, said = sorted(filled.labels), sorted(wanted)
            raise ValueError(f"{type(self).__name__}.fill gives the labels {made}, but its `labels` are {said}")
        labels = {**filled.labels, "truncated": np.asarray([prompt.cut, filled.cut], np.int32)}
        if arranger.group_ids:
            labels["group_id"] = np.asarray(arranger.group_ids.get(example.group, -1), np.int32)
        if arranger.source_ids:
            labels["source_id"] = np.asarray(arranger.source_ids[example.source], np.int32)
        slots = len(filled.segments) if filled.slots is None else filled.slots
        per_response = tuple(name for name, label in wanted.items() if label.per_response)
        return TokenGroup(index, prompt.ids, tuple(filled.segments), slots, labels, arranger.ends, per_response)

    def sizes(self, slots: int) -> dict[str, int]:
        """Sizes of the named axes of labels in a group of K slots."""
        return {"K": slots}

    def label_shapes(self, slots: int) -> dict[str, tuple[tuple[int, ...], str]]:
        """(shape without the axis G, dtype) of every label of a group of K slots."""
        everything = {**self.labels, "truncated": Label("int32", (2,))}
        return {name: (label.shape(self.sizes(slots)), label.dtype) for name, label in everything.items()}

    def random_labels(self, slots: int) -> dict[str, Any] | None:
        """Labels of a group of K random responses, for benchmarks; None where only data can give them."""
        return None
