"""What to change, by what takes the time or the memory of a compiled step."""

from __future__ import annotations

from align_jax.cost.estimate import EpochEstimate


def advice(
    estimate: EpochEstimate,
    *,
    remat: str,
    accumulation: int,
    packed: bool,
    attention: str,
    fsdp: int = 1,
    expert: int = 1,
) -> list[str]:
    """Lines for the user, the most useful first; at least one.

    Args:
      estimate: of an epoch. remat: `model.remat`. accumulation: `train.accumulation_steps`.
      packed: whether rows hold several prompts and answers. attention: the backend that computes it.
      fsdp, expert: of the mesh.
    """
    main, largest = estimate.main, estimate.largest
    seconds, chip = main.seconds, main.chip
    room = largest.memory.total / chip.memory
    lines = []
    if not largest.fits:
        again = "" if remat == "full" else "model.remat: full; "
        lines.append(f"memory: {again}more train.accumulation_steps; more fsdp or tensor in mesh; model.param_dtype: bfloat16")
    network = seconds.network + seconds.slices
    if seconds.slices > max(seconds.compute, 1e-9):
        lines.append("the network between slices takes longer than the products: more train.groups_per_step")
    elif network > seconds.compute:
        lines.append(
            "collectives take longer than the products: less fsdp and more tensor (or data) in mesh, more "
            "train.groups_per_step"
            + (", fewer train.accumulation_steps (each gathers the weights)" if accumulation > 1 else "")
        )
    if seconds.memory > 1.1 * max(seconds.compute, network):
        ways = ["an attention kernel in place of xla"] if attention == "xla" else []
        if fsdp > 1:
            ways.append("less fsdp in mesh (products are cut into as many pieces, and added up in memory)")
        if expert > 1:
            ways.append("less expert in mesh (each device holds rows for the tokens of as many)")
        ways = ways or ["more train.groups_per_step (weights are read as often for few tokens as for many)"]
        lines.append(f"memory traffic takes longest: {', or '.join(ways)}")
    again = main.remat / main.least
    if remat in ("full", "offload") and largest.fits and again > 0.1 and room < 0.6:
        lines.append(
            f"{again:.0%} of the least FLOPs are repeated, and {1 - room:.0%} of memory is free: model.remat: dots or none"
        )
    if estimate.real_fraction < 0.8:
        how = "more groups a shard (train.groups_per_step, or less data x fsdp)"
        lines.append(
            f"{1 - estimate.real_fraction:.0%} of the positions are padding: "
            + (how if packed else f"an attention backend that packs rows (data.pack, model.attention), or {how}")
        )
    return lines or ["nothing stands out"]
