"""The only place where model outputs meet losses: one frozen dataclass for each objective."""

from align_jax.objectives.base import Metrics, Objective
from align_jax.objectives.gdpo import GDPO
from align_jax.objectives.pairs import DPO, IPO, Hinge, RobustDPO, SimPO
from align_jax.objectives.rewards import Reward
from align_jax.objectives.sets import MPO, NCA, InfoNCA, OrderedMPO
from align_jax.objectives.unpaired import KTO, SFT

OBJECTIVES: dict[str, type[Objective]] = {
    cls.name: cls for cls in (DPO, RobustDPO, Hinge, IPO, SimPO, KTO, MPO, OrderedMPO, InfoNCA, NCA, GDPO, SFT, Reward)
}

__all__ = ["OBJECTIVES", "Metrics", "Objective", *(cls.__name__ for cls in OBJECTIVES.values())]
