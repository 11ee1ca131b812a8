"""Arrangement `gdpo`: the beliefs about a prompt, then texts conditioned on the accepted one."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from align_jax import registry
from align_jax.data.arrange.answers import segment_of
from align_jax.data.arrange.arranger import Arranger
from align_jax.data.arrange.base import Arrangement, Filled
from align_jax.data.arrange.labels import Label
from align_jax.data.arrange.survey import Item, Survey
from align_jax.data.config import DataConfig
from align_jax.data.encode import plain_key
from align_jax.data.formats.example import Example, Text
from align_jax.data.records import Segment
from align_jax.data.tallies import Tallies
from align_jax.data.targets import BeliefPosterior

TEXTS = {"dpo": 2, "kto": 3, "mpo": None}  # preference -> texts of a group; None: as many as there are


@dataclasses.dataclass(frozen=True)
class BeliefItem(Item):
    """A group whose texts are those of several rows: which rows' accepted and which rows' rejected ones."""

    accepted: tuple[int, ...] = ()
    rejected: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class BeliefSurvey(Survey):
    """Also `beliefs`, N, the most beliefs of a prompt; `targets`, prompt key -> belief distribution as it is estimated; and
    `estimated`, whether it is learned also where a row has one.
    """

    beliefs: int = 0
    targets: dict[str, BeliefPosterior] = dataclasses.field(default_factory=dict)
    estimated: bool = False

    def target(self, example: Example) -> tuple[np.ndarray, np.ndarray]:
        """p* of a row, and the parameters of the Dirichlet posterior that says how well it is known; 0 where nothing does."""
        opinion = example.opinion
        if opinion.probabilities is None or self.estimated:
            found = self.targets[plain_key(example)]
            return found.mean, found.alpha
        given = np.asarray(opinion.probabilities)
        return given, given * (opinion.answers or 0.0)


@dataclasses.dataclass(frozen=True)
class Beliefs(Arrangement):
    """Slots: the N belief statements of the prompt, then T texts, each conditioned on the accepted belief.

    The texts by `preference`: `dpo`: accepted and rejected; `kto`: also that of another prompt; `mpo`: accepted and rejected
    ones of rows with the same prompt and belief. Labels: `target_probs` float32 `[N]`; `target_alpha` float32 `[N]`, the
    Dirichlet posterior of these (0 where it is not known); `chosen_belief` int32, and with `mpo` `text_scores` float32 `[T]`.
    """

    name = "gdpo"
    has_beliefs = True

    preference: str = "dpo"

    def __post_init__(self):
        if self.preference not in TEXTS:
            raise ValueError(f"preference {self.preference!r} is not one of {', '.join(TEXTS)}")

    def key(self) -> tuple[str, str]:
        return registry.spelled(self, __package__), self.preference

    @property
    def labels(self) -> dict[str, Label]:
        known = {name: Label("float32", ("N",)) for name in ("target_probs", "target_alpha")}
        labels = {**known, "chosen_belief": Label("int32")}
        return labels | ({"text_scores": Label("float32", ("T",))} if self.preference == "mpo" else {})

    def sizes(self, slots: int) -> dict[str, int]:
        texts = TEXTS[self.preference] or 2
        return {"K": slots, "N": slots - texts, "T": texts}

    def survey(self, rows: Iterable[tuple[int, Example]], config: DataConfig) -> BeliefSurvey:
        tallies = Tallies()
        companions: dict[tuple, list[int]] = collections.defaultdict(list)

        def counted() -> Iterator[tuple[int, Example]]:
            for row, example in rows:
                key, opinion = plain_key(example), example.opinion
                tallies.add(example)
                companions[key, opinion.accepted].append(row)
                yield row, example

        found = super().survey(counted(), config)
        items, texts = found.items, TEXTS[self.preference]
        if texts is None:
            items = _with_companions(items, companions, config.max_responses or 8)
            texts = max((len(item.accepted) + len(item.rejected) for item in items), default=0)
        beliefs = max((len(tally.options) for tally in tallies.by_prompt.values()), default=0)
        targets, notes = tallies.targets(config)
        return BeliefSurvey(
            items, found.dropped, beliefs + texts, found.level, tuple(notes), beliefs, targets, config.target == "estimate"
        )

    def fill(self, index: int, item: Item, example: Example, arranger: Arranger) -> Filled:
        opinion, survey = example.opinion, arranger.survey
        count, slots = survey.beliefs, survey.slots
        prompt = arranger.encoder.prompt(example)
        statements = arranger.encoder.beliefs(prompt, opinion.options)
        beliefs = [Segment(ids, i) for i, ids in enumerate(statements)]
        chosen, scores = self._texts(index, item, example, arranger)
        belief = opinion.accepted, opinion.options[opinion.accepted]
        texts = [arranger.encoder.after_belief(prompt, belief, statements[opinion.accepted], text) for text in chosen]
        segments = beliefs + [segment_of(text, count + i, opinion.accepted) for i, text in enumerate(texts)]
        targets, alpha = survey.target(example)
        labels = {
            "target_probs": _padded(targets, count),
            "target_alpha": _padded(alpha, count),
            "chosen_belief": np.asarray(opinion.accepted, np.int32),
        }
        if self.preference == "mpo":
            labels["text_scores"] = _padded(scores, slots - count)
        return Filled(segments, labels, sum(text.cut for text in texts), slots)

    def _texts(self, index: int, item: Item, example: Example, arranger: Arranger) -> tuple[list[Text], list[float]]:
        """The texts of a group, and a score of each."""
        if self.preference == "mpo":
            sets = ((item.accepted, 0), (item.rejected, 1))
            chosen = [(arranger.example(row).responses[which], 1.0 - which) for rows, which in sets for row in rows]
            return [text for text, _ in chosen], [score for _, score in chosen]
        texts = list(example.responses)
        if self.preference == "kto":
            _, stranger = arranger.stranger(index, example)
            texts.append(stranger.responses[0])
        return texts, [1.0, 0.0]


def _padded(values: Sequence[float], size: int) -> np.ndarray:
    result = np.zeros(size, np.float32)
    result[: len(values)] = values
    return result


def _with_companions(items: Sequence[Item], companions: dict, most: int) -> list[BeliefItem]:
    """For every row, a set of accepted texts of rows with its prompt, group and belief, and as many rejected ones."""
    where = {row: (rows, i) for rows in companions.values() for i, row in enumerate(rows)}
    result = []
    for item in items:
        rows, start = where[item.row]
        count = min(len(rows), max(1, most // 2))
        chosen = tuple(rows[(start + i) % len(rows)] for i in range(count))
        result.append(BeliefItem(item.row, accepted=chosen, rejected=chosen))
    return result
