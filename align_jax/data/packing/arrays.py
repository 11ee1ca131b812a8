"""Groups of tokens into the arrays of a batch; the layout is described in `align_jax.batch`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from align_jax.batch import GroupBatch
from align_jax.data.config import DataConfig
from align_jax.data.encode import Encoder
from align_jax.data.formats.example import Example, Text
from align_jax.data.formats.fields import as_text
from align_jax.data.packing.layout import RowLayout, fit, packed_plans, split
from align_jax.data.packing.plan import GroupSize, Shape, ShardPlan, Unit, group_size, longest, plan_single
from align_jax.data.records import Segment, TokenGroup
from align_jax.data.sources import RowError
from align_jax.errors import UserError

_UNCUT = 1 << 30  # tokens


def pack_groups(
    groups: Sequence[TokenGroup], *, shards: int, groups_per_shard: int, layout: RowLayout, slots: int | None = None
) -> GroupBatch:
    """Lays groups out in arrays.

    Groups go to shards so that computed tokens balance (one shard keeps the order given); all shards have one shape,
    the cheapest that the layout allows. Fewer groups than there is room for leave padding groups, `rows` -1.

    Args:
      groups: at most `shards * groups_per_shard`.
      shards: D.
      groups_per_shard: G / D.
      layout: packed or not, and which shapes there are.
      slots: K; by default that of the group with the most.

    Returns:
      NumPy arrays. Labels with an axis K (`TokenGroup.per_response`) are padded to K, others to the longest of the batch; with
      zeros.

    Raises:
      ValueError: no group, too many, a group with more slots than `slots`, or groups with different labels or `ends`.
    """
    if len({group.ends for group in groups}) > 1:
        raise ValueError("groups for scores and groups for log-probs (TokenGroup.ends) cannot share a batch")
    sizes = [group_size(group, pack=layout.pack) for group in groups]
    members = split(sizes, shards, groups_per_shard)
    of_shards = [[sizes[i] for i in shard] for shard in members]
    widest = max(group.slots for group in groups)
    slots = widest if slots is None else slots
    if widest > slots:
        raise ValueError(f"a group has {widest} response slots, more than the {slots} of the batch")
    if layout.pack:
        shape, plans = packed_plans(of_shards, layout)
        uniform = False
    else:
        shape, plans, uniform = _single_plans(of_shards, groups_per_shard, layout)
    writer = _Writer(shape, shards, groups_per_shard, slots, layout)
    for d, (shard, plan) in enumerate(zip(members, plans, strict=True)):
        writer.write(d, [groups[i] for i in shard], plan)
    return writer.batch([groups[i] for i in sum(members, [])], uniform)


def _single_plans(
    shards: Sequence[Sequence[GroupSize]], groups_per_shard: int, layout: RowLayout
) -> tuple[Shape, list[ShardPlan], bool]:
    """One prompt and one segment per row; the same number of rows for every prompt where that costs little."""
    prompt, unit = longest(size for shard in shards for size in shard)
    counts = [len(size.units) for shard in shards for size in shard]
    most = max(1, *counts)
    uniform = most * len(counts) <= (1 + layout.uniform_waste) * sum(counts)
    plans = [plan_single(shard, most if uniform else None) for shard in shards]
    ragged = max(1, max(len(plan.rows) for plan in plans))
    rows = groups_per_shard * most if uniform else fit(ragged, layout.row_counts)
    shape = Shape(groups_per_shard, fit(prompt, layout.prompt_lengths), rows, fit(unit, layout.response_lengths))
    return shape, plans, uniform


class _Writer:
    """The arrays of a batch while they are filled, shard by shard."""

    def __init__(self, shape: Shape, shards: int, groups_per_shard: int, slots: int, layout: RowLayout):
        prompts = (shards, shape.prompt_rows, shape.prompt_length)
        responses = (shards, shape.rows, shape.length)
        self.prompts = {name: np.zeros(prompts, np.int32) for name in ("tokens", "segments", "positions")}
        names = ("tokens", "targets", "positions", "segments", "parents", "groups")
        self.responses = {name: np.zeros(responses, np.int32) for name in names}
        self.responses["slots"] = np.full(responses, -1, np.int32)
        self.prompt_row = np.zeros((shards, shape.rows), np.int32)
        self.mask = np.zeros((shards, groups_per_shard, slots), bool)
        self.lengths = np.zeros((shards, groups_per_shard, slots), np.int32)
        self.rows = np.full((shards, groups_per_shard), -1, np.int32)
        self.slots, self.layout = slots, layout

    def write(self, d: int, groups: Sequence[TokenGroup], plan: ShardPlan) -> None:
        """Writes one shard."""
        numbers = self._write_prompts({name: array[d] for name, array in self.prompts.items()}, groups, plan)
        for row, (prompt_row, units) in enumerate(plan.rows):
            self.prompt_row[d, row] = prompt_row
            arrays = {name: array[d, row] for name, array in self.responses.items()}
            at = segment = 0
            for g, unit in units:
                at, segment = self._write_unit(arrays, at, segment, g, groups[g], unit, numbers[g])
        for g, group in enumerate(groups):
            self.rows[d, g] = group.row
            for segment in group.segments:
                if segment.slot >= 0:
                    self.mask[d, g, segment.slot] = True
                    self.lengths[d, g, segment.slot] = segment.length

    def _write_prompts(self, arrays: dict[str, np.ndarray], groups: Sequence[TokenGroup], plan: ShardPlan) -> dict[int, int]:
        """Returns the number of every group's prompt within its row."""
        numbers = {}
        for row, members in enumerate(plan.prompts):
            at = 0
            for number, g in enumerate(members, start=1):
                tokens = groups[g].prompt[:-1]
                if not self.layout.pack and self.layout.align == "right":
                    at = arrays["tokens"].shape[1] - len(tokens)
                here = slice(at, at + len(tokens))
                arrays["tokens"][row, here], arrays["segments"][row, here] = tokens, number
                arrays["positions"][row, here] = np.arange(len(tokens))
                numbers[g], at = number, at + len(tokens)
        return numbers

    def _write_unit(
        self, arrays: dict[str, np.ndarray], at: int, segment: int, g: int, group: TokenGroup, unit: Unit, number: int
    ) -> tuple[int, int]:
        """Writes the segments of a unit from position `at` on; returns the next position and the last segment number."""
        numbers: dict[int, int] = {}
        for index in unit.segments:
            own = group.segments[index]
            parent = group.segments[own.parent] if own.parent >= 0 else None
            segment += 1
            numbers[index] = segment
            targets, prefix, slots = own.tokens, len(group.prompt), np.full(len(own.tokens), own.slot)
            if own.scored is not None:
                slots = np.where(own.scored, own.slot, -1)
            if group.ends:
                targets, slots = np.append(targets, 0), np.append(np.full(len(targets), -1), own.slot)
            first = group.prompt[-1]
            if parent is not None and self.layout.pack:
                prefix, first = prefix + len(parent.tokens), parent.tokens[-1]
            elif parent is not None:
                targets = np.concatenate([parent.tokens, own.tokens])
                slots = np.concatenate([np.full(len(parent.tokens), -1), slots])
            here = slice(at, at + len(targets))
            arrays["tokens"][here] = np.concatenate([[first], targets[:-1]])
            arrays["targets"][here] = targets
            arrays["positions"][here] = prefix - 1 + np.arange(len(targets))
            arrays["segments"][here], arrays["groups"][here] = segment, number
            arrays["parents"][here] = numbers[own.parent] if parent is not None and self.layout.pack else 0
            arrays["slots"][here] = np.where(slots >= 0, g * self.slots + slots, -1)
            at += len(targets)
        return at, segment

    def batch(self, groups: Sequence[TokenGroup], uniform: bool) -> GroupBatch:
        """The batch; `groups` in the order of the real rows."""
        if uniform:
            shards, rows = self.prompt_row.shape
            prompts = self.prompts["tokens"].shape[1]
            self.prompt_row[:] = np.repeat(np.arange(prompts), rows // prompts)
        rows = self.rows.reshape(-1)
        return GroupBatch(
            **{f"prompt_{name}": array for name, array in self.prompts.items()},
            **self.responses,
            prompt_row=self.prompt_row,
            mask=self.mask.reshape(len(rows), self.slots),
            lengths=self.lengths.reshape(len(rows), self.slots),
            rows=rows,
            labels=_labels(groups, rows >= 0, self.slots),
            uniform=uniform,
            packed=self.layout.pack,
            ends=groups[0].ends,
            per_response=tuple(sorted(groups[0].per_response)),
        )


def _labels(groups: Sequence[TokenGroup], real: np.ndarray, slots: int) -> dict[str, np.ndarray]:
    names = set(groups[0].labels)
    different = next((group for group in groups if set(group.labels) != names), None)
    if different is not None:
        have = f"{sorted(different.labels)} and row {groups[0].row} {sorted(names)}"
        raise ValueError(f"groups of one batch must have the same labels; row {different.row} has {have}")
    result = {}
    for name in groups[0].labels:
        values = [np.asarray(group.labels[name]) for group in groups]
        if len({value.ndim for value in values}) > 1:
            raise ValueError(f"labels[{name!r}] has a different number of axes in different groups")
        shape = tuple(np.max([value.shape for value in values], axis=0).astype(int))
        if name in groups[0].per_response:
            shape = (slots, *shape[1:])
        result[name] = np.zeros((len(real), *shape), values[0].dtype)
        for at, value in zip(np.flatnonzero(real), values, strict=True):
            result[name][(at, *(slice(0, n) for n in value.shape))] = value
    return result


def make_groups(
    prompts: Sequence[Sequence[int]] | Sequence[Text],
    responses: Sequence[Sequence[Sequence[int]]] | Sequence[Sequence[Text]],
    scores: Sequence[Sequence[float]] | None = None,
    *,
    tokenizer: Any = None,
    ends: bool = False,
) -> GroupBatch:
    """Token lists or texts as a batch, the notebook way: groups in the order given, so that `[G, K]` arrays line up with them.

    One shard, one prompt per row and one response per row. What must be scored is in token lists: put the end-of-sequence token
    at the end of each response, and BOS before each prompt, if the model expects them. Texts get both.

    Args:
      prompts: `[G][m_g]` token ids, m_g >= 1; with a tokenizer `[G]` texts, or conversations (lists of messages).
      responses: `[G][K_g][n]` token ids, n >= 1; with a tokenizer `[G][K_g]` texts.
      tokenizer: of transformers. Texts become the tokens that they become in training (its chat template, where it has one, is
        used for plain prompts too), and nothing is cut.
      scores: `[G][K_g]`; the batch has `labels["scores"]` `[G, K]` if given.
      ends: True makes a batch for a reward model, `align_jax.response_scores`; False one for `align_jax.response_logps`.

    Returns:
      The batch; `mask` `[G, K]` says which responses exist.

    Raises:
      ValueError: no group, an empty prompt or response, a group without responses, scores that do not match, texts without a
        tokenizer.
      UserError: texts that the tokenizer or its template refuses.
    """
    if len(prompts) != len(responses) or (scores is not None and len(scores) != len(prompts)):
        count = "" if scores is None else f" and {len(scores)} lists of scores"
        raise ValueError(f"{len(prompts)} prompts, {len(responses)} lists of responses{count}: the numbers must be equal")
    if len(prompts) == 0:
        raise ValueError("make_groups needs at least one prompt")
    prompts, responses, scored = _as_tokens(prompts, responses, tokenizer)
    groups = []
    for g, (prompt, answers) in enumerate(zip(prompts, responses, strict=True)):
        if len(prompt) == 0 or len(answers) == 0 or any(len(tokens) == 0 for tokens in answers):
            what = "prompt" if len(prompt) == 0 else "list of responses" if len(answers) == 0 else "response"
            raise ValueError(f"group {g} has an empty {what}")
        if scores is not None and np.shape(scores[g]) != (len(answers),):
            raise ValueError(f"group {g} has {len(answers)} responses, but scores of shape {np.shape(scores[g])}")
        segments = tuple(
            Segment(np.asarray(tokens, np.int32), k, scored=of)
            for k, (tokens, of) in enumerate(zip(answers, scored[g], strict=True))
        )
        labels = {} if scores is None else {"scores": np.asarray(scores[g], np.float32)}
        tokens = np.asarray(prompt, np.int32)
        groups.append(TokenGroup(g, tokens, segments, len(answers), labels, ends, per_response=tuple(labels)))
    layout = RowLayout(pack=False, uniform_waste=float("inf"))
    return pack_groups(groups, shards=1, groups_per_shard=len(groups), layout=layout)


def _as_tokens(prompts: Sequence, responses: Sequence, tokenizer: Any) -> tuple[Sequence, Sequence, Sequence]:
    """Prompts and responses as token lists, and which tokens of each response are scored."""
    if tokenizer is None:
        texts = [value for group in (prompts, *responses) for value in group if isinstance(value, str | Mapping)]
        if texts or any(isinstance(value, str) for value in (*prompts, *responses)):
            raise ValueError("make_groups: prompts or responses are texts; give tokenizer=..., or lists of token ids")
        return prompts, responses, [[None] * len(group) for group in responses]
    encoder = Encoder(tokenizer, DataConfig(max_prompt_tokens=_UNCUT, max_response_tokens=_UNCUT))
    encoded, answers, scored = [], [], []
    for g, (prompt, texts) in enumerate(zip(prompts, responses, strict=True)):
        if isinstance(texts, str):
            raise ValueError(f"group {g}: responses are a list of texts per prompt, [G][K], not one text")
        try:
            whole = prompt if isinstance(prompt, str) else as_text(prompt, "prompt")
            given = tuple(t if isinstance(t, str) else as_text(t, f"responses[{k}]") for k, t in enumerate(texts))
            encoder.check(Example(whole, given))
            start = encoder.prompt(Example(whole, given))
            made = [encoder.answer(start, text) for text in given]
        except RowError as error:
            raise UserError(f"group {g}: {error}") from error
        encoded.append(start.ids)
        answers.append([answer.tokens for answer in made])
        scored.append([answer.scored for answer in made])
    return encoded, answers, scored
