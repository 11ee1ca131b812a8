"""On-policy rounds with beliefs (GDPO, arXiv 2412.20299): a belief first, texts given it, rewards given the belief, pairs.

    prompts.jsonl  drawn.jsonl  given.jsonl  samples.jsonl  stated.jsonl  scored.jsonl  pairs.jsonl

`drawn` has the beliefs that the model drew, `given` a row per prompt and drawn belief, `samples` the texts behind it, `stated`
the same with the belief's statement in front of each text, as the reward model sees it, and `pairs` is what GDPO trains on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial.distance import jensenshannon

from align_jax.config.job_sections import GenerateConfig
from align_jax.data import DataConfig, Encoder
from align_jax.errors import UserError
from align_jax.generation import response_text
from align_jax.generation.prompts import read_prompts
from align_jax.recipes import onpolicy
from align_jax.recipes.prompt_rows import encode
from align_jax.recipes.round_job import Job, read_rows, write_rows
from align_jax.recipes.setup import Setup

DRAW = 5  # a use of the run's seed
_SAMPLED = ("responses", "tokens", "finish_reasons", "beliefs", "belief_probabilities", "belief_distribution", "belief_mass")


def check_prompts(rows: Sequence[Mapping[str, Any]], which: str) -> None:
    """UserError where prompts have no beliefs to draw from, or none is known to be the right distribution of them."""
    for row in rows:
        for name, what in (("options", "beliefs"), ("probabilities", "distribution of its beliefs")):
            if row.get(name) is None:
                raise UserError(
                    f"data.{which}: the prompt {str(row['prompt'])[:60]!r} has no {what}; rounds with objective gdpo need "
                    "data.format: gdpo, or another with `options`"
                )


def give(prompts: Path, drawn: Path | None, output: Path, draws: tuple[int, int]) -> bool:
    """Writes a row for each belief that was drawn for a prompt, `belief` being fixed.

    Args:
      drawn: the prompts with the `beliefs` that the model drew; None: they are drawn here, from the rows' `probabilities`.
      draws: how many of each prompt, and the seed.
    """
    count, seed = draws
    rows = []
    for number, row in enumerate(read_rows(prompts)):
        if drawn is None:
            generator = np.random.default_rng(onpolicy.derived_seed(seed, number))
            beliefs = generator.choice(len(row["options"]), size=count, p=row["probabilities"]).tolist()
            rows += [{**row, "belief": belief} for belief in beliefs]
    if drawn is not None:
        for row in read_rows(drawn):
            plain = {name: value for name, value in row.items() if name not in _SAMPLED}
            rows += [{**plain, "belief": belief} for belief in row["beliefs"]]
    write_rows(output, rows)
    return True


def state(job: Job, samples: Path, output: Path) -> bool:
    """Writes samples with the statement of their belief in front of each text: what was said as a whole, and what is judged.

    `responses` and `tokens` are those of statement and text, `texts` and `text_tokens` those of the text alone.
    """
    setup = Setup.of(job.with_model(0))
    encoder = Encoder(setup.source.tokenizer, setup.config.data or DataConfig(), setup.source.shape.vocab_size)
    options, rows = GenerateConfig(beliefs=True), []
    for given in read_prompts(samples):
        row, encoded = given.values, encode(given, encoder, options, setup.source.shape)
        statements = [encoded.beliefs[belief] for belief in row["beliefs"]]
        said = [response_text(encoder.tokenizer, encoded.prompt, statement) for statement in statements]
        whole = {
            "responses": [statement + text for statement, text in zip(said, row["responses"], strict=True)],
            "tokens": [[*statement, *ids] for statement, ids in zip(statements, row["tokens"], strict=True)],
        }
        rows.append({**row, **whole, "texts": row["responses"], "text_tokens": row["tokens"]})
    write_rows(output, rows)
    return True


def pair(scored: Path, output: Path) -> bool:
    """Writes rows of format gdpo: the best and the worst text of each row, both given its belief, and the prompt's p*.

    Where all texts have one score there is no better one, and both are the first text: the preference then has no gradient, and
    the beliefs are calibrated all the same.
    """
    rows = []
    for row in read_rows(scored):
        best, worst = int(np.argmax(row["scores"])), int(np.argmin(row["scores"]))
        plain = {name: row[name] for name in ("prompt", "group", "context", "tools", "documents") if name in row}
        rows.append(plain | {"options": row["options"], "probabilities": row["probabilities"]} | {
            f"{name}_{column}": value
            for name, which in (("accept", best), ("reject", worst))
            for column, value in (
                ("choice_id", row["beliefs"][which]),
                ("response", row["texts"][which]),
                ("tokens", row["text_tokens"][which]),
            )
        })  # fmt: skip
    write_rows(output, rows)
    return True


def texts_alone(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows whose `tokens` are those of the texts, without the statements."""
    return [{**row, "tokens": row["text_tokens"]} for row in rows]


def sampled_ratios(joint: np.ndarray, now: Sequence[Mapping[str, Any]], start: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """The log-ratio of two models as they are sampled: a belief from `pi(b|x)` renormalised over the options, then the text.

        log q(b|x) pi(y|b,x) - log q_0(b|x) pi_0(y|b,x),   q(b|x) = pi(b|x) / sum_b' pi(b'|x)

    Args:
      joint: `[prompts, samples]`, `log pi(b, y|x) - log pi_0(b, y|x)`, not renormalised.
      now, start: a row per prompt with the `belief_mass` of each model, the sum above.
    """
    mass, before = (np.log(np.maximum([row["belief_mass"] for row in rows], np.finfo(float).tiny)) for rows in (now, start))
    return joint - (mass - before)[:, None]


def belief_summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """How far what the model believes is from p*, on held-out prompts, with 95% intervals over prompts.

    Args:
      rows: with `probabilities` (p*), `belief_distribution` (the model's, renormalised over the beliefs) and `belief_mass`.

    Returns:
      `eval/js_distance`, the mean Jensen-Shannon distance (natural logarithm), and `eval/belief_mass`, the mean probability
      that the model gives to the beliefs together; each with `_low` and `_high`.
    """
    distances = [jensenshannon(row["probabilities"], row["belief_distribution"]) for row in rows]
    masses = [row["belief_mass"] for row in rows]
    # the square root of a rounding error below 0 is NaN
    found = onpolicy.measured("js_distance", np.nan_to_num(np.asarray(distances)))
    return found | onpolicy.measured("belief_mass", np.asarray(masses))
