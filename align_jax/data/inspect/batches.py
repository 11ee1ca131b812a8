"""A batch as text, from its arrays: the prompt, and of every response which tokens are scored."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from align_jax.batch import GroupBatch
from align_jax.terminal import plural

_PROMPT_TOKENS, _TOKENS = 48, 40  # that are shown of a prompt (its end) and of a response (its beginning and its end)
_TEXTS = 6  # of a group
_TAIL = 10  # of a response that is longer, its last ones
DIM, SCORED, OTHER_SCORED, END, PLAIN = "\x1b[2m", "\x1b[32m", "\x1b[92m", "\x1b[7;35m", "\x1b[0m"


@dataclasses.dataclass(frozen=True)
class _Segment:
    """One segment of a batch: where it belongs, its tokens, which of them are scored."""

    group: int
    slot: int
    prompt: list[int]
    tokens: list[int]
    scored: list[bool]
    parent: list[int]


def segments(batch: GroupBatch) -> Iterator[_Segment]:
    """The segments of a (host) batch without an axis of microbatches, in the order of its rows."""
    slots_of, per_shard = batch.mask.shape[-1], batch.mask.shape[0] // batch.tokens.shape[0]
    per_shard = 0 if batch.spread > 1 else per_shard  # then slots are counted within the batch
    for shard, row in np.ndindex(batch.tokens.shape[:2]):
        numbers, at = batch.segments[shard, row], batch.prompt_row[shard, row]
        for number in np.unique(numbers[numbers > 0]):
            mine = numbers == number
            slots = batch.slots[shard, row][mine]
            of_prompt = batch.prompt_segments[shard, at] == batch.groups[shard, row][mine][0]
            begin, parent = batch.prompt_tokens[shard, at][of_prompt].tolist(), batch.parents[shard, row][mine][0]
            first = batch.tokens[shard, row][mine][0]
            before = batch.targets[shard, row][numbers == parent].tolist() if parent else []
            tokens = (batch.tokens[shard, row][mine][1:] if batch.ends else batch.targets[shard, row][mine]).tolist()
            marks = slots[1:] if batch.ends else slots
            place = int(slots.max())
            group = shard * per_shard + place // slots_of if place >= 0 else -1
            prompt = [*begin, *([] if parent else [int(first)])]
            yield _Segment(group, place % slots_of if place >= 0 else -1, prompt, tokens, (marks >= 0).tolist(), before)


def shown(batch: GroupBatch, tokenizer: Any, where: Any, color: bool, groups: int = 3) -> list[str]:
    """Lines of the first groups of a batch.

    Scored tokens are green, each in another shade than its neighbours, and the end of sequence is marked; without colour they
    stand in brackets. What is not scored is dim.

    Args:
      where: number of a data row -> its place. groups: how many are shown.
    """
    found = sorted((s for s in segments(batch) if s.group >= 0), key=lambda s: (s.group, s.slot))
    numbers = list(dict.fromkeys(s.group for s in found))
    lines = []
    for group in numbers[:groups]:
        of_group = [s for s in found if s.group == group]
        prompt = next((s.prompt for s in of_group if not s.parent), of_group[0].prompt)
        lines.append(
            f"{where(int(batch.rows[group]))}: {plural(len(prompt), 'token')} of prompt, {plural(len(of_group), 'text')}"
        )
        lines.append(f"  {'prompt':<10} {_prompt(prompt, tokenizer, color)}")
        for segment in of_group[:_TEXTS]:
            lines.append(f"  {_label(batch, segment):<10} {_response(segment, tokenizer, color)}")
        lines += [f"  ... and {len(of_group) - _TEXTS} more"] if len(of_group) > _TEXTS else []
    if len(numbers) > groups:
        lines.append(f"... and {plural(len(numbers) - groups, 'more group')} in this batch")
    return lines


def _label(batch: GroupBatch, segment: _Segment) -> str:
    if (desirable := batch.labels.get("desirable")) is not None:  # the other one is the answer of another row
        return ("1: good" if desirable[segment.group] else "1: bad") if segment.slot == 0 else "unrelated"
    for name in ("scores", "target_probs"):
        values = batch.labels.get(name)
        if values is not None and segment.slot < values.shape[-1]:
            return f"{segment.slot + 1}: {values[segment.group, segment.slot]:.3g}"
    return f"{segment.slot + 1}:"


def _prompt(ids: list[int], tokenizer: Any, color: bool) -> str:
    text = "".join(pieces(ids[-_PROMPT_TOKENS:], [], tokenizer))
    text = f"... {text}" if len(ids) > _PROMPT_TOKENS else text
    return f"{DIM}{text}{PLAIN}" if color else text


def _response(segment: _Segment, tokenizer: Any, color: bool) -> str:
    parts, previous, shade = [], None, 0
    keep = list(range(len(segment.tokens)))
    if len(keep) > _TOKENS:
        keep = [*keep[: _TOKENS - _TAIL], None, *keep[-_TAIL:]]
    head, context = _TOKENS - _TAIL, [*segment.prompt, *segment.parent]
    if keep[-1] == len(keep) - 1:
        texts = dict(enumerate(pieces(segment.tokens, context, tokenizer)))
    else:
        texts = dict(enumerate(pieces(segment.tokens[:head], context, tokenizer)))
        end = segment.tokens[-_TAIL:]
        texts |= zip(keep[-_TAIL:], pieces(end, segment.tokens[:-_TAIL], tokenizer), strict=True)
    for i in keep:
        if i is None:
            left = f" ... {len(segment.tokens) - _TOKENS} more ... "
            parts.append(f"{PLAIN if color else ']' if previous else ''}{left}")
            previous = None
            continue
        scored, end = segment.scored[i], segment.tokens[i] == tokenizer.eos_token_id
        if color:
            shade = 1 - shade
            parts.append(f"{END if end else (SCORED, OTHER_SCORED)[shade] if scored else DIM}{texts[i]}{PLAIN}")
        else:
            parts.append("" if scored == bool(previous) else ("[" if scored else "]"))
            parts.append(f"<EOS {texts[i]}>" if end else texts[i])
        previous = scored
    return "".join(parts) + ("]" if previous and not color else "")


def pieces(ids: list[int], before: list[int], tokenizer: Any) -> list[str]:
    """The text of each token where it stands, control signs spelled out; a sign of several tokens stands at its last one."""
    start = before[-4:]  # what is before decides whether a word-mark is a space
    found, said = [], _decode(start, tokenizer)
    for i in range(len(ids)):
        new = _decode([*start, *ids[: i + 1]], tokenizer)
        whole = not new.endswith("\ufffd") or i == len(ids) - 1
        found.append(_visible(new[len(said) :]) if whole else "")
        said = new if whole else said
    return found


def _decode(ids: list[int], tokenizer: Any) -> str:
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False) if ids else ""


def _visible(text: str) -> str:
    """Text without what would move a terminal's cursor or change its colours."""
    spelled = {"\n": "\\n", "\t": "\\t", "\r": "\\r"}
    return "".join(spelled.get(c) or (c if c.isprintable() else f"\\x{ord(c):02x}") for c in text)
