"""Writes the lengths that come with the package, `align_jax/cost/lengths/*.jsonl`: `python tools/typical_lengths.py`.

`alpaca-eval` are real: token counts (SmolLM2's tokenizer) of the 560 prompts and 8 answers each of `preferences/train.jsonl`,
outputs of models on AlpacaEval; it is written where ALIGN_JAX_DATA and a tokenizer are there:
`python tools/typical_lengths.py TOKENIZER`.

The others are drawn: log-normal, with the medians that Wang and Hegde publish for these data sets (arXiv 2410.20305: tokens of
prompt and answer, and the median ratio of the two), and the spread of the real ones (a standard deviation of the logarithm of
0.8 for prompts; 0.6 between and 0.5 within the answers of a prompt). They are not those data sets.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).resolve().parents[1] / "align_jax" / "cost" / "lengths"
# name -> (median tokens of prompt and answer, median of prompt over answer, answers of a prompt, longest prompt and answer)
PUBLISHED = {
    "ultrafeedback": (409, 0.42, 4, 2048),
    "hh": (186, 2.15, 2, 1024),
    "long-chat": (1160, 1.59, 2, 4096),  # Capybara
}
ROWS, PROMPT_SPREAD, BETWEEN, WITHIN = 1024, 0.8, 0.6, 0.5


def drawn(total: int, ratio: float, answers: int, longest: int, seed: int) -> list[dict]:
    """Rows of token counts with these medians."""
    rng = np.random.default_rng(seed)
    answer, prompt = np.log(total / (1 + ratio)), np.log(total * ratio / (1 + ratio))
    prompts = np.exp(prompt + PROMPT_SPREAD * rng.standard_normal(ROWS))
    means = answer + BETWEEN * rng.standard_normal((ROWS, 1))
    responses = np.exp(means + WITHIN * rng.standard_normal((ROWS, answers)))
    cut = lambda x: np.clip(np.round(x), 2, longest).astype(int).tolist()  # noqa: E731
    return [{"prompt": p, "responses": r} for p, r in zip(cut(prompts), cut(responses), strict=True)]


def measured(file: Path, tokenizer: str) -> list[dict]:
    """Token counts of UltraFeedback's layout."""
    from transformers import AutoTokenizer

    count = lambda text: len(made(text).input_ids)  # noqa: E731
    made = AutoTokenizer.from_pretrained(tokenizer)
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    answers = lambda row: [count(c["response"]) + 1 for c in row["completions"]]  # noqa: E731, one more is the end
    return [{"prompt": max(1, count(row["instruction"])), "responses": answers(row)} for row in rows]


def main() -> int:
    FOLDER.mkdir(exist_ok=True)
    made = {name: drawn(*given, seed) for seed, (name, given) in enumerate(PUBLISHED.items())}
    data = os.environ.get("ALIGN_JAX_DATA")
    if len(sys.argv) > 1 and data:
        made["alpaca-eval"] = measured(Path(data) / "preferences" / "train.jsonl", sys.argv[1])
    for name, rows in made.items():
        lines = "".join(json.dumps(row, separators=(",", ":")) + "\n" for row in rows)
        (FOLDER / f"{name}.jsonl").write_text(lines, encoding="utf-8")
        print(f"{name}: {len(rows)} rows")
    return 0


if __name__ == "__main__":
    sys.exit(main())
