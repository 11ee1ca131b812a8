"""Estimated time on a GPU of rows packed for XLA's attention, over that of one response a row for cuDNN's.

    python tools/gpu_rows.py [--model llama-3-8b] [--groups 8] [--card "NVIDIA H200"]

By the formulas of `align_jax/cost/gpu_rows.py`, for the lengths that come with align_jax; it needs no GPU.
"""

from __future__ import annotations

import argparse
import types

import numpy as np

from align_jax.config import Config
from align_jax.cost.length_data import LengthData, read_lengths
from align_jax.models.known import known_model
from align_jax.recipes.row_layout import estimated

# Name of lengths -> where prompts and responses are cut.
CUT = {"ultrafeedback": (512, 1024), "hh": (512, 512), "long-chat": (2048, 2048)}
SHAPE = dict(vocab_size=8, width=8, mlp_width=8, layers=1, heads=1, kv_heads=1, head_size=8)  # which no estimate reads


def main() -> None:
    """Prints a line for each of the lengths."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="llama-3-8b")
    parser.add_argument("--groups", type=int, default=8)
    parser.add_argument("--card", default="NVIDIA H200")
    given = parser.parse_args()
    axes = ("data", "fsdp", "tensor")
    card = np.array([[[types.SimpleNamespace(platform="gpu", device_kind=given.card)]]])
    mesh = types.SimpleNamespace(devices=card, shape=dict.fromkeys(axes, 1), axis_names=axes)
    for name, (prompt, response) in CUT.items():
        data = {"max_prompt_tokens": prompt, "max_response_tokens": response}
        train = {"groups_per_step": given.groups, "steps": 100}
        config = Config.of({"model": {"config": SHAPE}, "objective": {"name": "mpo"}, "data": data, "train": train})
        lengths = LengthData(read_lengths(name), config.data, config.objective)
        found = estimated(config, known_model(given.model), mesh, lengths)
        print(f"{given.card}  {name:14} cut at {prompt} and {response}: {found.packed / found.single:.2f}")


if __name__ == "__main__":
    main()
