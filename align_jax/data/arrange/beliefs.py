"""Arrangement `gdpo`: the beliefs about a prompt, then texts conditioned on the accepted one, or on each."""

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
from align_jax.data.arrange.statements import beginnings, check_template, statement_parts
from align_jax.data.arrange.survey import Item, Survey
from align_jax.data.config import LATER, DataConfig
from align_jax.data.encode import plain_key
from align_jax.data.formats.example import Example, Text
from align_jax.data.records import Segment
from align_jax.data.sources import RowError
from align_jax.data.tallies import Tallies
from align_jax.data.targets import BeliefPosterior

Said = Text | tuple[int, ...]  # a text, or the ids that it was sampled as
TEXTS = {"dpo": 2, "kto": 3, "mpo": None}  # preference -> texts of a group; None: as many as there are


@dataclasses.dataclass(frozen=True)
class BeliefItem(Item):
    """A group whose texts are those of several rows: which rows' accepted and which rows' rejected ones."""

    accepted: tuple[int, ...] = ()
    rejected: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class BeliefSurvey(Survey):
    """What all rows say together.

    Attributes:
      beliefs: N, the most beliefs of a prompt. texts: T, the most texts behind a belief.
      targets: prompt key -> belief distribution, estimated from the accepted beliefs, where there are any.
      estimated: whether it is taken also where a row has one.
      shares: prompt key -> the share of the prior in the distribution of its beliefs, by how many rows it has.
    """

    beliefs: int = 0
    texts: int = 0
    targets: dict[str, BeliefPosterior] = dataclasses.field(default_factory=dict)
    estimated: bool = False
    shares: dict[str, float] = dataclasses.field(default_factory=dict)

    def target(self, example: Example) -> tuple[np.ndarray, np.ndarray]:
        """p* of a row, and the parameters of the Dirichlet posterior that says how well it is known.

        The former is NaN, and the latter 0, where nothing says them.
        """
        opinion = example.opinion
        if opinion.probabilities is not None and not self.estimated:
            given = np.asarray(opinion.probabilities)
            return given, given * (opinion.answers or 0.0)
        found = self.targets.get(plain_key(example))
        if found is None:
            return np.full(len(opinion.options), np.nan), np.zeros(len(opinion.options))
        return found.mean, found.alpha


@dataclasses.dataclass(frozen=True)
class Beliefs(Arrangement):
    """Slots: the N belief statements of the prompt, then T texts, each conditioned on the accepted belief.

    The texts by `preference`: `dpo`: accepted and rejected; `kto`: also that of another prompt; `mpo`: accepted and rejected
    ones of rows with the same prompt and belief. Labels: `target_probs` float32 `[N]` (NaN where nobody knows them);
    `target_alpha` float32 `[N]`, the Dirichlet posterior of these (0 where it is not known); `chosen_belief` int32 (-1 where
    nobody says it), with `mpo` `text_scores` float32 `[T]`, and where rows need not be labelled `belief_smoothing`, float32:
    the share of the prior in the distribution of the prompt's beliefs.

    Attributes:
      preference: as above.
      every: the T texts stand once behind each of the N beliefs, in the order of these: N T slots.
      labelled: every row has to say which belief is accepted.
      ids: then N slots with the beginnings of the statements that are the beliefs' ids.
      shortened: then N slots with the statements without what the template has behind `{belief}`.
    """

    name = "gdpo"
    has_beliefs = True

    preference: str = "dpo"
    every: bool = False
    labelled: bool = True
    ids: bool = False
    shortened: bool = False

    def __post_init__(self):
        if self.preference not in TEXTS:
            raise ValueError(f"preference {self.preference!r} is not one of {', '.join(TEXTS)}")

    def key(self) -> tuple[str, str]:
        plain = self == Beliefs(self.preference)  # as caches and checkpoints that exist know it
        return registry.spelled(self, __package__), self.preference if plain else repr(dataclasses.astuple(self))

    @property
    def labels(self) -> dict[str, Label]:
        known = {name: Label("float32", ("N",)) for name in ("target_probs", "target_alpha")}
        labels = {**known, "chosen_belief": Label("int32")}
        labels |= {"text_scores": Label("float32", ("T",))} if self.preference == "mpo" else {}
        return labels | ({} if self.labelled else {"belief_smoothing": Label("float32")})

    def sizes(self, slots: int) -> dict[str, int]:
        texts, more = TEXTS[self.preference] or 2, self.ids + self.shortened
        count = slots // (1 + more + texts) if self.every else (slots - texts) // (1 + more)
        return {"K": slots, "N": count, "T": texts}

    def check(self, example: Example) -> None:
        if self.labelled and example.opinion is not None and example.opinion.accepted is None:
            raise RowError(
                "fields 'accept_choice_id' and 'reject_choice_id' are missing, the beliefs that the texts state; "
                "objective.latent_beliefs: true learns from rows without them"
            )

    def survey(self, rows: Iterable[tuple[int, Example]], config: DataConfig) -> BeliefSurvey:
        check_template(config.belief_template, self.ids, self.shortened)
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
        asked = tallies.by_prompt
        beliefs = max((len(tally.options) for tally in asked.values()), default=0)
        slots = beliefs * (1 + self.ids + self.shortened) + texts * (beliefs if self.every else 1)
        targets, notes = tallies.targets(config)
        if self.labelled:
            notes = [*tallies.estimated(config), *notes, *_without_effect(tallies, config)]
        else:
            notes = [*notes, *_measured_only(config)]
        prior = config.belief_prior
        shares = {key: _share_of_prior(tally.rows, len(tally.options), prior) for key, tally in asked.items()}
        known = beliefs, texts, targets, config.target == "estimate", shares
        return BeliefSurvey(items, found.dropped, slots, found.level, tuple(notes), *known)

    def fill(self, index: int, item: Item, example: Example, arranger: Arranger) -> Filled:
        opinion, survey, encoder = example.opinion, arranger.survey, arranger.encoder
        count, prompt = survey.beliefs, encoder.prompt(example)
        statements = encoder.beliefs(prompt, opinion.options)
        segments = [Segment(ids, i) for i, ids in enumerate(statements)]
        chosen, scores = self._texts(index, item, example, arranger)
        cut: set[int] = set()
        for place, belief in enumerate(range(len(statements)) if self.every else [opinion.accepted]):
            for i, text in enumerate(chosen):
                if _are_ids(text):
                    answer = encoder.sample(text)
                else:
                    answer = encoder.after_belief(prompt, (belief, opinion.options[belief]), statements[belief], text)
                segments.append(segment_of(answer, count + place * survey.texts + i, belief))
                cut |= {i} if answer.cut else set()
        first = survey.slots - count * (self.ids + self.shortened)
        for template in beginnings(encoder.config.belief_template, self.ids, self.shortened):
            parts = statement_parts(encoder, prompt, opinion.options, statements, template)
            segments += [Segment(ids, first + i) for i, ids in enumerate(parts)]
            first += count
        return Filled(segments, self._labels(example, scores, survey), len(cut), survey.slots)

    def _labels(self, example: Example, scores: Sequence[float], survey: BeliefSurvey) -> dict[str, np.ndarray]:
        opinion, key = example.opinion, plain_key(example)
        targets, alpha = survey.target(example)
        accepted = -1 if opinion.accepted is None else opinion.accepted
        labels = {
            "target_probs": _padded(targets, survey.beliefs),
            "target_alpha": _padded(alpha, survey.beliefs),
            "chosen_belief": np.asarray(accepted, np.int32),
        }
        if self.preference == "mpo":
            labels["text_scores"] = _padded(scores, survey.texts)
        if not self.labelled:
            labels["belief_smoothing"] = np.asarray(survey.shares[key], np.float32)
        return labels

    def _texts(self, index: int, item: Item, example: Example, arranger: Arranger) -> tuple[list[Said], list[float]]:
        """The texts of a group, and a score of each."""
        if self.preference == "mpo":
            sets = ((item.accepted, 0), (item.rejected, 1))
            chosen = [(_said(arranger.example(row), which), 1.0 - which) for rows, which in sets for row in rows]
            return [text for text, _ in chosen], [score for _, score in chosen]
        texts = [_said(example, which) for which in range(len(example.responses))]
        if self.preference == "kto":
            _, stranger = arranger.stranger(index, example)
            texts.append(_said(stranger, 0))
        return texts, [1.0, 0.0]


def _without_effect(tallies: Tallies, config: DataConfig) -> Iterator[str]:
    for key in tallies.unused(config):
        yield (
            f"data.{key}: {getattr(config, key)} has no effect: every row has `probabilities`, which are taken; leave it out, "
            "or set data.target: estimate, which counts the rows' accepted beliefs instead"
        )


def _measured_only(config: DataConfig) -> Iterator[str]:
    """What there is to say of distributions that latent beliefs do not learn."""
    for key in ("target", "target_shrink"):
        if (value := getattr(config, key)) != LATER[key]:
            yield (
                f"data.{key}: {value} has no effect on what is trained: with objective.latent_beliefs: true that is the "
                "posterior of the beliefs given the accepted texts; p* is only what the metrics compare with"
            )


def _said(example: Example, which: int) -> Said:
    """A text, as the ids that it was sampled as where these are known."""
    return example.responses[which] if example.tokens is None else example.tokens[which]


def _are_ids(text: Said) -> bool:
    return isinstance(text, tuple) and isinstance(text[0], int)


def _share_of_prior(rows: int, beliefs: int, prior: float) -> float:
    """`lambda` with which `(n mean + prior) / (n + N prior) = (1 - lambda) mean + lambda / N`, for n rows and N beliefs."""
    return beliefs * prior / (rows + beliefs * prior)


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
