"""What a label of a group looks like."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Label:
    """A label of a group, without the axis G.

    Attributes:
      dtype: of NumPy.
      axes: the size of each axis, or its name: `K` response slots (always first), `N` beliefs, `T` texts. Sizes and named axes
        other than K are the same for all groups of a data set.
    """

    dtype: str
    axes: tuple[str | int, ...] = ()

    @property
    def per_response(self) -> bool:
        """Whether there is a value for every response."""
        return self.axes[:1] == ("K",)

    def shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """The shape where the named axes have these sizes."""
        return tuple(sizes[axis] if isinstance(axis, str) else axis for axis in self.axes)
