"""Formats of demonstrations, which say what is answered and nothing of how good it is: for supervised fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from align_jax.data.formats.base import Format
from align_jax.data.formats.example import Example
from align_jax.data.formats.fields import field, response, short, text
from align_jax.data.formats.messages import answered, conversation, listed, objects
from align_jax.data.sources import RowError


class Demonstrations(Format):
    """Shared by formats with one response that nothing judges."""

    evaluated_as = "sft"
    responses = 1
    judged = False


class Conversations(Demonstrations):
    """Column: `messages`, a conversation; what stands before the assistant's first answer is the prompt, the rest the answer,
    of which the assistant's turns are scored.
    """

    name = "messages"
    columns = ("messages",)
    column: ClassVar[str] = "messages"

    def parse(self, row: Mapping) -> Example:
        value = field(row, self.column)
        value = objects(value, self.column) if isinstance(value, str) else listed(value)  # JSON text, as in a table of CSV
        if not isinstance(value, list | tuple) or not value:
            raise RowError(f"field {self.column!r}: expected a list of messages, got {short(value)}")
        prompt, answer = answered(conversation(value, self.column), self.column)
        return Example(prompt, (answer,))


class ShareGpt(Conversations):
    """Column: `conversations`, of messages with `from` (human, gpt, system, tool) and `value`; else as `messages`."""

    name = "sharegpt"
    columns = ("conversations",)
    column = "conversations"


class Completions(Demonstrations):
    """Columns: `prompt`, `completion`; texts or conversations. With a `label` they are `unpaired`."""

    name = "completions"
    columns = ("prompt", "completion")

    def parse(self, row: Mapping) -> Example:
        return Example(text(row, "prompt"), (response(row, "completion"),))


class Alpaca(Demonstrations):
    """Columns: `instruction`, `output`, and `input`, which follows the instruction where it is not blank."""

    name = "alpaca"
    columns = ("instruction", "output")

    def parse(self, row: Mapping) -> Example:
        instruction, given = text(row, "instruction"), row.get("input")
        if given is not None and not isinstance(given, str):
            raise RowError(f"field 'input': expected text, got {short(given)}")
        if given and given.strip() and isinstance(instruction, str):
            instruction = f"{instruction}\n\n{given}"
        return Example(instruction, (response(row, "output"),))
