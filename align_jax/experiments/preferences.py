"""Real preferences for the claims about MPO: splits by prompt, a few answers each, and one config for all objectives."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from align_jax.experiments.claim import Measurement, Options
from align_jax.experiments.orders import orders, summed
from align_jax.experiments.work import DATA, Workplace, read_rows, write_rows

Row = dict[str, Any]

# What is measured of the implicit rewards on held-out prompts, by the names that evaluations give it.
METRICS = {
    "accuracy": "rewards/accuracies",
    "controlled": "length/controlled_accuracy",
    "shorter": "length/accuracies_shorter",
    "rank": "rewards/rank_correlation",
    "best_of_n": "rewards/best_of_n",
}


@dataclasses.dataclass(frozen=True)
class Size:
    """How much of the data a model is shown.

    Attributes:
      prompt, response: tokens, at most. answers: to a prompt that is trained on. groups: prompts a step.
      search, held: prompts of a search, of train.jsonl, and prompts at the end, of eval.jsonl. held_answers: to each of those.
    """

    prompt: int = 64
    response: int = 96
    answers: int = 4
    groups: int = 4
    search: int = 80
    held: int = 80
    held_answers: int = 8


TINY = Size()
LARGE = Size(prompt=96, response=64, groups=2, search=24, held=60, held_answers=4)


def size_of(work: Workplace) -> Size:
    """The sizes that the model at hand is tried at on two cores."""
    return LARGE if work.large else TINY


def _held_rows(file: Path, size: Size) -> list[Row]:
    return [thinned(row, size.held_answers) for row in rows_of(file)[: size.held]]


def rows_of(file: Path) -> list[Row]:
    """Rows `{prompt, responses, scores}` of a file in UltraFeedback's layout."""
    return [
        {
            "prompt": row["instruction"],
            "responses": [one["response"] for one in row["completions"]],
            "scores": [one["overall_score"] for one in row["completions"]],
        }
        for row in read_rows(file)
    ]


def split(rows: Sequence[Row], held: int, seed: int = 0) -> tuple[list[Row], list[Row]]:
    """The rows without `held` of them, and these: other prompts, since every row has a prompt of its own."""
    order = np.random.default_rng(seed).permutation(len(rows))
    return [rows[i] for i in sorted(order[held:])], [rows[i] for i in sorted(order[:held])]


def thinned(row: Row, answers: int) -> Row:
    """A row with `answers` of its answers: the best, the worst, and those evenly between them by rank."""
    ranked = np.argsort(row["scores"], kind="stable")[::-1]
    return chosen(row, ranked[np.linspace(0, len(ranked) - 1, min(answers, len(ranked))).round().astype(int)])


def chosen(row: Row, which: Sequence[int]) -> Row:
    """A row with some of its answers."""
    return {**row, "responses": [row["responses"][i] for i in which], "scores": [row["scores"][i] for i in which]}


def pairs(rows: Sequence[Row]) -> list[Row]:
    """A row for every answer above its prompt's mean score with every one that is not: what MPO contrasts, two at a time."""
    made = []
    for row in rows:
        mean = np.mean(row["scores"])
        accepted = [i for i, score in enumerate(row["scores"]) if score > mean]
        rejected = [i for i, score in enumerate(row["scores"]) if score <= mean]
        made += [chosen(row, (i, j)) for i in accepted for j in rejected if row["responses"][i] != row["responses"][j]]
    return made


def written(work: Workplace, name: str, rows: Sequence[Row]) -> Path:
    """A file of the experiment with these rows."""
    return work.once(f"{name}.jsonl", lambda path: write_rows(path, list(rows)))


def held_out(work: Workplace, size: Size) -> Path:
    """The prompts of eval.jsonl, which are kept for the end."""
    return written(work, "eval", _held_rows(work.data("preferences/eval.jsonl"), size))


def config(work: Workplace, rows: Path, objective: Mapping[str, Any], **sections: Mapping[str, Any]) -> dict[str, Any]:
    """A config for training on a file of rows; `sections` add keys to it."""
    size = size_of(work)
    values: dict[str, Any] = {
        "model": {"path": str(work.model), "dtype": "float32"},
        "data": {
            "train": str(rows),
            "format": "groups",
            "max_prompt_tokens": size.prompt,
            "max_response_tokens": size.response,
        },
        "objective": dict(objective),
        "optimizer": {"name": "adamw", "schedule": "cosine", "warmup_ratio": 0.1},
        "train": {"groups_per_step": size.groups},
        "evaluate": {"samples": 0, "plots": False},
        "log": {"plots": False},
    }
    return {name: values.get(name, {}) | dict(sections.get(name, {})) for name in (*values, *sections)}


def agreement(work: Workplace, values: Mapping[str, Any], run: Path, held: Path, **options: Any) -> dict[str, dict[str, Any]]:
    """What `align-jax evaluate` says of a run on a file of rows, every objective by the same measure.

    Args:
      values: the config of the run. run: its folder. options: keys of `evaluate`.
    """
    own = {
        **values,
        "data": {**values["data"], "eval": str(held)},
        "objective": {"name": "mpo", "beta": 0.1},
        "evaluate": {**values["evaluate"], "models": {"trained": str(run)}, **options},
    }
    return work.evaluate(own, "evaluation")


def figures(found: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """`METRICS` of an evaluation: the number, and `NAME/low`, `NAME/high` where there is an interval over prompts."""
    values = {}
    for name, metric in METRICS.items():
        values[name] = found[metric]["value"]
        if found[metric]["low"] is not None:
            values |= {f"{name}/low": found[metric]["low"], f"{name}/high": found[metric]["high"]}
    return values


def length_alone(rows: Sequence[Row], counts: Sequence[Sequence[int]] | None = None) -> dict[str, float]:
    """Accuracy and rank correlation of the rule that the longer answer is better: a rival that learns nothing.

    Args:
      rows: with `responses` and `scores`. counts: lengths of the answers; their characters where none are given.
    """
    lengths = counts if counts is not None else [list(map(len, row["responses"])) for row in rows]
    return summed(orders(lengths, [row["scores"] for row in rows]))


def rivals(work: Workplace) -> dict[str, Any]:
    """`length_alone` on the held-out prompts, of whole answers and of what the model is shown of them.

    Returns:
      `characters` and `tokens` (each at most `limit`): accuracy and rank correlation; `cut`: the share of answers that are
      longer than `limit` tokens.
    """
    size = size_of(work)

    def make(path: Path) -> None:
        from align_jax.hf import read_tokenizer

        tokenizer, rows = read_tokenizer(str(work.model)), read_rows(held_out(work, size))
        # One more for the end of the answer.
        counts = [
            [len(tokenizer(text, add_special_tokens=False)["input_ids"]) + 1 for text in row["responses"]] for row in rows
        ]
        cut = np.concatenate(counts) > size.response
        tokens = length_alone(rows, [np.minimum(one, size.response).tolist() for one in counts])
        found = {"characters": length_alone(rows), "tokens": tokens, "cut": float(cut.mean()), "limit": size.response}
        stored(path, found)

    return json.loads(work.once("rivals.json", make).read_text(encoding="utf-8"))


def rivals_of(measured: Sequence[Measurement], options: Options) -> dict[str, Any]:
    """What cells kept of `rivals`; of cells that kept nothing, `characters` alone, from the data where they are at hand."""
    for one in measured:
        if "rivals" in one.values:
            return one.values["rivals"]
    file = Path(os.environ.get(DATA, "")) / "preferences/eval.jsonl"
    if not os.environ.get(DATA) or not file.exists():
        return {}
    return {"characters": length_alone(_held_rows(file, TINY if options.model == "tiny" else LARGE))}


def rivals_said(found: Mapping[str, Any]) -> str:
    """A clause of a verdict's line."""
    if not found:
        return ""
    whole = found["characters"]
    return f"; 'the longer answer is better' has accuracy {whole['accuracy']:.3f}, rank correlation {whole['rank']:.3f}"


def rivals_noted(found: Mapping[str, Any]) -> str:
    """Sentences of a picture's note."""
    if not found:
        return ""
    note = " Dotted: the rule 'the longer answer is better', in characters of whole answers"
    if "cut" not in found:
        return note + "."
    seen = found["tokens"]
    return (
        f"{note}. The model sees less: {found['cut']:.0%} of the held-out answers are cut at {found['limit']} tokens, and the "
        f"length of what is left has accuracy {seen['accuracy']:.3f} and rank correlation {seen['rank']:.3f}."
    )


def draw_rival(axis: Any, found: Mapping[str, Any], key: str, *, across: bool = False) -> None:
    """The rival's figure as a dotted line, where it has this one; `across`: a horizontal line."""
    if key in found.get("characters", {}):
        (axis.axhline if across else axis.axvline)(found["characters"][key], color="black", linewidth=1.3, linestyle=":")


def possible(axis: Any, key: str, *, across: bool = False) -> None:
    """Cuts an axis to what a metric can be: a share is from 0 to 1, a correlation from -1 to 1."""
    least = {"rank": -1.0, "kl": 0.0}.get(key, 0.0)
    most = np.inf if key == "kl" else 1.0
    low, high = axis.get_ylim() if across else axis.get_xlim()
    (axis.set_ylim if across else axis.set_xlim)(max(low, least), min(high, most))


def by_prompt(work: Workplace, values: Mapping[str, Any], held: Path, name: str = "run") -> dict[str, list[float]]:
    """`orders` of the implicit rewards of a run of the cell, which `align-jax score` gives."""
    output = work.folder / "scored.jsonl"
    given = work.config({**values, "score": {"input": str(held), "output": str(output)}}, name)
    rows = work.score(given)
    return orders([row["implicit_rewards"] for row in rows], [row["scores"] for row in read_rows(held)])


def samples_of(folder: Path, count: int) -> list[dict[str, str]]:
    """A few of the texts that an evaluation sampled, with their prompts."""
    rows = read_rows(next((folder / "evaluation").glob("samples-*.jsonl")))
    return [{"prompt": row["prompt"], "text": row["responses"][0]} for row in rows[:count]]


def stored(path: Path, values: Mapping[str, Any]) -> None:
    """Values as JSON."""
    path.write_text(json.dumps(values), encoding="utf-8")
