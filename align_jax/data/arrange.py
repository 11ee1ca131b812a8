"""From examples to the slots that an objective needs: groups, pairs, single responses, beliefs and texts.

What a whole data set has to be looked through for (which rows have contrast, who shares a prompt and a belief, how often a
belief is accepted) is gathered once, in a `Survey`; arranging one item then reads only its own rows.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from align_jax.data.config import DataConfig
from align_jax.data.encode import Encoder, plain_key
from align_jax.data.formats import Example, Text
from align_jax.data.records import Segment, TokenGroup
from align_jax.errors import UserError

LAYOUTS = ("group", "pair", "unpaired", "sft", "gdpo")


@dataclasses.dataclass(frozen=True)
class Item:
    """One training group: the example it is made of, and which of its responses (`unpaired`) or companions it takes."""

    example: int
    response: int = 0
    accepted: tuple[int, ...] = ()  # examples whose accepted and
    rejected: tuple[int, ...] = ()  # whose rejected texts are contrasted (gdpo, preference mpo)


@dataclasses.dataclass(frozen=True)
class Survey:
    """What one look through all examples gives.

    Attributes:
      items: the groups that there are. dropped: examples that cannot serve: without contrast, or not desirable.
      slots: K, the most responses of a group. beliefs: N, the most beliefs of a prompt (0 unless `gdpo`).
      targets: prompt key -> estimated belief distribution, where a row has none of its own.
      group_names: the values of the `group` column, sorted.
      level: how many groups of layout `group` have one score for all their responses, and so no contrast.
    """

    items: list[Item]
    dropped: int
    slots: int
    beliefs: int
    targets: dict[str, np.ndarray]
    group_names: tuple[str, ...]
    level: int = 0


def survey(examples: Callable[[int], Example], rows: Sequence[int], layout: str, preference: str, config: DataConfig) -> Survey:
    """Looks through all examples once.

    Args:
      examples: row number -> example. rows: the rows that are not malformed.
      layout: one of `LAYOUTS`. preference: of the texts, for layout `gdpo`.

    Raises:
      UserError: the format cannot serve the layout, or nothing is left.
    """
    check_layout(config.format, layout)
    items, dropped, level, most, beliefs = [], 0, 0, 0, 0
    counts: dict[str, np.ndarray] = {}
    companions: dict[tuple, list[int]] = collections.defaultdict(list)
    names = set()
    for row in rows:
        example = examples(row)
        names.add(example.group)
        k = len(example.responses)
        equal = example.scores is not None and len(set(example.scores)) < 2
        if (layout in ("pair", "unpaired") and equal) or (layout == "sft" and example.desirable is False):
            dropped += 1
            continue
        level += layout == "group" and equal
        if layout == "unpaired" and example.desirable is None:
            items.extend(Item(row, i) for i in range(k))
        else:
            items.append(Item(row))
        most = max(most, k if config.max_responses is None else min(k, config.max_responses))
        if example.opinion is not None:
            key, n = plain_key(example), len(example.opinion.options)
            beliefs = max(beliefs, n)
            count = counts.setdefault(key, np.zeros(n))
            count[example.opinion.accepted] += 1
            companions[key, example.opinion.accepted].append(row)
    if not items:
        what = "a desirable completion" if layout == "sft" else "two different scores"
        raise UserError(f"no group is left: none of the {len(rows)} rows has {what}")
    targets = {key: smoothed(count, config.belief_prior) for key, count in counts.items()}
    if layout == "gdpo" and preference == "mpo":
        items = _with_companions(items, companions, config.max_responses or 8)
    slots = {"group": most, "pair": 2, "unpaired": 2, "sft": 1}.get(layout, 0)
    if layout == "gdpo":
        texts = {"dpo": 2, "kto": 3}.get(preference) or max(len(i.accepted) + len(i.rejected) for i in items)
        slots = beliefs + texts
    return Survey(items, dropped, slots, beliefs if layout == "gdpo" else 0, targets, tuple(sorted(names - {""})), level)


def check_layout(data_format: str, layout: str) -> None:
    """Raises UserError where a format cannot be arranged for a layout."""
    if data_format == "prompts":
        raise UserError("data.format 'prompts' has no responses: it is for on-policy rounds, which sample them")
    if layout == "gdpo" and data_format != "gdpo":
        raise UserError(f"objective gdpo needs beliefs, which data.format {data_format!r} does not have; use format gdpo")
    if data_format == "unpaired" and layout not in ("unpaired", "sft"):
        raise UserError("data.format 'unpaired' has one response a row, but the objective contrasts several; use kto or sft")


def smoothed(counts: np.ndarray, prior: float) -> np.ndarray:
    """Posterior mean of a distribution under a symmetric Dirichlet prior: `(n_b + prior) / sum_b (n_b + prior)`."""
    total = counts + prior
    return total / total.sum()


def _with_companions(items: list[Item], companions: dict, most: int) -> list[Item]:
    """For every row, a set of accepted texts of rows with its prompt, group and belief, and as many rejected ones."""
    where = {row: (rows, i) for rows in companions.values() for i, row in enumerate(rows)}
    result = []
    for item in items:
        rows, start = where[item.example]
        count = min(len(rows), max(1, most // 2))
        chosen = tuple(rows[(start + i) % len(rows)] for i in range(count))
        result.append(dataclasses.replace(item, accepted=chosen, rejected=chosen))
    return result


class Arranger:
    """Makes the `TokenGroup` of an item.

    Args:
      examples: row number -> example.
      found: the survey of the data.
      layout, preference: as in `survey`.
      seed: decides which responses `max_responses` keeps and which completions are mismatched.
      ends: as `TokenGroup.ends`.
    """

    def __init__(
        self, examples, found: Survey, encoder: Encoder, layout: str, preference: str, seed: int, ends: bool = False
    ):
        self._examples, self._found, self._encoder, self._ends = examples, found, encoder, ends
        self._layout, self._preference, self._seed = layout, preference, seed
        self._group_ids = {name: i for i, name in enumerate(found.group_names)}
        order = np.random.default_rng((seed, 17)).permutation(len(found.items))
        # A cycle through all items: everybody's mismatched completion is (nearly) somebody else's own.
        self._mismatch = np.empty(len(order), np.int64)
        self._mismatch[order] = np.roll(order, -1)

    def __call__(self, index: int) -> TokenGroup:
        item = self._found.items[index]
        example = self._examples(item.example)
        prompt, cut = self._encoder.encode_prompt(example.prompt, example.group, example.context)
        segments, labels, cuts = getattr(self, f"_{self._layout}")(index, item, example)
        labels["truncated"] = np.asarray([cut, cuts], np.int32)
        if self._group_ids:
            labels["group_id"] = np.asarray(self._group_ids.get(example.group, -1), np.int32)
        slots = self._found.slots if self._layout == "gdpo" else len(segments)
        return TokenGroup(index, prompt, tuple(segments), slots, labels, self._ends)

    def _group(self, index: int, item: Item, example: Example):
        keep = _subset(example.scores, self._encoder.config.max_responses, (self._seed, index))
        segments, cuts = self._segments(example, keep)
        return segments, _scored(example, keep), cuts

    def _pair(self, index: int, item: Item, example: Example):
        keep = (int(np.argmax(example.scores)), int(np.argmin(example.scores)))
        segments, cuts = self._segments(example, keep)
        return segments, _scored(example, keep), cuts

    def _sft(self, index: int, item: Item, example: Example):
        best = int(np.argmax(example.scores)) if example.scores is not None else 0
        segments, cuts = self._segments(example, (best,))
        return segments, {}, cuts

    def _unpaired(self, index: int, item: Item, example: Example):
        own, cuts = self._segments(example, (item.response,))
        other, stranger = self._stranger(index, example)
        tokens, _ = self._response(stranger, other.response)
        desirable = example.desirable
        if desirable is None:
            desirable = example.scores[item.response] > float(np.mean(example.scores))
        return [*own, Segment(tokens, 1)], {"desirable": np.asarray(desirable)}, cuts

    def _gdpo(self, index: int, item: Item, example: Example):
        opinion, count = example.opinion, self._found.beliefs
        beliefs = [Segment(self._encoder.encode_belief(i, o), i) for i, o in enumerate(opinion.options)]
        texts, text_scores = self._texts(index, item, example)
        cuts = sum(cut for _, cut in texts)
        segments = beliefs + [Segment(t, count + i, opinion.accepted) for i, (t, _) in enumerate(texts)]
        targets = opinion.probabilities if opinion.probabilities is not None else self._found.targets[plain_key(example)]
        padded = np.zeros(count, np.float32)
        padded[: len(targets)] = targets
        labels = {"target_probs": padded, "chosen_belief": np.asarray(opinion.accepted, np.int32)}
        if self._preference == "mpo":
            labels["text_scores"] = np.zeros(self._found.slots - count, np.float32)
            labels["text_scores"][: len(text_scores)] = text_scores
        return segments, labels, cuts

    def _texts(self, index: int, item: Item, example: Example):
        encode = self._encoder.encode_response
        if self._preference == "mpo":
            sets = ((item.accepted, 0), (item.rejected, 1))
            chosen = [(self._examples(row).responses[which], 1.0 - which) for rows, which in sets for row in rows]
            return [encode(example.prompt, text) for text, _ in chosen], [score for _, score in chosen]
        texts = [encode(example.prompt, text) for text in example.responses]
        if self._preference == "kto":
            _, stranger = self._stranger(index, example)
            texts.append(encode(example.prompt, stranger.responses[0]))
        return texts, [1.0, 0.0]

    def _stranger(self, index: int, example: Example) -> tuple[Item, Example]:
        """The next item of the cycle that has another prompt."""
        at = int(self._mismatch[index])
        for _ in range(len(self._mismatch)):
            item = self._found.items[at]
            other = self._examples(item.example)
            if other.prompt != example.prompt:
                return item, other
            at = int(self._mismatch[at])
        raise UserError("KTO needs at least two different prompts, for its estimate of the KL divergence; all are the same")

    def _segments(self, example: Example, keep: Sequence[int]) -> tuple[list[Segment], int]:
        encoded = [self._response(example, i) for i in keep]
        return [Segment(tokens, k) for k, (tokens, _) in enumerate(encoded)], sum(cut for _, cut in encoded)

    def _response(self, example: Example, which: int) -> tuple[np.ndarray, bool]:
        return encode_answer(self._encoder, example, which)


def encode_answer(encoder: Encoder, example: Example, which: int) -> tuple[np.ndarray, bool]:
    """Token ids of one response, after the belief that it states where it has one, and whether it was cut."""
    if example.tokens is not None:
        return encoder.cut_sample(example.tokens[which])
    before, opinion = None, example.opinion
    if opinion is not None:
        number = opinion.accepted if which == 0 else opinion.rejected
        before = encoder.encode_belief(number, opinion.options[number])
    return encoder.encode_response(example.prompt, example.responses[which], before)


def encode_group(
    encoder: Encoder, example: Example, row: int = 0, *, ends: bool = False
) -> tuple[TokenGroup, bool, list[bool]]:
    """All responses of an example as a group, whether the prompt was cut, and which responses were."""
    prompt, cut = encoder.encode_prompt(example.prompt, example.group, example.context)
    answers = [encode_answer(encoder, example, k) for k in range(len(example.responses))]
    segments = tuple(Segment(tokens, k) for k, (tokens, _) in enumerate(answers))
    return TokenGroup(row, prompt, segments, len(segments), ends=ends), cut, [was_cut for _, was_cut in answers]


def _scored(example: Example, keep: Sequence[int]) -> dict[str, np.ndarray]:
    """Scores of some responses, and the lengths of their texts before anything is cut, in characters."""
    characters = [_characters(example.responses[i]) for i in keep]
    return {
        "scores": np.asarray([example.scores[i] for i in keep], np.float32),
        "characters": np.asarray(characters, np.int32),
    }


def _characters(text: Text) -> int:
    return len(text) if isinstance(text, str) else sum(len(message["content"]) for message in text)


def _subset(scores: Sequence[float], most: int | None, seed: tuple[int, int]) -> list[int]:
    """Which responses to keep: all, or `most` drawn at random with the best and the worst among them, in order."""
    if most is None or len(scores) <= most:
        return list(range(len(scores)))
    ends = [int(np.argmax(scores)), int(np.argmin(scores))]
    ends = ends if ends[0] != ends[1] else [0, 1]
    others = [i for i in range(len(scores)) if i not in ends]
    drawn = np.random.default_rng(seed).choice(others, most - 2, replace=False)
    return sorted([*ends, *drawn.tolist()])
