"""The `lora` section: which adapter is trained on top of the model."""

from __future__ import annotations

import dataclasses
from typing import Literal

from align_jax.errors import UserError, check_range
from align_jax.models.adapter import MLP_TARGETS, TARGETS, Adapter

LEARNING_RATE = 5e-6  # where neither config nor objective asks for another: ten times that of all weights
_RANK, _ALPHA = 16, 32.0
_ALL = "all-linear"


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """A low-rank adapter (LoRA), which alone is trained; without this section all weights are.

    The model stays as it was, in `model.dtype` unless `model.param_dtype` says otherwise, and is the reference. The adapter is
    in float32 and has no weight decay.

    Attributes:
      rank: of each product's two factors; None is 16, or that of `path`.
      alpha: the adapter's part is scaled by alpha / rank; None is 32, or that of `path`.
      targets: projections that have one, as Hugging Face calls them: q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj,
        down_proj; all-linear is all seven, and so is None, or those of `path`. Experts of a mixture have none: there it is the
        first four.
      dropout: share of an input that the adapter does not see in training.
      rslora: scale by alpha / sqrt(rank) (arXiv 2312.03732).
      dora: train the norm of each output's weights apart from their direction (arXiv 2402.09353).
      init: of the factor that is not zero: uniform within 1 / sqrt(inputs), or gaussian with deviation 1 / rank.
      modules_to_save: modules that are trained whole beside it, such as lm_head, embed_tokens or norm. The score of a reward
        model always is.
      path: folder of an adapter, PEFT's or of an earlier export, that training goes on with; the reference is then the model
        with it (`reference.adapter`, or `reference.path` for the model without one).
    """

    rank: int | None = None
    alpha: float | None = None
    targets: list[str] | Literal["all-linear"] | None = None
    dropout: float = 0.0
    rslora: bool = False
    dora: bool = False
    init: Literal["default", "gaussian"] = "default"
    modules_to_save: list[str] = dataclasses.field(default_factory=list)
    path: str | None = None

    def __post_init__(self):
        if self.targets in (_ALL, [_ALL]):  # what nothing means, too
            object.__setattr__(self, "targets", None)
        check_range("lora.rank", self.rank, 1, 4096)
        check_range("lora.alpha", self.alpha, 0, open_low=True)
        check_range("lora.dropout", self.dropout, 0, 1, open_high=True)
        for name in self.targets or ():
            if _ours(name) not in TARGETS:
                raise UserError(f"lora.targets: {name!r} has no adapter here; known: {', '.join(f'{n}_proj' for n in TARGETS)}")
        if self.targets == []:
            raise UserError("lora.targets: [] leaves nothing to train; leave it out for all projections")
        given = {name: getattr(self, name) for name in ("rank", "alpha", "targets", "rslora", "dora", "modules_to_save")}
        if self.path is not None and (set_ := [name for name, value in given.items() if value]):
            raise UserError(f"lora.{set_[0]}: {given[set_[0]]} is what the adapter in lora.path: {self.path} has; leave it out")
        if self.path is not None and self.init != "default":
            raise UserError(f"lora.init: {self.init} is not used with lora.path: {self.path}, whose adapter is trained already")

    def adapter(self, saved: tuple[str, ...], mixture: bool = False) -> Adapter:
        """The adapter that the keys describe; `saved` are the names of the weights of `modules_to_save`.

        Raises:
          UserError: targets that a mixture of experts has once for each expert.
        """
        known = [name for name in TARGETS if not mixture or name not in MLP_TARGETS]
        wanted = set(known) if self.targets is None else {_ours(name) for name in self.targets}
        if refused := sorted(wanted - set(known)):
            raise UserError(
                f"lora.targets: {refused[0]}_proj is once for each expert in this model, and experts have no adapters here; "
                f"take those of attention: {', '.join(f'{name}_proj' for name in known)}"
            )
        rank, alpha = self.rank or _RANK, _ALPHA if self.alpha is None else self.alpha
        options = {name: getattr(self, name) for name in ("rslora", "dora", "dropout", "init")}
        targets = tuple(name for name in TARGETS if name in wanted)
        return Adapter(targets=targets, rank=rank, alpha=alpha, saved=saved, **options)


def _ours(name: str) -> str:
    return name.removesuffix("_proj")
