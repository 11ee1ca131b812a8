from align_jax.data.batching import make_groups, pack_groups
from align_jax.data.layout import RowLayout
from align_jax.data.records import Segment, TokenGroup

__all__ = ["RowLayout", "Segment", "TokenGroup", "make_groups", "pack_groups"]
