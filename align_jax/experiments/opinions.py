"""A small world of opinions whose belief distributions are known exactly: what GDPO is tried on without a network.

Every question is about a topic; people hold one of four beliefs about it, with probabilities drawn once per question
(some strongly imbalanced), and say why in a sentence that depends on the belief.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

BELIEFS = ("support", "oppose", "unsure", "depends")
TOPICS = (
    "night buses", "solar roofs", "city parks", "school uniforms", "remote work", "car sharing", "public libraries",
    "bike lanes", "street markets", "free museums", "plastic bags", "zoo visits", "space travel", "robot helpers",
    "home cooking", "team sports", "early mornings", "loud music", "long holidays", "short meetings",
)  # fmt: skip
_QUESTIONS = ("what do people here think about {topic} ?", "how do you feel about {topic} ?")
_OPENINGS = {
    "support": ("yes , i like {topic}", "i am all for {topic}", "we need more {topic}"),
    "oppose": ("no , i do not want {topic}", "i am against {topic}", "we have enough of {topic}"),
    "unsure": ("i do not know about {topic}", "i have no opinion on {topic}", "hard to say about {topic}"),
    "depends": ("it depends on who pays for {topic}", "some {topic} are fine", "only if {topic} are done well"),
}
_REASONS = {
    "support": ("because they make life better .", "because they help everyone .", "since they bring joy ."),
    "oppose": ("because they cost too much .", "because they cause trouble .", "since they help nobody ."),
    "unsure": ("because i never tried .", "and others know more .", "so ask me again later ."),
    "depends": ("and on the place .", "when the price is right .", "and not every day ."),
}


def distributions(seed: int) -> np.ndarray:
    """The group's belief distribution for every topic: float64 `[topics, beliefs]`, rows sum to 1.

    Every fifth topic is 94/2/2/2; the others are drawn from a Dirichlet distribution with concentration 0.7.
    """
    rng = np.random.default_rng(seed)
    probs = rng.dirichlet(np.full(len(BELIEFS), 0.7), size=len(TOPICS)).clip(0.01)
    for i in range(0, len(TOPICS), 5):
        probs[i] = np.roll([0.94, 0.02, 0.02, 0.02], rng.integers(len(BELIEFS)))
    return probs / probs.sum(1, keepdims=True)


def questions(count: int) -> list[str]:
    """A question about each of the first `count` topics."""
    return [_QUESTIONS[0].format(topic=topic) for topic in TOPICS[:count]]


def sentence(rng: np.random.Generator, topic: str, belief: str) -> str:
    """One sentence of a person who holds this belief about the topic."""
    return f"{rng.choice(_OPENINGS[belief])} {rng.choice(_REASONS[belief])}".format(topic=topic)


def openings(belief: str) -> tuple[str, ...]:
    """How sentences of this belief begin, with `{topic}` in them; those of no other belief begin so."""
    return _OPENINGS[belief]


def rows(count: int, seed: int, *, uniform: bool) -> Iterator[dict]:
    """Rows in the `gdpo` format.

    Args:
      count: how many.
      seed: of the rows; the distributions of the topics are those of seed 0 whatever it is.
      uniform: accepted beliefs drawn uniformly (a world without a majority, to learn the language from) instead of from
        the group's distribution.
    """
    rng, probs = np.random.default_rng((seed, uniform)), distributions(0)
    for _ in range(count):
        t = int(rng.integers(len(TOPICS)))
        topic, weights = TOPICS[t], np.full(len(BELIEFS), 1 / len(BELIEFS)) if uniform else probs[t]
        accepted = int(rng.choice(len(BELIEFS), p=weights))
        others = [b for b in range(len(BELIEFS)) if b != accepted]
        rejected = int(rng.choice(others))
        yield {
            "prompt": str(rng.choice(_QUESTIONS)).format(topic=topic),
            "options": list(BELIEFS),
            "probabilities": [round(float(p), 6) for p in weights],
            "accept_choice_id": accepted,
            "accept_choice": BELIEFS[accepted],
            "accept_response": sentence(rng, topic, BELIEFS[accepted]),
            "reject_choice_id": rejected,
            "reject_choice": BELIEFS[rejected],
            "reject_response": sentence(rng, topic, BELIEFS[rejected]),
        }


def write_rows(path: Path, items: Iterator[dict]) -> None:
    """Writes rows as JSONL."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")


def write_tokenizer(folder: Path) -> None:
    """A word tokenizer of this world's vocabulary, in Hugging Face format."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    sentences = (s for group in (_OPENINGS, _REASONS) for belief in BELIEFS for s in group[belief])
    texts = ["question", *BELIEFS, *TOPICS, *_QUESTIONS, *sentences]
    words = sorted({word for text in texts for word in text.replace("{topic}", " ").split()} | set("0123:"))
    special = ["<unk>", "<s>", "</s>"]
    vocab = {word: i for i, word in enumerate([*special, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(":", behavior="isolated")]
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    fast.save_pretrained(folder)
