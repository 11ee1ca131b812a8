"""The real opinions of `$ALIGN_JAX_DATA/opinions`: questions held out whole, what a model believes about them and writes."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial.distance import jensenshannon

from align_jax.evaluation.judges import Classifier, Question
from align_jax.experiments.work import Workplace, read_rows, write_rows

CHAT_STATEMENT, STATEMENT = "({belief}) ", "{id}<{belief}>"


@dataclasses.dataclass(frozen=True)
class Asked:
    """A question to a group of people: what they believe, and whether training saw it."""

    prompt: str
    group: str
    options: tuple[str, ...]
    probs: tuple[float, ...]
    seen: bool


def split(work: Workplace, held_out: float = 1 / 3) -> tuple[Path, Path]:
    """Training rows of two thirds of the questions, and held-out rows of all; the same for every cell.

    Returns:
      `train.jsonl`, and `held.jsonl`, whose rows say in `seen` whether their question is one of training.
    """

    def make(path: Path) -> None:
        path.mkdir(parents=True, exist_ok=True)
        train = read_rows(work.data("opinions/train.jsonl"))
        prompts = sorted({row["prompt"] for row in train})
        unseen = set(np.random.default_rng(0).permutation(prompts)[: round(len(prompts) * held_out)].tolist())
        write_rows(path / "train.jsonl", [row for row in train if row["prompt"] not in unseen])
        held = read_rows(work.data("opinions/eval.jsonl"))
        write_rows(path / "held.jsonl", [row | {"seen": row["prompt"] not in unseen} for row in held])

    folder = work.once("questions", make)
    return folder / "train.jsonl", folder / "held.jsonl"


def questions(held: Path) -> list[Asked]:
    """The distinct questions of a file of `split`, each to one group."""
    found = {}
    for row in read_rows(held):
        asked = Asked(row["prompt"], row["group"], tuple(row["options"]), tuple(row["probabilities"]), row["seen"])
        found.setdefault((asked.prompt, asked.group, asked.probs), asked)
    return list(found.values())


def mean_prediction(train: Path) -> np.ndarray:
    """What predicts no question: the mean over the questions of training of their distributions."""
    found = {(row["prompt"], row["group"]): row["probabilities"] for row in read_rows(train)}
    return np.mean(list(found.values()), axis=0)


def distance(p: Sequence[float], q: Sequence[float]) -> float:
    """The Jensen-Shannon distance, natural log."""
    return float(jensenshannon(np.asarray(p, np.float64), np.asarray(q, np.float64)))


def config(work: Workplace, train: Path, tokens: int) -> dict[str, Any]:
    """A config of GDPO on the opinions: the authors' templates for the tiny model, the chat template for others."""
    templates = {"belief_template": CHAT_STATEMENT if work.large else STATEMENT}
    if not work.large:
        templates["prompt_template"] = "<Q>{prompt}<A>"
    data = {"train": str(train), "format": "gdpo", "max_prompt_tokens": 128, "max_response_tokens": tokens, **templates}
    return {"model": {"path": str(work.model), "dtype": "float32"}, "data": data}


def speak(
    work: Workplace, values: Mapping[str, Any], run: str | None, asked: Sequence[Asked], samples: int, tokens: int
) -> list[dict]:
    """What a model believes about every question, and texts given each belief.

    Args:
      values: of `config`. run: name of the trained run in the cell; None: the model itself. samples: texts of a belief.

    Returns:
      A row per question and belief: `belief`, `distribution`, `mass`, `texts`.
    """
    prompts, output = work.folder / "prompts.jsonl", work.folder / "texts.jsonl"
    write_rows(prompts, [
        {"prompt": one.prompt, "group": one.group, "options": list(one.options), "belief": b}
        for one in asked for b in range(len(one.options))
    ])  # fmt: skip
    options = {"prompts": str(prompts), "output": str(output), "beliefs": True, "samples": samples, "max_new_tokens": tokens}
    given = {key: value for key, value in values.items() if key not in ("objective", "optimizer", "train")}
    rows = work.generate(work.config({**given, "generate": options}, run or "untrained"))
    names = {"belief": "belief", "distribution": "belief_distribution", "mass": "belief_mass", "texts": "responses"}
    return [{name: row[column] for name, column in names.items()} for row in rows]


@functools.lru_cache(1)
def judge(train: Path) -> Classifier:
    """A classifier of beliefs by text, trained on people's own answers; `quality` says how good it is on others."""
    rows = read_rows(train)
    return Classifier([(row["accept_response"], row["accept_choice"]) for row in rows])


def consistency(judge: Classifier, asked: Sequence[Asked], spoken: Sequence[Mapping[str, Any]]) -> float:
    """How often the judge finds in a text the belief that it was given; every belief has equally many texts."""
    given, asks = [], []
    for one, row in zip(_repeated(asked), spoken, strict=True):
        for text in row["texts"]:
            given.append(row["belief"])
            asks.append(Question(one.prompt, one.options, text))
    return float(np.mean(np.asarray(judge(asks).answers) == np.asarray(given)))


def repeats(asked: Sequence[Asked], spoken: Sequence[Mapping[str, Any]], template: str) -> float:
    """The share of texts that state a belief once more, as the template writes it."""
    found = [
        any(template.format(id=i, belief=option).strip() in text for i, option in enumerate(one.options))
        for one, row in zip(_repeated(asked), spoken, strict=True)
        for text in row["texts"]
    ]
    return float(np.mean(found))


def _repeated(asked: Sequence[Asked]) -> list[Asked]:
    """A question per belief of it, as `speak` returns them."""
    return [one for one in asked for _ in one.options]


def surprise(work: Workplace, values: Mapping[str, Any], run: str | None, held: Path, rows: int) -> float:
    """Nats per token of people's own held-out answers, each with its statement in front.

    Args:
      rows: how many answers, evenly spaced.
    """
    every = read_rows(held)
    chosen = [every[i] for i in np.linspace(0, len(every) - 1, rows).round().astype(int)]
    template = values["data"]["belief_template"]
    given, output = work.folder / "answers.jsonl", work.folder / "answers.scored.jsonl"
    write_rows(given, [
        {
            "prompt": row["prompt"],
            "responses": [template.format(id=row["accept_choice_id"], belief=row["accept_choice"]) + row["accept_response"]],
        }
        for row in chosen
    ])  # fmt: skip
    data = {key: value for key, value in values["data"].items() if key not in ("train", "format")} | {"format": "groups"}
    sections = {"model": values["model"], "data": data, "score": {"input": str(given), "output": str(output), "batch_rows": 8}}
    scored = work.score(work.config(sections, run or "untrained"))
    return -sum(row["logps"][0] for row in scored) / sum(row["lengths"][0] for row in scored)
