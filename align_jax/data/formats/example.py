"""What a row of any format becomes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

# Plain text, or the messages of a conversation: `role`, `content` (text), and what else a chat template may use, such as
# `tool_calls`; keys of a message without a value are left out
Text = str | tuple[Mapping[str, Any], ...]


@dataclasses.dataclass(frozen=True)
class Opinion:
    """The belief part of a row.

    `probabilities` is None where it has to be estimated, the choices where nobody says them; `answers` is how many it was
    counted from, None where nobody says.
    """

    options: tuple[str, ...]
    probabilities: tuple[float, ...] | None
    accepted: int | None
    rejected: int | None
    answers: float | None = None


@dataclasses.dataclass(frozen=True)
class Example:
    """One row of any format.

    Attributes:
      prompt: what is answered.
      responses: the answers; accepted and rejected text where there are beliefs (without the belief).
      scores: one per response (1 and 0 for a pair); None where single responses are labelled.
      desirable: the label of a single response, else None.
      opinion: the beliefs of the row, else None.
      group, context: optional columns, for templates and for metrics per group of people.
      tokens: ids of every response as a model sampled them, its end token included, else None.
      tools, documents: what a chat template is given beside the messages, else None.
      source: the label of the data set that the row is of, in a mixture of several.
      left_out: how many empty responses were left out (`data.on_empty: drop`).
    """

    prompt: Text
    responses: tuple[Text, ...]
    scores: tuple[float, ...] | None = None
    desirable: bool | None = None
    opinion: Opinion | None = None
    group: str = ""
    context: str = ""
    tokens: tuple[tuple[int, ...], ...] | None = None
    tools: tuple[Mapping[str, Any], ...] | None = None
    documents: tuple[Mapping[str, Any], ...] | None = None
    source: str = ""
    left_out: int = 0
