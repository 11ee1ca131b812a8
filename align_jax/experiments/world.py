"""A world of opinions that experiments control: its language is that of `opinions`, its belief distributions are given.

A base model that learned the language, but no majority, is trained once and kept for all experiments.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from align_jax.config.packaged import packaged_config
from align_jax.experiments import opinions
from align_jax.experiments.opinions import BELIEFS, TOPICS, sentence
from align_jax.experiments.work import Workplace, write_rows

PROMPT, STATEMENT, QUESTION = "question : {prompt}", "{id} : {belief} :", "what do people here think about {topic} ?"
BASE_ROWS, BASE_STEPS = 8000, 300


@dataclasses.dataclass(frozen=True)
class Topic:
    """What is asked, the distribution over the first of `BELIEFS`, and the group of people who hold it.

    `told` are the probabilities that the data say, where they differ from those that answers are drawn from.
    """

    name: str
    probs: tuple[float, ...]
    group: str = "all"
    told: tuple[float, ...] | None = None

    @property
    def prompt(self) -> str:
        return QUESTION.format(topic=self.name)

    @property
    def options(self) -> tuple[str, ...]:
        return BELIEFS[: len(self.probs)]


def topics(distributions: Mapping[str, Sequence[float]], count: int, seed: int) -> list[Topic]:
    """`count` topics, which take the distributions in turn, each permuted at random; its name becomes the topic's group."""
    rng = np.random.default_rng(seed)
    names, kinds = rng.permutation(TOPICS)[:count], list(distributions)
    return [
        Topic(str(name), tuple(float(p) for p in rng.permutation(distributions[kind])), kind)
        for name, kind in zip(names, (kinds[i % len(kinds)] for i in range(count)), strict=True)
    ]


def rows(asked: Sequence[Topic], each: int, seed: int) -> list[dict[str, Any]]:
    """Rows in the `gdpo` format, `each` of every topic, in random order.

    The accepted belief is drawn from the topic's distribution, the rejected one uniformly from the others.
    """
    rng, made = np.random.default_rng(seed), []
    for topic in asked:
        count = len(topic.probs)
        for accepted in rng.choice(count, size=each, p=np.asarray(topic.probs) / np.sum(topic.probs)):
            made.append(row(rng, topic, int(accepted), int(rng.choice([b for b in range(count) if b != accepted]))))
    return [made[i] for i in rng.permutation(len(made))]


def row(rng: np.random.Generator, topic: Topic, accepted: int, rejected: int) -> dict[str, Any]:
    """One row: a person who holds the belief `accepted` prefers a text of it to one of `rejected`."""
    return {
        "prompt": topic.prompt,
        "options": list(BELIEFS[: len(topic.probs)]),
        "probabilities": [round(float(p), 9) for p in topic.told or topic.probs],
        "accept_choice_id": accepted,
        "accept_choice": BELIEFS[accepted],
        "accept_response": sentence(rng, topic.name, BELIEFS[accepted]),
        "reject_choice_id": rejected,
        "reject_choice": BELIEFS[rejected],
        "reject_response": sentence(rng, topic.name, BELIEFS[rejected]),
        "group": topic.group,
    }


def belief_of(text: str) -> int | None:
    """Which belief a sentence of this world expresses: its opening says it; None where it is no such sentence."""
    found = [b for b, belief in enumerate(BELIEFS) if any(_begins(text, opening) for opening in opinions.openings(belief))]
    return found[0] if len(found) == 1 else None


def _begins(text: str, opening: str) -> bool:
    before, _, after = opening.partition("{topic}")
    words = " ".join(text.split())
    return words.startswith(before.strip()) and (not after.strip() or after.strip() in words)


def tokenizer(work: Workplace) -> Path:
    """The folder of this world's tokenizer."""
    return work.once("world/tokenizer", lambda path: opinions.write_tokenizer(path), common=True)


def base_model(work: Workplace) -> Path:
    """A model of this world to begin with: it states a belief, all equally often, and argues for it."""
    data = work.once(
        "world/base.jsonl", lambda path: write_rows(path, list(opinions.rows(BASE_ROWS, 0, uniform=True))), common=True
    )
    values = packaged("quickstart-base", data=data, tokenizer=tokenizer(work))
    values["train"] |= {"steps": BASE_STEPS}

    def make(path: Path) -> None:
        work.export_to(work.train(values, "base", shared=True), path)

    return work.once("world/base-model", make, common=True)


def config(work: Workplace, rows: Path, **sections: Mapping[str, Any]) -> dict[str, Any]:
    """The quick start's config of GDPO on a file of this world; `sections` change keys of it, None takes one out."""
    values = packaged("quickstart", data=rows)
    values["model"]["path"] = str(base_model(work))
    for name, changed in sections.items():
        merged = values.get(name, {}) | dict(changed)
        if name == "objective" and "name" in changed:  # the keys of another objective are others
            merged = dict(changed)
        values[name] = {key: value for key, value in merged.items() if value is not None}
    return values


def packaged(name: str, *, data: Path, tokenizer: Path | None = None) -> dict[str, Any]:
    """A config that comes with align_jax, as nested dicts, on another file and without an evaluation."""
    values = yaml.safe_load(packaged_config(name).read_text(encoding="utf-8"))
    values["data"] |= {"train": str(data)}
    values["data"].pop("eval", None)
    values["train"].pop("eval_every", None)
    if tokenizer is not None:
        values["model"]["tokenizer"] = str(tokenizer)
    return {key: value for key, value in values.items() if key not in ("run", "checkpoint")}
