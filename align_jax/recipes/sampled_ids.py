"""Responses that a model sampled, scored by the ids that it sampled."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from align_jax.data import Encoder
from align_jax.data.formats import Example
from align_jax.generation import response_text
from align_jax.terminal import plural


class SampledIds:
    """The ids that responses were sampled as (`tokens` of the rows that `align-jax generate` writes), where they are those of
    this tokenizer: a text may be tokenized otherwise than it was sampled.

    Args:
      encoder: of the model that scores.
    """

    def __init__(self, encoder: Encoder):
        self._encoder, self._used, self._others, self._differ = encoder, 0, 0, 0
        self._size = max(encoder.tokenizer.get_vocab().values()) + 1

    def of(self, example: Example, row: Mapping[str, Any]) -> Example:
        """The example with the row's ids, where their texts are its responses."""
        ids = row.get("tokens")
        # Behind a belief the ids do not stand behind the prompt.
        if ids is None or "beliefs" in row or not all(isinstance(r, str) for r in example.responses):
            return example
        if not self._are_of(example, ids, row.get("finish_reasons") or ()):
            self._others += 1
            return dataclasses.replace(example, tokens=None)
        sampled = dataclasses.replace(example, tokens=tuple(map(tuple, ids)))
        self._used += len(ids)
        prompt = self._encoder.prompt(example)
        self._differ += sum(
            self._without_end(self._encoder.answer(prompt, text).tokens) != self._without_end(self._encoder.sample(of).tokens)
            for text, of in zip(example.responses, ids, strict=True)
        )
        return sampled

    def _without_end(self, ids: Sequence[int]) -> list[int]:
        return list(ids[:-1] if ids[-1] in self._encoder.end_ids else ids)

    def lines(self) -> list[str]:
        """What was found, for the user."""
        lines = []
        if self._used:
            lines.append(
                f"{plural(self._used, 'response')} scored by the ids that were sampled (column tokens); the texts of "
                f"{self._differ} would become other ids"
            )
        if self._others:
            rows = plural(self._others, "row")
            lines.append(f"{rows} with a column tokens that is not of this tokenizer: their texts are scored")
        return lines

    def _are_of(self, example: Example, ids: Any, reasons: Sequence[str]) -> bool:
        tokenizer = self._encoder.tokenizer
        if not isinstance(ids, list | tuple) or len(ids) != len(example.responses):
            return False
        prompt = self._encoder.prompt(dataclasses.replace(example, responses=())).ids.tolist()
        for k, (text, tokens) in enumerate(zip(example.responses, ids, strict=True)):
            if not tokens or not all(type(t) is int and 0 <= t < self._size for t in tokens):
                return False
            found = response_text(tokenizer, prompt, self._without_end(tokens))
            cut = k < len(reasons) and reasons[k] == "stop"
            if found != text and not (cut and found.startswith(text)):
                return False
        return True
