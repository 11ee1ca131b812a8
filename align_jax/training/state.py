"""What training carries from step to step, created already sharded."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh

from align_jax.models import ModelConfig, weight_shardings
from align_jax.models.adapting import trained_paths
from align_jax.models.weights import Path, weight_structs
from align_jax.parallel.mesh import replicated
from align_jax.training.live import LiveReference

# Which weights are trained: paths such as ("layers", "q"), or a predicate on them; None is the adapter, without one all.
Trainable = Callable[[Path], bool] | Collection[Path] | None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """What a step takes and gives.

    Attributes:
      step: int32 scalar, updates made so far.
      trainable: nested dict of the weights that have gradients.
      frozen: nested dict of the others: no gradient, no moments, never written; `{}` where everything is trained.
      opt_state: the optimizer's state for `trainable`.
      reference: nested dict of those weights of a live reference that are not `frozen` ones; `{}` where there are none.
    """

    step: jax.Array
    trainable: dict
    frozen: dict
    opt_state: Any
    reference: dict = dataclasses.field(default_factory=dict)

    @property
    def weights(self) -> dict:
        """The model's weights."""
        return merge(self.trainable, self.frozen)

    @property
    def reference_weights(self) -> dict:
        """The live reference's weights."""
        return merge(self.reference, self.frozen)

    @classmethod
    def of(cls, weights: dict, optimizer: optax.GradientTransformation, trainable: Trainable = None) -> TrainState:
        """The state before the first step where no mesh is involved, in a notebook; see `create_state` for one.

        Args:
          weights: of the model, such as `model.weights()`. trainable: which of them are trained, see `split`; None: all.
        """
        trained, frozen = split(weights, trainable)
        return cls(jnp.zeros((), jnp.int32), trained, frozen, optimizer.init(trained))


def merge(trainable: dict, frozen: dict) -> dict:
    """The union of two nested dicts, whose leaves it shares.

    Raises:
      ValueError: something is in both, or a leaf of one is a dict of the other; named.
    """
    merged = dict(trainable)
    for name, value in frozen.items():
        if name in merged and not (isinstance(value, dict) and isinstance(merged[name], dict)):
            raise ValueError(f"{name!r} is in both the trainable and the frozen weights")
        merged[name] = merge(merged[name], value) if name in merged else value
    return merged


def split(weights: dict, trainable: Trainable = None) -> tuple[dict, dict]:
    """Weights as (trainable, frozen), two nested dicts whose `merge` they are.

    Args:
      trainable: paths, or a predicate on paths; None: everything.

    Raises:
      ValueError: a path that is not a weight of the model, or nothing left to train.
    """
    if trainable is None:
        return weights, {}
    flat = flatten_dict(weights)
    names = ", ".join(map(".".join, flat))
    if not callable(trainable):
        wanted = set(trainable)
        if unknown := sorted(wanted - flat.keys()):
            raise ValueError(f"trainable: the model has no weight {'.'.join(unknown[0])!r}; it has {names}")
        trainable = wanted.__contains__
    trained = {path: leaf for path, leaf in flat.items() if trainable(path)}
    if not trained:
        raise ValueError(f"trainable: nothing is left to train; the model has {names}")
    frozen = {path: leaf for path, leaf in flat.items() if path not in trained}
    return unflatten_dict(trained), unflatten_dict(frozen)


def _trained(config: ModelConfig, trainable: Trainable) -> Trainable:
    return trained_paths(config) if trainable is None else trainable


def state_shapes(
    config: ModelConfig,
    optimizer: optax.GradientTransformation,
    param_dtype,
    trainable: Trainable = None,
    live: LiveReference | None = None,
) -> TrainState:
    """The state as `jax.ShapeDtypeStruct`s: nothing is allocated; `live`: the live reference that it has."""
    wanted = _trained(config, trainable)
    trained, frozen = split(weight_structs(config, param_dtype), wanted)
    reference = {} if live is None else split(weight_structs(_of_reference(config, live), param_dtype), wanted)[0]
    step, opt_state = jax.ShapeDtypeStruct((), jnp.int32), jax.eval_shape(optimizer.init, trained)
    return TrainState(step, trained, frozen, opt_state, reference)


def _of_reference(config: ModelConfig, live: LiveReference) -> ModelConfig:
    return config if live.quantize is None else dataclasses.replace(config, quantize=live.quantize)


def state_shardings(
    config: ModelConfig,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    param_dtype,
    trainable: Trainable = None,
    live: LiveReference | None = None,
) -> TrainState:
    """Where every array of the state lives: moments and a live reference with their weights, the rest on every device."""
    shapes = state_shapes(config, optimizer, param_dtype, trainable)
    wanted = _trained(config, trainable)
    trained, frozen = split(weight_shardings(config, mesh), wanted)
    reference = {} if live is None else split(weight_shardings(_of_reference(config, live), mesh), wanted)[0]

    def like_weight(moment, shape, sharding):
        if isinstance(moment, optax.MaskedNode):  # a weight of another optimizer, where one does not do all
            return moment
        # Adafactor's row and column statistics stand where weights stand, but are smaller.
        return sharding if moment.shape == shape.shape else replicated(mesh)

    opt_state = optax.tree_utils.tree_map_params(
        optimizer,
        like_weight,
        shapes.opt_state,
        shapes.trainable,
        trained,
        transform_non_params=lambda _: replicated(mesh),
        is_leaf=lambda node: isinstance(node, optax.MaskedNode),
    )
    return TrainState(replicated(mesh), trained, frozen, opt_state, reference)


def create_state(
    config: ModelConfig,
    weights: dict,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    param_dtype,
    trainable: Trainable = None,
    reference: dict | None = None,
) -> TrainState:
    """The state before the first step, every part created where it will live.

    Args:
      weights: the starting weights, already sharded as `weight_shardings(config, mesh)`; they become part of the state.
      trainable: which of them are trained, see `split`; None: the adapter where there is one, else all.
      reference: the weights of a live reference, sharded alike; arrays that are the policy's are copied. None: there is none.
    """
    where = state_shardings(config, optimizer, mesh, param_dtype, trainable)
    trained, frozen = split(weights, _trained(config, trainable))
    opt_state = jax.jit(optimizer.init, out_shardings=where.opt_state)(trained)
    step = jax.device_put(jnp.zeros((), jnp.int32), where.step)
    return TrainState(step, trained, frozen, opt_state, _beside(trained, reference, _trained(config, trainable)))


def _beside(trained: dict, reference: dict | None, trainable: Trainable) -> dict:
    """The part of a reference that a state holds, in arrays of its own: both are donated."""
    if reference is None:
        return {}
    own = split(reference, trainable)[0]
    ours = set(map(id, jax.tree.leaves(trained)))
    return jax.tree.map(lambda one: jnp.copy(one) if id(one) in ours else one, own)
