"""Sampling speed beside transformers: 8 responses to each of 64 prompts, same model, same lengths, both in one run.

    python tools/compare_generate.py MODEL_FOLDER PROMPTS.jsonl [--rounds 3]

PROMPTS.jsonl has a column `prompt` or `instruction`. Both sides generate exactly `--new-tokens` tokens for every response
in float32 on the CPU; they take turns, after one round each that is not counted (compilation, allocation). transformers
runs its `generate(num_return_sequences=8)` on left-padded batches of `--their-prompts` prompts; of several sizes the fastest
counts. On a machine that others use too, `--their-threads 1` spares PyTorch from waiting for its own threads.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time

os.environ.setdefault("JAX_PLATFORMS", "cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("prompts")
    parser.add_argument("--count", type=int, default=64, help="prompts")
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--prompt-tokens", type=int, default=96, help="longer prompts are cut")
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--rows", type=int, default=512, help="our samples in flight; transformers has all of a batch")
    parser.add_argument("--their-prompts", type=int, nargs="+", default=[64], help="prompts of a batch of transformers")
    parser.add_argument("--their-threads", type=int, help="threads of PyTorch; its own default otherwise")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    prompts = read_prompts(options)
    sides = {"align_jax": ours(options, prompts)}
    sides |= {f"transformers, {n} prompts per batch": theirs(options, prompts, n) for n in options.their_prompts}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    tokens = options.count * options.samples * options.new_tokens
    for round_ in range(options.rounds + 1):
        for name, run in sides.items():
            start = time.perf_counter()
            made = run()
            taken = time.perf_counter() - start
            assert made == tokens, f"{name} made {made} tokens instead of {tokens}"
            print(f"{'warm-up' if round_ == 0 else f'round {round_}'}: {name}: {taken:.2f} s", flush=True)
            if round_:
                seconds[name].append(taken)
    rates = {name: tokens / statistics.median(times) for name, times in seconds.items()}
    for name, rate in rates.items():
        print(f"{name}: {rate:.0f} tokens/s (median of {options.rounds})")
    best = max(rate for name, rate in rates.items() if name != "align_jax")
    print(f"ratio to the fastest of transformers: {rates['align_jax'] / best:.2f}")


def read_prompts(options: argparse.Namespace) -> list[list[int]]:
    """The first prompts of the file as token ids."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(options.model)
    with open(options.prompts, encoding="utf-8") as file:
        rows = [json.loads(line) for line in file if line.strip()]
    if len(rows) < options.count:
        raise SystemExit(f"{options.prompts} has {len(rows)} rows, fewer than --count {options.count}")
    texts = [row["prompt"] if "prompt" in row else row["instruction"] for row in rows[: options.count]]
    return [tokenizer(text)["input_ids"][: options.prompt_tokens] for text in texts]


def ours(options: argparse.Namespace, prompts: list[list[int]]):
    """-> a function that samples everything and returns how many tokens it made."""
    from align_jax.generation import generate
    from align_jax.hf import load_model

    model = load_model(options.model, dtype="float32")

    def run() -> int:
        results = generate(model, prompts, samples=options.samples, max_new_tokens=options.new_tokens, rows=options.rows)
        return sum(len(sample.tokens) for samples in results for sample in samples)

    return run


def theirs(options: argparse.Namespace, prompts: list[list[int]], size: int):
    """The same with transformers."""
    import torch
    from transformers import AutoModelForCausalLM

    if options.their_threads:
        torch.set_num_threads(options.their_threads)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32).eval()
    sampling = dict(do_sample=True, temperature=1.0, top_k=0, num_return_sequences=options.samples, pad_token_id=0)
    lengths = dict(max_new_tokens=options.new_tokens, min_new_tokens=options.new_tokens)

    def run() -> int:
        made = 0
        for start in range(0, len(prompts), size):
            batch = prompts[start : start + size]
            width = max(map(len, batch))
            tokens = torch.tensor([[0] * (width - len(p)) + p for p in batch])
            mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in batch])
            with torch.inference_mode():
                out = model.generate(tokens, attention_mask=mask, **sampling, **lengths)
            made += out[:, width:].numel()
        return made

    return run


if __name__ == "__main__":
    main()
