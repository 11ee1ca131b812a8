"""Texts as tokens: lengths, what is cut, boundaries, rows that a template refuses, control tokens that users wrote."""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from align_jax.data.arrange import encode_group
from align_jax.data.config import DataConfig
from align_jax.data.encode import Encoder
from align_jax.data.formats.example import Example
from align_jax.data.inspect.findings import LISTED, Finding, percent
from align_jax.data.inspect.gather import Gathered
from align_jax.data.inspect.texts import plain
from align_jax.data.sources import RowError
from align_jax.errors import UserError

QUANTILES = (0, 50, 95, 99, 100)
_UNCUT = 1 << 30  # tokens
_CUT = 0.05  # share of texts from which it is a warning that they are cut


@dataclasses.dataclass
class Measured:
    """All rows as tokens, in numbers.

    Attributes:
      prompts: tokens of each prompt before it is cut. answers: of each response, end of sequence included.
      refused: `{"where", "reason"}` of rows that the template or the tokenizer refuses.
      merged: places of responses whose first token would join with the prompt's last; None: not known.
      control: control token -> places of texts in which it is written out.
      max_prompt, max_answer: the limits of the config.
    """

    prompts: np.ndarray
    answers: np.ndarray
    refused: list[dict[str, str]]
    merged: list[str] | None
    control: dict[str, list[str]]
    max_prompt: int
    max_answer: int


def measure(
    gathered: Gathered, tokenizer: Any, config: DataConfig, progress: Callable[[int], None] = lambda count: None
) -> Measured:
    """Tokenizes every good row as training would, without cutting.

    Args:
      config: its templates and limits. progress: called with 1 after each row.

    Raises:
      UserError: a tokenizer that cannot serve at all.
    """
    uncut = dataclasses.replace(config, max_prompt_tokens=_UNCUT, max_response_tokens=_UNCUT, max_responses=None)
    encoder = Encoder(tokenizer, uncut)
    special = sorted({token for token in tokenizer.all_special_tokens if token.strip()}, key=len, reverse=True)
    pattern = re.compile("|".join(map(re.escape, special))) if special else None

    def one(position: int) -> tuple[str, int, list[int], list[bool], set[str]]:
        example = gathered.example(position)
        written = set() if pattern is None else set(pattern.findall("\n".join(_texts(example))))
        try:
            return "", *_lengths(encoder, example), written
        except (RowError, UserError) as error:
            return str(error), 0, [], [], written

    prompts, answers, refused, merged = [], [], [], []
    control: dict[str, list[str]] = collections.defaultdict(list)
    with concurrent.futures.ThreadPoolExecutor(config.workers) as pool:
        for position, (problem, prompt, lengths, joins, written) in enumerate(pool.map(one, range(len(gathered.row)))):
            progress(1)
            where = gathered.where(position)
            for token in written:
                control[token].append(where)
            if problem:
                refused.append({"where": where, "reason": problem})
                continue
            prompts.append(prompt)
            answers += lengths
            merged += [f"{where}: answer {k}" for k, joined in enumerate(joins) if joined]
    return Measured(
        np.asarray(prompts, np.int64), np.asarray(answers, np.int64), refused, merged if _KNOWS_MERGED else None, dict(control),
        config.max_prompt_tokens, config.max_response_tokens,
    )  # fmt: skip


def _texts(example: Example) -> list[str]:
    return [plain(example.prompt), *map(plain, example.responses)]


_KNOWS_MERGED = False


def _lengths(encoder: Encoder, example: Example) -> tuple[int, list[int], list[bool]]:
    """Tokens of the prompt and of every response, and which responses would join tokens with what stands before them."""
    if not example.responses:
        return len(encoder.encode_prompt(example.prompt, example.group, example.context)[0]), [], []
    group, *_ = encode_group(encoder, example)
    return len(group.prompt), [len(segment.tokens) for segment in group.segments], []


def token_table(measured: Measured) -> dict[str, Any]:
    """Quantiles of lengths, and what the limits cut."""
    return {
        "prompts": _lengths_of(measured.prompts, measured.max_prompt),
        "answers": _lengths_of(measured.answers, measured.max_answer),
        "refused": len(measured.refused),
        "merged": None if measured.merged is None else len(measured.merged),
        "control": {token: len(places) for token, places in sorted(measured.control.items())},
    }


def _lengths_of(lengths: np.ndarray, limit: int) -> dict[str, Any]:
    if not len(lengths):
        return {"count": 0}
    cut, lost = lengths > limit, np.maximum(lengths - limit, 0).sum()
    return {
        "count": len(lengths),
        "tokens": int(lengths.sum()),
        "quantiles": dict(zip(map(str, QUANTILES), np.percentile(lengths, QUANTILES).tolist(), strict=True)),
        "limit": limit,
        "cut": int(cut.sum()),
        "lost": float(lost / lengths.sum()),
    }


def token_findings(measured: Measured) -> list[Finding]:
    """What a template refuses, what is cut, what is written that looks like a control token."""
    findings, table = [], token_table(measured)
    if measured.refused:
        reasons = collections.Counter(found["reason"] for found in measured.refused)
        lines = [f"{n} rows: {reason}" for reason, n in reasons.most_common(3)]
        lines += [found["where"] for found in measured.refused[:LISTED]]
        total = len(measured.refused) + len(measured.prompts)
        text = f"{len(measured.refused)} of {total} rows are refused by the chat template or the tokenizer"
        findings.append(Finding("problem", "refused", text, tuple(lines), len(measured.refused)))
    for what, key in (("prompts", "max_prompt_tokens"), ("answers", "max_response_tokens")):
        found = table[what]
        if found.get("cut"):
            severity = "warning" if found["cut"] >= _CUT * found["count"] else "note"
            text = f"data.{key} {found['limit']} cuts {found['cut']} of {found['count']} {what} "
            text += f"({percent(found['cut'], found['count'])}), which loses {percent(found['lost'])} of their tokens"
            text += "" if what == "prompts" else "; a cut answer has no end of sequence"
            findings.append(Finding(severity, f"cut_{what}", text, count=found["cut"]))
    if measured.control:
        lines = tuple(f"{token}: {len(set(at))} rows, first {at[0]}" for token, at in sorted(measured.control.items()))
        text = "control tokens of this tokenizer are written out in texts; they are kept as text"
        findings.append(Finding("note", "control_tokens", text, lines, sum(map(len, measured.control.values()))))
    if measured.merged:
        text = f"{len(measured.merged)} of {len(measured.answers)} answers begin in the middle of a token that prompt and answer "
        text += "would share; they are split there"
        findings.append(Finding("note", "boundaries", text, tuple(measured.merged[:5]), len(measured.merged)))
    return findings
