"""From examples to slots: one file per arrangement, which is what an objective and its data agree on.

What a whole data set has to be looked through for (which rows have contrast, who shares a prompt and a belief, how often a
belief is accepted) is gathered once, in a `Survey`; arranging one group then reads only its own rows.
"""

from align_jax.data.arrange.answers import encode_group
from align_jax.data.arrange.arranger import Arranger
from align_jax.data.arrange.base import Arrangement, Filled
from align_jax.data.arrange.beliefs import Beliefs
from align_jax.data.arrange.group import Group
from align_jax.data.arrange.labels import Label
from align_jax.data.arrange.pair import Pair
from align_jax.data.arrange.sft import Sft
from align_jax.data.arrange.split_pair import SplitPair
from align_jax.data.arrange.survey import Item, Survey
from align_jax.data.arrange.unpaired import Unpaired

__all__ = [
    "Arrangement",
    "Arranger",
    "Beliefs",
    "Filled",
    "Group",
    "Item",
    "Label",
    "Pair",
    "Sft",
    "SplitPair",
    "Survey",
    "Unpaired",
    "encode_group",
]
