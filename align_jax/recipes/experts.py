"""Whether what a config asks of a mixture of experts fits the model."""

from __future__ import annotations

from align_jax.config import Config
from align_jax.models import ModelConfig


def check_experts(config: Config, shape: ModelConfig) -> None:
    """UserError for keys that are for a mixture of experts and do not fit the model."""
    experts, mesh = shape.experts, config.mesh
    weight = config.model.router_aux_weight
    if experts is None and weight:
        raise config.source.error("model.router_aux_weight", f"{weight:g}: the model has no experts to balance; leave it out")
    if experts is None and mesh.expert > 1:
        raise config.source.error("mesh.expert", f"{mesh.expert}: the model has no experts; mesh.fsdp cuts its weights")
    if experts is not None and experts % mesh.expert:
        raise config.source.error("mesh.expert", f"{mesh.expert} devices cannot share the model's {experts} experts evenly")
    parts = max(mesh.fsdp, 1) * mesh.expert * mesh.sequence
    if mesh.expert > 1 and shape.width % parts:
        raise config.source.error(
            "mesh.expert",
            f"{mesh.expert} x mesh.fsdp {max(mesh.fsdp, 1)} x mesh.sequence {mesh.sequence} parts do not divide the model's "
            f"width {shape.width}: every device would hold the weights of attention whole",
        )
