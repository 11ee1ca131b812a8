"""Which weights weight decay pulls towards zero."""

from __future__ import annotations

from typing import Any, Literal

import jax

from align_jax.errors import UserError
from align_jax.models.weights import Path, decays, is_embedding

# Of the section `optimizer`: matrices, without token embeddings; these, too (as every run decayed before there was a choice);
# or norms and biases as well.
DECAYED = Literal["matrices", "embeddings", "all"]


def check_decay(spec: Any) -> None:
    """UserError for a choice of weights without any decay of them."""
    if spec.decayed is not None and not spec.weight_decay:
        raise UserError(f"optimizer.decayed: {spec.decayed} has no effect with optimizer.weight_decay: 0; leave it out")


def path_of(keys: tuple) -> Path:
    """The names on the way to a leaf of a pytree."""
    names = [str(getattr(key, "key", getattr(key, "name", ""))) for key in keys]
    # An nnx variable has the path of its place.
    return tuple(names[:-1] if names[-1:] == ["value"] else names)


def decay_mask(params: Any, decayed: DECAYED | None = None) -> Any:
    """A pytree of bools like `params`: whether weight decay pulls a weight towards zero.

    Norms are pulled towards one, not zero, and a token's embedding would shrink at every step that does not see the token.
    The table of weights says what is what; in a tree that is not a model's, names do.

    Args:
      params: weights as a pytree. decayed: the value of `optimizer.decayed`; None is matrices.
    """

    def pulled(keys: tuple, _: Any) -> bool:
        path = path_of(keys)
        return decayed == "all" or (decays(path) and (decayed == "embeddings" or not is_embedding(path)))

    return jax.tree_util.tree_map_with_path(pulled, params)
