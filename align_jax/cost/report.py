"""What a benchmark measured, as tables for people."""

from __future__ import annotations

from typing import Any

from tabulate import tabulate

from align_jax.cost.benchmark import linear_fit
from align_jax.cost.parts import describe


def fit(results: list[dict[str, Any]]) -> dict[str, float]:
    """Seconds of a step against its useful tokens."""
    return linear_fit([r["useful_tokens_per_step"] for r in results], [r["step_seconds"] for r in results])


def sweep_table(results: list[dict[str, Any]]) -> str:
    """The sweep for people, with memory relative to K = 8 (or the first), and the line through the times."""
    base = next((r for r in results if r["responses"] == 8), results[0])
    rows = [
        (
            r["responses"],
            f"{r['step_seconds']:.3f}",
            f"{r['useful_tokens_per_second']:.0f}",
            f"{r['peak_memory_bytes'] / 2**20:.0f}",
            f"{r['peak_memory_bytes'] / base['peak_memory_bytes']:.3f}",
            f"{r['model_flops_utilization']:.1%}",
        )
        for r in results
    ]
    headers = ("K", "s per step", "useful tokens/s", "MiB", f"memory / K={base['responses']}", "utilisation")
    text = tabulate(rows, headers=headers, disable_numparse=True, stralign="right")
    if len(results) < 3:
        return text
    line = fit(results)
    return f"{text}\nseconds = {line['base']:.3g} + {line['slope']:.3g} x useful tokens, R^2 = {line['r_squared']:.5f}"


def table(values: dict[str, Any]) -> str:
    """The numbers for people."""
    mib, tera = 2**20, 1e12
    done = values["flops_done"]
    useful = {unit: values[f"useful_tokens_per_{unit}"] for unit in ("second", "step")}
    in_use, parts = values["peak_memory_in_use_bytes"], values.get("flops_parts")
    rows = [
        ("devices", f"{values['devices']} x {values['device']}"),
        ("step", f"{values['step_seconds']:.4f} s (median of {values['steps']})"),
        ("useful tokens", f"{useful['second']:.0f} per second ({useful['step']:.0f} per step)"),
        ("padding", f"{values['padding']:.1%} of computed positions"),
        ("waiting for data", f"{values['data_fraction']:.1%} of the time"),
        ("least FLOPs", f"{values['flops_least'] / tera:.3f} T per step"),
        ("FLOPs done", "not counted on this device" if done is None else f"{done / tera:.3f} T per step"),
        *([("beside the least", f"{describe(parts)}, in the largest shape")] if parts else []),
        (
            "useful utilisation",
            f"{values['useful_utilization']:.1%} of {values['peak_flops'] / tera:.3g} TFLOP/s "
            f"({values['peak_flops_source']}): least FLOPs of real tokens",
        ),
        ("with padding", f"{values['model_flops_utilization_padded']:.1%}: were every computed position a token"),
        ("attention", f"{values['attention']}, {'packed rows' if values['packed'] else 'one response a row'}"),
        ("peak memory", f"{values['peak_memory_bytes'] / mib:.0f} MiB per device (the compiler's analysis)"),
        *([] if in_use is None else [("peak in use", f"{in_use / mib:.0f} MiB (the allocator)")]),
        (
            "compilation",
            f"{values['compile_seconds']:.1f} s, {values['compilations']} programs and {values['compilations_cached']} from "
            f"the cache, {values['shapes']} shapes of a step",
        ),
    ]
    return tabulate(rows, tablefmt="plain")


def recommended(values: dict[str, Any]) -> str:
    """The line about rematerialization, which takes further compilations, for people; empty where none were made."""
    if "remat_memory_bytes" not in values:
        return ""
    mib = 2**20
    each = ", ".join(
        f"{policy} {size / mib:.0f} MiB" if isinstance(size, int) else f"{policy} {size}"
        for policy, size in values["remat_memory_bytes"].items()
    )
    advice = f"model.remat: {values['remat_recommended'] or 'none of them fits'} (now {values['remat']})"
    return f"rematerialization   {each}, of {values['memory_limit_bytes'] / mib:.0f} MiB; recommended {advice}"
