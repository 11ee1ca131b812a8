"""How many of the positions that a step computes hold real tokens, on given lengths.

    python tools/count_positions.py CONFIG.yaml [--section.key value ...]   # the lengths of its data, by its tokenizer
    python tools/count_positions.py --lengths FILE.jsonl    # a line per group: {"prompt": 120, "responses": [300, 41]}
        [--save FILE.jsonl] [--shards 64 16] [--groups 128] [--accumulation 1] [--epochs 3]

takes the batches that training would take, by the same loader, and prints for each number of data shards: real tokens (each
prompt and each response once, a prompt that is repeated for a split group not again) over computed positions, over all epochs;
how many shapes there were, and the largest; seconds that choosing shapes and planning took, without tokenizing.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import json
import sys
import time

import numpy as np

from align_jax.batch import computed_positions, sizes
from align_jax.config import Config
from align_jax.data import BatchLoader, RowLayout
from align_jax.data.of_lengths import GroupsOfLengths, Lengths, read_lengths
from align_jax.errors import UserError
from align_jax.recipes.setup import Setup


def lengths_of(config: Config) -> list[Lengths]:
    """Lengths of all groups of a config's training data."""
    dataset = Setup.of(config).dataset("train")
    groups = (dataset[i] for i in range(len(dataset)))
    return [(len(group.prompt), tuple(len(s.tokens) for s in group.segments)) for group in groups]


def measured(dataset: GroupsOfLengths, layout: RowLayout, arguments: argparse.Namespace, shards: int) -> dict:
    """The row of one number of shards."""
    began = time.perf_counter()
    loader = BatchLoader(
        dataset,
        shards=shards,
        groups_per_step=arguments.groups,
        accumulation_steps=arguments.accumulation,
        layout=layout if arguments.single or arguments.whole else dataclasses.replace(layout, spread=shards),
        workers=1,
        prefetch=1,
    )
    shapes, real, computed, steps = collections.Counter(), 0, 0, max(1, arguments.epochs * len(dataset) // arguments.groups)
    _ = loader.shapes
    chosen = time.perf_counter()
    for _ in range(steps):
        batch = next(loader)
        shapes[sizes(batch)[:4]] += 1
        for row in np.asarray(batch.rows).reshape(-1):
            prompt, responses = dataset.lengths[row]
            real += prompt - 1 + sum(responses)
        computed += computed_positions(batch)
    return {
        "shards": shards,
        "groups_a_shard": arguments.groups / arguments.accumulation / shards,
        "real": real / computed,
        "shapes": {"x".join(map(str, shape)): count for shape, count in shapes.items()},
        "seconds_to_choose": chosen - began,
        "seconds_a_step": (time.perf_counter() - chosen) / steps,
    }


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?")
    parser.add_argument("--lengths", help="a file of lengths instead of a config")
    parser.add_argument("--save", help="write the lengths of the config's data here")
    parser.add_argument("--shards", type=int, nargs="+", default=[64, 16])
    parser.add_argument("--groups", type=int, default=128, help="of a step")
    parser.add_argument("--accumulation", type=int, default=1, help="microbatches of a step")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--single", action="store_true", help="one prompt and one response per row")
    parser.add_argument("--whole", action="store_true", help="groups whole, and as many to every shard")
    parser.add_argument("--multiple", type=int, default=8, help="what lengths of rows are multiples of")
    parser.add_argument("--dense", type=int, default=RowLayout().dense, help="see RowLayout.dense")
    parser.add_argument("--json", action="store_true")
    known, overrides = parser.parse_known_args(arguments)
    if (known.config is None) == (known.lengths is None):
        raise UserError("give a config, or --lengths FILE.jsonl")
    lengths = read_lengths(known.lengths) if known.lengths else lengths_of(Config.of(known.config, *_pairs(overrides)))
    if known.save:
        with open(known.save, "w", encoding="utf-8") as file:
            file.writelines(json.dumps({"prompt": prompt, "responses": responses}) + "\n" for prompt, responses in lengths)
    layout = RowLayout(pack=not known.single, dense=known.dense, multiple=known.multiple)
    for shards in known.shards:
        row = measured(GroupsOfLengths(lengths), layout, known, shards)
        if known.json:
            print(json.dumps(row), flush=True)
            continue
        print(
            f"{shards} shards of {row['groups_a_shard']:g} groups: {row['real']:.3f} of positions are real tokens, "
            f"{len(row['shapes'])} shapes (rows x positions of prompts, of responses): {row['shapes']}; "
            f"{row['seconds_to_choose']:.1f} s to choose, {1000 * row['seconds_a_step']:.0f} ms a step",
            flush=True,
        )


def _pairs(given: list[str]) -> list[str]:
    """`--key value` and `--key=value` as `key=value`."""
    words, pairs = iter(given), []
    for word in words:
        key = word.removeprefix("--")
        pairs.append(key if "=" in key else f"{key}={next(words, '')}")
    return pairs


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.exit(str(error))
