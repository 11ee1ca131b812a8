"""What compiled shapes need and do, as JSON values and as lines for people."""

from __future__ import annotations

from typing import Any

from align_jax.cost.estimate import CompiledShape, EpochEstimate, covered
from align_jax.cost.parts import describe
from align_jax.scoring.scorer import Scorer


def report(estimate: EpochEstimate, mesh: dict[str, int], scorer: Scorer, advised: list[str]) -> dict[str, Any]:
    """The numbers: memory and collectives by chip, operations of all chips; of the shape that computes most.

    Args:
      estimate: of an epoch. mesh: axis -> size. scorer: with the backend that computes attention. advised: what to change.

    Returns:
      JSON values. `memory_bytes` are those of the compiled shape that needs most.
    """
    main, chip = estimate.main, estimate.main.chip
    seconds = main.seconds
    return {
        "device": chip.kind,
        "devices": main.devices,
        "mesh": mesh,
        "attention": scorer.attention,
        "remat": scorer.remat,
        "memory_bytes": _memory(estimate.largest),
        "fits": all(shape.fits for shape in estimate.compiled),
        "flops_least": main.least,
        "flops_remat": main.remat,
        "flops_done": main.done,
        "flops_done_kernels": main.kernels,
        **({} if main.parts is None else {"flops_parts": main.parts.values()}),
        "flops_ratio": main.done / (main.least + main.remat),
        "kernel_calls": main.counts.kernels,
        "collectives": _collectives(main),
        "compile_seconds": round(sum(shape.compile_seconds for shape in estimate.compiled), 1),
        "memory_traffic_bytes": round(main.counts.traffic),
        "peak_flops": chip.peak,
        "step_seconds": {
            **{part: getattr(seconds, part) for part in ("compute", "memory", "network", "slices")},
            "serial": seconds.serial,
            "overlapped": seconds.overlapped,
        },
        "shapes": [_shape(estimate, i) for i in range(len(estimate.uses))],
        "compiled_fraction": covered(estimate.compiled, estimate.uses),
        "real_tokens_fraction": estimate.real_fraction,
        "useful_utilization_serial": estimate.utilization("serial"),
        "useful_utilization_overlapped": estimate.utilization("overlapped"),
        "useful_utilization_bound": estimate.utilization("bound"),
        "advice": advised,
    }


def _memory(shape: CompiledShape) -> dict[str, int]:
    memory = shape.memory
    kinds = ("arguments", "outputs", "outputs_in_place", "temporaries", "program", "host", "total")
    return {**{kind: getattr(memory, kind) for kind in kinds}, "device": shape.chip.memory}


def _collectives(shape: CompiledShape) -> dict[str, dict[str, float]]:
    return {
        kind: {
            "count": number,
            "bytes": size,
            "across_slices_bytes": round(shape.spent[kind].across_bytes),
            "seconds": shape.spent[kind].inside + shape.spent[kind].across,
        }
        for kind, (number, size) in shape.counts.collectives.items()
    }


def _shape(estimate: EpochEstimate, index: int) -> dict[str, Any]:
    use = estimate.uses[index]
    return {
        **use.describe(),
        "steps": len(use.steps),
        "real_tokens_fraction": use.real_fraction,
        "compiled": any(shape.use is use for shape in estimate.compiled),
        "serial_seconds": estimate.seconds(use).serial,
        "overlapped_seconds": estimate.seconds(use).overlapped,
    }


def table(values: dict[str, Any]) -> str:
    """The report for people."""
    memory, gib, seconds = values["memory_bytes"], 2**30, values["step_seconds"]
    mesh = " x ".join(f"{name} {size}" for name, size in values["mesh"].items())
    fits = "fits" if values["fits"] else "does not fit"
    tera = values["flops_least"] / 1e12
    lines = [
        ("device", f"{values['devices']} x {values['device']}, mesh {mesh}"),
        *((("lengths", values["lengths"]),) if "lengths" in values else ()),
        ("attention, remat", f"{values['attention']}, {values['remat']}"),
        *((f"memory: {name}", f"{memory[name] / gib:.2f} GiB") for name in ("arguments", "temporaries", "program", "host")),
        ("memory: a chip", f"{memory['total'] / gib:.2f} of {memory['device'] / gib:.0f} GiB: {fits}"),
        *((f"shape {number}", _of_shape(shape)) for number, shape in enumerate(values["shapes"], start=1)),
        ("least FLOPs", f"{tera:.1f} T a step, of the real tokens"),
        ("done", f"{_done(values)}"),
        *((("beside the least", describe(values["flops_parts"])),) if "flops_parts" in values else ()),
        *((f"{kind} a chip", _collective(x)) for kind, x in values["collectives"].items()),
        (
            "seconds a step",
            f"products {seconds['compute']:.4f}, memory traffic {seconds['memory']:.4f}, network {seconds['network']:.4f}"
            + (f", between slices {seconds['slices']:.4f}" if seconds["slices"] else ""),
        ),
        ("predicted", f"{seconds['serial']:.4f} s in series, {seconds['overlapped']:.4f} s overlapped"),
        ("real tokens", f"{values['real_tokens_fraction']:.1%} of the computed positions"),
        (
            "useful utilisation",
            f"{values['useful_utilization_serial']:.3f} in series, {values['useful_utilization_overlapped']:.3f} overlapped, "
            f"at most {values['useful_utilization_bound']:.3f} with memory traffic",
        ),
        ("compile", f"{values['compile_seconds']:.1f} s"),
        *(("runner-up", _runner_up(plan)) for plan in values.get("auto", [])[1:]),
        *(("to change", line) for line in values["advice"]),
    ]
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name:<{width}}  {text}" for name, text in lines)


def _runner_up(plan: dict[str, Any]) -> str:
    how = plan["compiled"] or plan
    axes = [axis for axis in ("data", "fsdp", "expert", "tensor") if axis != "expert" or plan[axis] > 1]
    mesh = " x ".join(f"{axis} {plan[axis]}" for axis in axes) + f", remat {plan['remat']}"
    seconds = f"{how['serial_seconds']:.4f} s in series, {how['overlapped_seconds']:.4f} s overlapped"
    by = "compiled" if plan["compiled"] else "by formula"
    return f"{mesh}, {plan['accumulation']} microbatches: {seconds}, {how['memory_bytes'] / 2**30:.1f} GiB ({by})"


def _done(values: dict[str, Any]) -> str:
    done, least = values["flops_done"], values["flops_least"]
    kernels = f", {values['flops_done_kernels'] / 1e12:.1f} T of them in kernels" if values["flops_done_kernels"] else ""
    return (
        f"{done / 1e12:.1f} T a step{kernels}: {done / least:.3f} of the least, {values['flops_ratio']:.3f} of it with what "
        f"remat repeats"
    )


def _of_shape(shape: dict[str, Any]) -> str:
    prompts = f"{shape['prompt_rows']} prompt rows of {shape['prompt_length']}"
    rows = f"{shape['rows']} rows of {shape['length']}"
    compiled = "" if shape["compiled"] else "; not compiled, time by its size"
    return f"{shape['steps']} steps, {prompts} and {rows} a shard, {shape['real_tokens_fraction']:.1%} real{compiled}"


def _collective(x: dict[str, float]) -> str:
    crossing = f", {x['across_slices_bytes'] / 2**30:.2f} GiB between slices" if x["across_slices_bytes"] else ""
    return f"{x['count']} of {x['bytes'] / 2**30:.2f} GiB in all{crossing}, {x['seconds']:.4f} s"
