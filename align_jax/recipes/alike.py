"""Whether all processes do the same: what they were told, the rows they read, and the weights they start from."""

from __future__ import annotations

import jax

from align_jax.config import Config
from align_jax.config.identity import flat, is_own
from align_jax.data import GroupDataset
from align_jax.errors import UserError
from align_jax.parallel.processes import agree, wait_at_most
from align_jax.recipes.source import ModelSource


def agree_on(config: Config) -> None:
    """UserError, on all processes, where their configs differ: key by key, with each one's value; or where 64 bits are on."""
    if jax.config.jax_enable_x64:
        raise UserError(
            "jax_enable_x64 is on (JAX_ENABLE_X64=1, or jax.config.update): jobs compute in 32 bits or fewer, and their "
            "checkpoints and caches would be others; turn it off for them (the losses take float64)"
        )
    wait_at_most(config.run.wait_s)
    values = flat({"config": config.to_dict()})
    agree("the config", {key: value for key, value in values.items() if not is_own(key.removeprefix("config."))})


def agree_on_rows(which: str, dataset: GroupDataset) -> None:
    """UserError, on all processes, where they read other rows, in another order, or make other tokens of them."""
    facts = {"groups": len(dataset), "hash of rows, order and tokens": dataset.fingerprint[:16]}
    agree(f"data.{which}", {f"data.{which}, {name}": value for name, value in facts.items()})


def agree_on_model(source: ModelSource) -> None:
    """UserError, on all processes, where they start from other weights."""
    agree("the model's files", {f"{source.key}, hash of pieces of its files": source.glimpse()})
