"""Texts as tokens: lengths, what is cut, boundaries, rows that a template refuses, control tokens that users wrote."""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from align_jax.data.arrange.answers import encode_answer
from align_jax.data.config import DataConfig
from align_jax.data.encode import Encoder
from align_jax.data.formats.example import Example
from align_jax.data.inspect.findings import LISTED, Finding, of_all, percent
from align_jax.data.inspect.gather import Gathered
from align_jax.data.inspect.texts import plain
from align_jax.data.sources import RowError
from align_jax.errors import UserError
from align_jax.terminal import plural

QUANTILES = (0, 50, 95, 99, 100)
_UNCUT = 1 << 30  # tokens
_CUT = 0.05  # share of texts from which it is a warning that they are cut


@dataclasses.dataclass
class Measured:
    """All rows as tokens, in numbers.

    Attributes:
      prompts: tokens of each prompt before it is cut. answers: of each response, end of sequence included.
      refused: `{"where", "reason"}` of rows that the template or the tokenizer refuses.
      merged: places of responses of which a token would reach across their boundary. changed: places of rows whose prompt the
        chat template renders otherwise once an answer follows.
      control: control token -> places of texts in which it is written out; `kept` whether it stays text there.
      max_prompt, max_answer: the limits of the config.
    """

    prompts: np.ndarray
    answers: np.ndarray
    refused: list[dict[str, str]]
    merged: list[str]
    changed: list[str]
    control: dict[str, list[str]]
    kept: bool
    max_prompt: int
    max_answer: int


def measure(
    gathered: Gathered,
    tokenizer: Any,
    config: DataConfig,
    progress: Callable[[int], None] = lambda count: None,
    vocab_size: int | None = None,
) -> Measured:
    """Tokenizes every good row as training would, without cutting.

    Args:
      config: its templates and limits. progress: called with 1 after each row. vocab_size: of the model; None: tokens
        beyond it are not looked for.

    Raises:
      UserError: a tokenizer that cannot serve at all.
    """
    uncut = dataclasses.replace(config, max_prompt_tokens=_UNCUT, max_response_tokens=_UNCUT, max_responses=None)
    encoder = Encoder(tokenizer, uncut, vocab_size)
    special = sorted({token for token in tokenizer.all_special_tokens if token.strip()}, key=len, reverse=True)
    pattern = re.compile("|".join(map(re.escape, special))) if special else None

    def one(position: int) -> tuple[str, _Tokens | None, set[str]]:
        example = gathered.example(position)
        written = set() if pattern is None else set(pattern.findall("\n".join(_texts(example))))
        try:
            return "", _tokens(encoder, example), written
        except (RowError, UserError) as error:
            return str(error), None, written

    found = Measured(
        np.empty(0), np.empty(0), [], [], [], {}, config.control_tokens == "text", config.max_prompt_tokens,
        config.max_response_tokens,
    )  # fmt: skip
    prompts: list[int] = []
    answers: list[int] = []
    with concurrent.futures.ThreadPoolExecutor(config.workers) as pool:
        for position, (problem, tokens, written) in enumerate(pool.map(one, range(len(gathered.row)))):
            progress(1)
            where = gathered.where(position)
            for token in written:
                found.control.setdefault(token, []).append(where)
            if tokens is None:
                found.refused.append({"where": where, "reason": problem})
                continue
            prompts.append(tokens.prompt)
            answers += tokens.answers
            found.changed += [where] if tokens.changed else []
            found.merged += [
                f"{where}: answer {k} of {len(tokens.merged)}" for k, joined in enumerate(tokens.merged, 1) if joined
            ]
    found.prompts, found.answers = np.asarray(prompts, np.int64), np.asarray(answers, np.int64)
    return found


def _texts(example: Example) -> list[str]:
    return [plain(example.prompt), *map(plain, example.responses)]


@dataclasses.dataclass(frozen=True)
class _Tokens:
    """Of one row: how many tokens, and what its boundaries are like."""

    prompt: int
    answers: list[int]
    merged: list[bool]
    changed: bool


def _tokens(encoder: Encoder, example: Example) -> _Tokens:
    encoder.check(example)
    prompt = encoder.prompt(example)
    opinion = example.opinion
    if opinion is None:
        answers = [encode_answer(encoder, prompt, example, k) for k in range(len(example.responses))]
    else:  # as they are trained on: each behind the accepted belief, or all
        accepted = 0 if opinion.accepted is None else opinion.accepted
        belief, ids = (accepted, opinion.options[accepted]), encoder.beliefs(prompt, opinion.options)
        answers = [encoder.after_belief(prompt, belief, ids[accepted], text) for text in example.responses]
    return _Tokens(len(prompt.ids), [len(a.tokens) for a in answers], [a.merged for a in answers], prompt.changed)


def token_table(measured: Measured) -> dict[str, Any]:
    """Quantiles of lengths, and what the limits cut."""
    return {
        "prompts": _lengths_of(measured.prompts, measured.max_prompt),
        "answers": _lengths_of(measured.answers, measured.max_answer),
        "refused": len(measured.refused),
        "merged": len(measured.merged),
        "changed": len(measured.changed),
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
        lines = [f"{plural(n, 'row')}: {reason}" for reason, n in reasons.most_common(3)]
        lines += [found["where"] for found in measured.refused]
        total = len(measured.refused) + len(measured.prompts)
        text = of_all(len(measured.refused), total, "row", "are") + " refused by the chat template, tokenizer or vocabulary"
        findings.append(Finding("problem", "refused", text, tuple(lines), len(measured.refused), LISTED))
    for what, key in (("prompts", "max_prompt_tokens"), ("answers", "max_response_tokens")):
        found = table[what]
        if found.get("cut"):
            severity = "warning" if found["cut"] >= _CUT * found["count"] else "note"
            text = f"data.{key} {found['limit']} cuts {of_all(found['cut'], found['count'], what[:-1])} "
            text += f"({percent(found['cut'], found['count'])}), which loses {percent(found['lost'])} of their tokens"
            text += "" if what == "prompts" else "; a cut answer has no end of sequence"
            findings.append(Finding(severity, f"cut_{what}", text, count=found["cut"]))
    if measured.control:
        lines = tuple(f"{token}: {plural(len(at), 'row')}, first {at[0]}" for token, at in sorted(measured.control.items()))
        how = "stay text there" if measured.kept else "become control tokens there (data.control_tokens: tokens)"
        text = f"control tokens of this tokenizer are written out in texts; they {how}"
        count = len({where for places in measured.control.values() for where in places})
        findings.append(Finding("note" if measured.kept else "warning", "control_tokens", text, lines, count))
    if measured.merged:
        text = (
            f"{of_all(len(measured.merged), len(measured.answers), 'answer', 'begin')} within a token that prompt and answer "
        )
        text += "would share; the prompt keeps its tokens, and the answer is tokenized as a continuation"
        findings.append(Finding("note", "boundaries", text, tuple(measured.merged), len(measured.merged), 5))
    if measured.changed:
        text = (
            f"the chat template renders {plural(len(measured.changed), 'prompt')} otherwise once an answer follows; what both "
        )
        text += "renderings share is taken for the prompt, and the rest is scored with the answer"
        findings.append(Finding("note", "changed_prompts", text, tuple(measured.changed), len(measured.changed), 3))
    return findings
