"""What to change where a device has too little memory, with the numbers of what did not fit."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator

import jax

from align_jax.config import Config
from align_jax.errors import UserError

GIB = 2**30
_EXHAUSTED = "RESOURCE_EXHAUSTED"
# As XLA's allocators and TPU's compiler say what was too much.
_WANTED = (
    r"[Uu]sed [\d.]+ ?[KMGT]?i?B? of [\d.]+ ?[KMGT]?i?B? \w+",
    r"(?:allocate|allocating|request(?:ed)?) [\d.]+ ?(?:[KMGT]?i?B|bytes)\b",
)


@contextlib.contextmanager
def memory_explained(remedies: Callable[[], str]) -> Iterator[None]:
    """Within it too little memory of a device, to compile a program or to run it, is a UserError that says what to change.

    Args:
      remedies: () -> sizes of what was computed, and the keys that make it smaller; asked only then.

    Raises:
      UserError: as said; other errors pass.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if _EXHAUSTED not in str(error):
            raise
        raise UserError(f"out of memory on {_device()}: {_said(str(error))}. {remedies()}") from error


def of_training(config: Config, batch: tuple[tuple[int, ...], tuple[int, ...]] | None, planned: str) -> str:
    """The sizes of a training step, and what makes it smaller, the cheapest first.

    Args:
      batch: shapes of the tokens of responses and of prompts, microbatches first; None where none came yet.
      planned: what the compiler says that it needs, or empty.
    """
    model, train, data = config.model, config.train, config.data
    lines = [planned] if planned else []
    if batch is not None:
        (parts, rows, length), (_, prompts, before) = batch
        lines.append(
            f"A microbatch ({parts} a step) has {rows} response rows of {length} tokens and {prompts} prompt rows of {before}, "
            "over all devices"
        )
    accumulation = max(2, 2 * train.accumulation_steps)
    change = []
    if train.groups_per_step % accumulation == 0:
        now = f"now {train.accumulation_steps}; the same gradient, half the rows"
        change.append(f"train.accumulation_steps: {accumulation} ({now})")
    change.append(f"train.groups_per_step: {max(1, train.groups_per_step // 2)} (now {train.groups_per_step})")
    if model.remat == "none":
        change.append("model.remat: full (now none: activations are made again, about a third more time)")
    if batch is not None and isinstance(model.rows_per_chunk, str | None):
        change.append(f"model.rows_per_chunk: {max(1, batch[0][1] // 4)} (now {model.rows_per_chunk or 'all rows'})")
    change.append(f"model.head_chunk: 128 (now {model.head_chunk or 'by default'})")
    if data is not None:
        change.append(f"data.max_prompt_tokens and data.max_response_tokens (now {data.max_prompt_tokens} and "
                      f"{data.max_response_tokens})")  # fmt: skip
    if jax.device_count() > 1:
        change.append(f"a larger mesh.fsdp (now {config.mesh.fsdp}), which divides weights and moments")
    change.append("mesh.memory_gib, what a device really has free, by which `auto` decides")
    return f"{'. '.join(lines)}{'. ' if lines else ''}Change one of: {'; '.join(change)}"


def of_pass(key: str, value: int | None, *others: str) -> str:
    """What makes a pass without gradients smaller: the key of its rows, and other keys."""
    smaller = f"{key}: {max(1, value // 2)} (now {value})" if value else f"{key} (smaller)"
    return f"Change one of: {'; '.join([smaller, *others])}"


def planned(program: jax.stages.Compiled) -> str:
    """What the compiler says that a program needs, on one device."""
    found = program.memory_analysis()
    if found is None:
        return ""
    given = found.argument_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes
    return (
        f"By its own analysis the compiled step needs {given / GIB:.3g} GiB for weights, optimizer and batch and "
        f"{found.temp_size_in_bytes / GIB:.3g} GiB for what it computes on the way, on each device"
    )


def _device() -> str:
    device = jax.local_devices()[0]
    limit = (device.memory_stats() or {}).get("bytes_limit")
    return f"{device.device_kind}{f' of {limit / GIB:.3g} GiB' if limit else ''}"


def _said(text: str) -> str:
    for pattern in _WANTED:
        if found := re.search(pattern, text):
            return found[0]
    return text.split(f"{_EXHAUSTED}:", 1)[-1].strip().splitlines()[0][:200]
