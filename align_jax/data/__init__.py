"""From files to batches: sources, formats, tokens, groups, arrays. Only grain, numpy and tokenizers."""

from align_jax.data.arrange import encode_group
from align_jax.data.config import DataConfig
from align_jax.data.dataset import GroupDataset
from align_jax.data.encode import Encoder
from align_jax.data.loader import BatchLoader, ahead
from align_jax.data.packing.arrays import make_groups, pack_groups
from align_jax.data.packing.layout import RowLayout
from align_jax.data.packing.lengths import length_batches
from align_jax.data.records import Segment, TokenGroup
from align_jax.data.sources import open_source

__all__ = [
    "BatchLoader",
    "DataConfig",
    "Encoder",
    "GroupDataset",
    "RowLayout",
    "Segment",
    "TokenGroup",
    "ahead",
    "encode_group",
    "length_batches",
    "make_groups",
    "open_source",
    "pack_groups",
]
