"""The rows of the table of weights (`align_jax.models.weights`) that a mixture has: its router and its experts.

Families name them in three ways, of which a config has one. Where a checkpoint holds all experts of a layer in one tensor, it
is as ours, but for gate and up, whose columns take turns in one.
"""

from __future__ import annotations

from collections.abc import Callable

from align_jax.models.config import ModelConfig
from align_jax.models.initializers import normal, normal_to_residual, zeros
from align_jax.models.layouts import SAME, SPLIT_OUTPUTS
from align_jax.models.row import Stored, Weight, in_layer

_DIMS = {"gate": ("width", "mlp_width"), "up": ("width", "mlp_width"), "down": ("mlp_width", "width")}
_AXES = {"width": "expert_embed", "mlp_width": "mlp"}
# What tells those apart that have a tensor for each expert: Mixtral's heads have no norms, Qwen's have.
_APART = (
    ("block_sparse_moe", {"gate": "w1", "up": "w3", "down": "w2"}, False),
    ("mlp", {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}, True),
)
_TOGETHER = {"gate": "gate_up_proj", "up": "gate_up_proj", "down": "down_proj"}


def expert_rows() -> list[Weight]:
    """The router and the experts of a sparse layer, under the names of every family."""
    found = []
    for module, parts, normed in _APART:
        has = lambda config, normed=normed: _is_apart(config) and config.qk_norm == normed  # noqa: E731
        found.append(_router(Stored(in_layer(f"{module}.gate"), SPLIT_OUTPUTS), has))
        for name in _DIMS:
            found.append(_matrix(name, Stored(in_layer(f"{module}.experts.{{expert}}.{parts[name]}"), SPLIT_OUTPUTS), has))
    return found + _together()


def _is_apart(config: ModelConfig) -> bool:
    return config.experts is not None and not config.expert_biases


def _router(stored: Stored, has: Callable[[ModelConfig], bool]) -> Weight:
    return Weight(("layers", "router"), ("width", "experts"), ("embed", None), stored, present=has)


def _matrix(name: str, stored: Stored, has: Callable[[ModelConfig], bool]) -> Weight:
    axes = ("experts", *(_AXES[dim] for dim in _DIMS[name]))
    init = normal_to_residual if name == "down" else normal
    return Weight(("layers", f"expert_{name}"), ("experts", *_DIMS[name]), axes, stored, init=init, present=has)


def _together() -> list[Weight]:
    """GPT-OSS: biases, and all experts of a layer in one tensor."""
    has = lambda config: config.expert_biases  # noqa: E731
    of_bias = {"init": zeros, "decay": False, "present": has}
    router = Stored(in_layer("mlp.router", "bias"), SAME)
    found = [
        _router(Stored(in_layer("mlp.router"), SPLIT_OUTPUTS), has),
        Weight(("layers", "router_bias"), ("experts",), (None,), router, **of_bias),
    ]
    for name, tensor in _TOGETHER.items():
        matrix, bias = (f"model.layers.{{layer}}.mlp.experts.{tensor}{end}" for end in ("", "_bias"))
        found.append(_matrix(name, Stored(matrix, SAME, in_turn=name != "down"), has))
        axes = ("experts", None if name == "down" else "mlp")
        stored = Stored(bias, SAME, in_turn=name != "down")
        found.append(Weight(("layers", f"expert_{name}_bias"), ("experts", _DIMS[name][1]), axes, stored, **of_bias))
    return found
