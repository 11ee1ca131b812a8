"""Formats of two or more responses in columns of their own: HelpSteer3, SHP, ultrafeedback_reward."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from align_jax.data.formats.base import Format
from align_jax.data.formats.example import Example
from align_jax.data.formats.fields import field, label, response, short, text, written_number
from align_jax.data.formats.messages import conversation, last_answer, listed
from align_jax.data.sources import RowError


class HelpSteer3(Format):
    """Columns of nvidia/HelpSteer3: `context` (messages), `response1`, `response2`, and `overall_preference` from -3 (the first
    is much better) to 3. The better response has the preference as its score, the other one 0.
    """

    name = "helpsteer3"
    columns = ("context", "response1", "response2", "overall_preference")
    evaluated_as = "dpo"
    responses = 2

    def parse(self, row: Mapping) -> Example:
        preference = written_number(field(row, "overall_preference"), "overall_preference")
        scores = (max(-preference, 0.0), max(preference, 0.0))
        return Example(text(row, "context"), (response(row, "response1"), response(row, "response2")), scores)

    def read(self, row: Mapping) -> Example:
        return dataclasses.replace(super().read(row), context="")  # here the column is the prompt


class StanfordPairs(Format):
    """Columns of stanfordnlp/SHP: `history` (the post), `human_ref_A`, `human_ref_B`, and `labels`: 1 where A is preferred."""

    name = "shp"
    columns = ("history", "human_ref_A", "human_ref_B", "labels")
    evaluated_as = "dpo"
    responses = 2

    def parse(self, row: Mapping) -> Example:
        first_is_better = label(row, "labels")
        if first_is_better is None:
            raise RowError(f"field 'labels': expected 1 (A is preferred) or 0, got {row['labels']!r}")
        first, second = response(row, "human_ref_A"), response(row, "human_ref_B")
        return Example(text(row, "history"), (first, second) if first_is_better else (second, first), (1.0, 0.0))


class NumberedAnswers(Format):
    """Columns of ChenDRAG/ultrafeedback_reward: `A0`, `A1`, ..., each a conversation that ends with another answer, and the
    score of each: `A0_score` or `score_A0`.
    """

    name = "ultrafeedback_reward"
    columns = ("A0", "A1")
    evaluated_as = "mpo"

    def parse(self, row: Mapping) -> Example:
        prompts, answers, scores = [], [], []
        while row.get(name := f"A{len(answers)}") is not None:
            value = listed(row[name])
            if not isinstance(value, list | tuple):
                raise RowError(f"field {name!r}: expected a list of messages, got {short(value)}")
            prompt, answer = last_answer(conversation(value, name), name)
            key = next((key for key in (f"{name}_score", f"score_{name}") if row.get(key) is not None), f"{name}_score")
            prompts.append(prompt), answers.append(answer), scores.append(written_number(field(row, key), key))
        if not answers:
            raise RowError("field 'A0' is missing")
        if any(prompt != prompts[0] for prompt in prompts):
            raise RowError("fields 'A0', 'A1', ...: the conversations differ before the last answer")
        return Example(prompts[0], tuple(answers), tuple(scores))
