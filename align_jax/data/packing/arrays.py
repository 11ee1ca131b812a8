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
from align_jax.data.packing.plan import GroupSize, Shape, ShardPlan, group_size, longest, plan_single
from align_jax.data.packing.step_plan import plan_step, write_step
from align_jax.data.packing.writer import Writer
from align_jax.data.records import Segment, TokenGroup
from align_jax.data.sources import RowError
from align_jax.errors import UserError

_UNCUT = 1 << 30  # tokens


def pack_groups(
    groups: Sequence[TokenGroup], *, shards: int, groups_per_shard: int, layout: RowLayout, slots: int | None = None
) -> GroupBatch:
    """Lays groups out in arrays.

    Groups go to shards so that computed tokens balance (one shard keeps the order given); all shards have one shape,
    the cheapest that the layout allows. Fewer groups than there is room for leave padding groups, `rows` -1. With
    `layout.spread` above 1 each so many shards are a microbatch, over which the responses of a group may be split.

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
    widest = max((group.slots for group in groups), default=0)
    slots = widest if slots is None else slots
    if widest > slots:
        raise ValueError(f"a group has {widest} response slots, more than the {slots} of the batch")
    if layout.spread > 1:
        if shards % layout.spread:
            raise ValueError(f"{shards} shards are no multiple of the {layout.spread} that groups are spread over")
        microbatches = shards // layout.spread
        planned = plan_step(sizes, microbatches=microbatches, groups_per_shard=groups_per_shard, layout=layout)
        return write_step(planned, dict(enumerate(groups)), slots=slots, layout=layout)
    members = split(sizes, shards, groups_per_shard)
    of_shards = [[sizes[i] for i in shard] for shard in members]
    if layout.pack:
        shape, plans = packed_plans(of_shards, layout)
        uniform = False
    else:
        shape, plans, uniform = _single_plans(of_shards, groups_per_shard, layout)
    writer = Writer(shape, shards, groups_per_shard, slots, layout)
    for d, (shard, plan) in enumerate(zip(members, plans, strict=True)):
        own = {g: groups[i] for g, i in enumerate(shard)}
        for g, group in own.items():
            writer.write_group(d * groups_per_shard + g, group)
        writer.write_tokens(d, own, {g: g for g in own}, plan)
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
    for name, value in (("prompts", prompts), ("responses", responses)):
        if isinstance(value, str):
            raise ValueError(f"{name} must be a list, got the text {value[:40]!r}; put one in brackets")
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
