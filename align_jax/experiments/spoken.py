"""What a model of the controlled world believes, and what it writes: on request of each belief, and of its own accord."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from align_jax.experiments import survey, world
from align_jax.experiments.opinions import BELIEFS
from align_jax.experiments.work import Workplace, write_rows
from align_jax.terminal import plural

TOKENS = 24
_STATEMENT = re.compile(r"\s*\d+ ?: ?\w+ ?:")


def heard(
    work: Workplace, values: Mapping[str, Any], topics: Sequence[world.Topic], samples: int = 4, run: str | None = "run"
) -> dict[str, Any]:
    """Beliefs of a trained model, and whether texts express the belief that they were given.

    Args:
      values: its config. topics: what is asked. samples: texts of each belief.
      run: its name in the cell; None: the model of `values`.

    Returns:
      `distance`: the mean Jensen-Shannon distance to the topics' `probs`. `mass`: the probability of all beliefs together.
      `consistency`: the share of texts whose opening is that of their belief. `predicted`: the distributions. `texts`: the
      first of each belief of the first topic, to read.
    """
    asked = [survey.Asked(one.prompt, one.group, BELIEFS[: len(one.probs)], one.probs, True) for one in topics]
    spoken = survey.speak(work, values, run, asked, samples, TOKENS)
    firsts = [row for row in spoken if row["belief"] == 0]
    return {
        "distance": mean_distance([row["distribution"] for row in firsts], topics),
        "mass": float(np.mean([row["mass"] for row in firsts])),
        "consistency": float(np.mean([world.belief_of(text) == row["belief"] for row in spoken for text in row["texts"]])),
        "predicted": [row["distribution"] for row in firsts],
        "texts": [
            {"prompt": topics[0].prompt, "belief": asked[0].options[row["belief"]], "text": row["texts"][0]}
            for row in spoken[: len(asked[0].options)]
        ],
    }


def expressed(
    work: Workplace, values: Mapping[str, Any], topics: Sequence[world.Topic], samples: int, run: str | None = "run"
) -> dict[str, Any]:
    """Beliefs that texts express which a model writes to the prompt alone, as a user would ask it.

    Returns:
      `text_distance`: of `shares` of a prompt's texts to the topics' `probs`, the mean. `readable`: the share of
      texts that express a belief at all.
    """
    texts = texts_of(work, values, topics, samples, run)
    counts = np.stack([counted(of_topic) for of_topic in texts])
    return {
        "text_distance": mean_distance([shares(of_topic) for of_topic in texts], topics),
        "readable": float(counts.sum() / (samples * len(topics))),
        "silent": int((counts.sum(1) == 0).sum()),
    }


def texts_of(
    work: Workplace, values: Mapping[str, Any], topics: Sequence[world.Topic], samples: int, run: str | None = "run"
) -> list[list[str]]:
    """Texts that a model writes to each topic's prompt alone, `[topics][samples]`."""
    prompts, output = work.folder / "asked.jsonl", work.folder / "written.jsonl"
    write_rows(prompts, [{"prompt": one.prompt, "group": one.group} for one in topics])
    given = {key: value for key, value in values.items() if key not in ("objective", "optimizer", "train", "rounds")}
    options = {"prompts": str(prompts), "output": str(output), "samples": samples, "max_new_tokens": 2 * TOKENS}
    return [row["responses"] for row in work.generate(work.config({**given, "generate": options}, run or "untrained"))]


def shares(texts: Sequence[str]) -> np.ndarray:
    """The shares of the beliefs in texts, and last that of texts that express none, which people's are not: `[N + 1]`."""
    counts = counted(texts)
    return np.append(counts, len(texts) - counts.sum()) / len(texts)


def counted(texts: Sequence[str]) -> np.ndarray:
    """How many texts express each belief, `[N]`; a statement in front is not part of the text."""
    found = [world.belief_of(_STATEMENT.sub("", text, count=1).strip()) for text in texts]
    return np.bincount([b for b in found if b is not None], minlength=len(BELIEFS)).astype(np.float64)


def mean_distance(predicted: Sequence[Sequence[float]], topics: Sequence[world.Topic]) -> float:
    """The mean Jensen-Shannon distance to what people believe."""
    pad = lambda probs: np.pad(np.asarray(probs, float), (0, len(BELIEFS) + 1 - len(probs)))  # noqa: E731
    return float(np.mean([survey.distance(pad(p), pad(one.probs)) for p, one in zip(predicted, topics, strict=True)]))


def floor(topics: Sequence[world.Topic], samples: int, draws: int = 200) -> float:
    """The mean distance of the shares in `samples` perfect draws of each topic: what no model can be expected to beat."""
    rng = np.random.default_rng(0)
    found = [rng.multinomial(samples, one.probs, size=draws) / samples for one in topics]
    return float(np.mean([mean_distance([of_topic[i] for of_topic in found], topics) for i in range(draws)]))


def seeds(measured: Sequence[Any]) -> str:
    """How many seeds, for the note of a picture."""
    return plural(len(measured), "seed")


def first_below(steps: Sequence[int], values: Sequence[float], limit: float) -> int | None:
    """The first measured step whose value is below a limit; None where there is none."""
    return next((step for step, value in zip(steps, values, strict=True) if value < limit), None)
