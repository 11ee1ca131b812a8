"""The only place where model outputs meet losses: one frozen dataclass for each objective, found by its name."""

from __future__ import annotations

from align_jax import registry
from align_jax.errors import UserError
from align_jax.objectives.anchored import APODown, APOZero, BCOPair, NCAPair, SPPOHard
from align_jax.objectives.base import Metrics, Objective
from align_jax.objectives.gdpo import GDPO
from align_jax.objectives.lengths import LDDPO, RDPO, DPONorm
from align_jax.objectives.likelihoods import CPO, ORPO, WPO, DPOPositive
from align_jax.objectives.margins import DiscoPOP, EXOPair
from align_jax.objectives.mixture import Mixture
from align_jax.objectives.pairs import DPO, IPO, Hinge, RobustDPO, SimPO
from align_jax.objectives.rewards import Reward
from align_jax.objectives.sets import MPO, NCA, InfoNCA, OrderedMPO
from align_jax.objectives.transport import AOT, AOTUnpaired
from align_jax.objectives.unpaired import KTO, SFT

OBJECTIVES: dict[str, type[Objective]] = registry.table(__name__, Objective)

__all__ = [
    "APODown",
    "APOZero",
    "BCOPair",
    "NCAPair",
    "SPPOHard",
    "DPONorm",
    "LDDPO",
    "RDPO",
    "CPO",
    "ORPO",
    "WPO",
    "DPOPositive",
    "DiscoPOP",
    "EXOPair",
    "AOT",
    "AOTUnpaired",
    "DPO",
    "GDPO",
    "IPO",
    "KTO",
    "MPO",
    "NCA",
    "OBJECTIVES",
    "SFT",
    "Hinge",
    "InfoNCA",
    "Metrics",
    "Mixture",
    "Objective",
    "OrderedMPO",
    "Reward",
    "RobustDPO",
    "SimPO",
    "find_objective",
    "name_of",
]


def find_objective(name: str | None) -> type[Objective]:
    """The class of `objective.name`: of this folder, or `package.module:Class`.

    Raises:
      UserError: there is none, or it lacks what every objective has.
    """
    found = registry.find(name, __name__, Objective, "objective", "objective.name")
    if not hasattr(found, "arrangement"):
        raise UserError(
            f"objective.name: {name!r} has no `arrangement`, which says what its data are; give it one of "
            "align_jax.data.arrange, such as `arrangement = Group()`"
        )
    own = vars(found)
    if own.get("__annotations__") and "__dataclass_params__" not in own:
        raise UserError(f"objective.name: decorate {name!r} with @dataclasses.dataclass(frozen=True), so that it has its keys")
    return found


def name_of(objective: Objective) -> str:
    """The `objective.name` under which `find_objective` finds it."""
    return registry.spelled(objective, __name__)
