"""The shape of a low-rank adapter: LoRA (arXiv 2106.09685), rsLoRA (arXiv 2312.03732), DoRA (arXiv 2402.09353)."""

from __future__ import annotations

import dataclasses
import math

# What may have an adapter, and over how many axes its product sums.
TARGETS = {"q": 1, "k": 1, "v": 1, "o": 2, "gate": 1, "up": 1, "down": 1}
MLP_TARGETS = ("gate", "up", "down")
# The names of an adapter's arrays, behind that of the projection; the scale is no weight, the key is of dropout's mask.
A, B, MAGNITUDE, SCALE, KEY = "lora_a", "lora_b", "lora_magnitude", "lora_scale", "lora_key"


@dataclasses.dataclass(frozen=True)
class Adapter:
    """The shape of an adapter: `y = W x + s B A x` for each of its projections, with s = alpha / r.

    Attributes:
      targets: projections that have one, keys of `TARGETS`.
      rank: r, the largest of them.
      alpha: of the scale.
      rslora: the scale is alpha / sqrt(r).
      dora: `y = m (W x + s B A x) / ||W + s B A||`, the norm over the inputs of an output and taken as a constant.
      dropout: share of x that A does not see in training.
      init: of A, `default` (uniform within 1 / sqrt(inputs)) or `gaussian` (deviation 1 / r); B is zero.
      saved: whole weights that are trained beside, by name: `lm_head`, `layers.attn_norm`.
      layer_ranks, layer_alphas: pairs of a target and its rank or alpha in each layer, where they differ; rank 0: no adapter.
        Arrays are as wide as `rank`; what is not used of them is zero, and stays it, since its gradient is.
    """

    targets: tuple[str, ...] = tuple(TARGETS)
    rank: int = 16
    alpha: float = 32.0
    rslora: bool = False
    dora: bool = False
    dropout: float = 0.0
    init: str = "default"
    saved: tuple[str, ...] = ()
    layer_ranks: tuple[tuple[str, tuple[int, ...]], ...] = ()
    layer_alphas: tuple[tuple[str, tuple[float, ...]], ...] = ()

    def __post_init__(self):
        ours = tuple(name.removesuffix("_proj") for name in self.targets)
        object.__setattr__(self, "targets", tuple(name for name in TARGETS if name in ours))
        if unknown := [name for name in ours if name not in TARGETS]:
            raise ValueError(f"an adapter's target is {unknown[0]!r}; known: {', '.join(TARGETS)}")
        if not self.targets or self.rank < 1 or not 0 <= self.dropout < 1 or self.init not in ("default", "gaussian"):
            raise ValueError(f"an adapter needs targets, a rank of at least 1, a dropout below 1 and a known init: {self}")

    def ranks(self, target: str, layers: int) -> tuple[int, ...]:
        """The rank of a target in each layer."""
        return dict(self.layer_ranks).get(target, (self.rank,) * layers)

    def alphas(self, target: str, layers: int) -> tuple[float, ...]:
        """The alpha of a target in each layer."""
        return dict(self.layer_alphas).get(target, (self.alpha,) * layers)

    def scales(self, target: str, layers: int) -> tuple[float, ...]:
        """s of a target in each layer; 0 where it has no adapter."""
        pairs = zip(self.alphas(target, layers), self.ranks(target, layers), strict=True)
        return tuple(alpha / (math.sqrt(rank) if self.rslora else rank) if rank else 0.0 for alpha, rank in pairs)

    @classmethod
    def of(cls, values: dict) -> Adapter:
        """An adapter from what `dataclasses.asdict` made of it, by way of JSON or not."""
        listed = {name: tuple(values[name]) for name in ("targets", "saved")}
        for name in ("layer_ranks", "layer_alphas"):
            listed[name] = tuple((target, tuple(each)) for target, each in values[name])
        return cls(**{**values, **listed})
