"""In what the layers of a model differ from one another: their window, and how queries and keys are rotated.

All layers are one scanned body. What differs goes in by a number: the layer's kind, which chooses among a few rotations and
a few visibilities that are made once for all layers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from align_jax.models.config import ModelConfig

# How queries and keys are rotated: by the model's frequencies, by those of layers with a window, or not at all.
GLOBAL, LOCAL, NOT = "global", "local", "not"


class Kind(NamedTuple):
    """What a layer has: its window, None for none, and its rotation."""

    window: int | None
    rope: str


class Kinds(NamedTuple):
    """The kinds that there are, and the number of the kind that each layer has."""

    kinds: tuple[Kind, ...]
    of_layers: tuple[int, ...]

    @property
    def windows(self) -> tuple[int | None, ...]:
        """Of each kind."""
        return tuple(kind.window for kind in self.kinds)

    @property
    def ropes(self) -> tuple[str, ...]:
        """Of each kind."""
        return tuple(kind.rope for kind in self.kinds)


def kinds_of(config: ModelConfig) -> Kinds:
    """The kinds of a model's layers, in the order of the first layer of each."""
    windowed = config.layer_windows or (config.sliding_window is not None,) * config.layers
    rotated = config.layer_ropes or (True,) * config.layers

    def kind(window: bool, rope: bool) -> Kind:
        local = GLOBAL if not window or config.local_rope_theta is None else LOCAL
        return Kind(config.sliding_window if window else None, local if rope else NOT)

    each = [kind(*layer) for layer in zip(windowed, rotated, strict=True)]
    kinds = tuple(dict.fromkeys(each))
    return Kinds(kinds, tuple(map(kinds.index, each)))


def mean_over_layers(config: ModelConfig, of_window: Callable[[int | None], int]) -> int:
    """The mean over layers of what depends on a layer's window, rounded; `of_window` itself where all have the same."""
    kinds = kinds_of(config)
    windows = [kinds.windows[n] for n in kinds.of_layers]
    found = {window: of_window(window) for window in dict.fromkeys(windows)}
    return found[windows[0]] if len(found) == 1 else round(sum(found[window] for window in windows) / len(windows))
