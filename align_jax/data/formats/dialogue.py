"""Formats whose prompts are conversations written as one text: Anthropic's `Human:` and `Assistant:`, NVIDIA's markers."""

from __future__ import annotations

import re
from collections.abc import Mapping

from align_jax.data.formats.base import Format
from align_jax.data.formats.example import Example, Text
from align_jax.data.formats.fields import as_response, field, items, number, short, text, written_number
from align_jax.data.formats.join import JoinedRows
from align_jax.data.sources import RowError, Source

_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant", "User": "user", "System": "system"}
_MARK = re.compile(r"\n?<extra_id_1>(User|Assistant|System)\n")


def turns(value: str, name: str) -> list[dict[str, str]]:
    """The messages of a text that says who speaks by `Human:` and `Assistant:`, each after a blank line.

    Raises:
      RowError: it does not begin so.
    """
    pieces = _TURN.split(value)
    if len(pieces) < 3 or pieces[0].strip():
        raise RowError(f"field {name!r}: expected text that begins with '\\n\\nHuman:', got {short(value)}")
    return [{"role": _ROLES[who], "content": said.strip()} for who, said in zip(pieces[1::2], pieces[2::2], strict=True)]


class HumanAssistant(Format):
    """Columns of Anthropic/hh-rlhf: `chosen` and `rejected`, each a whole conversation as text with `Human:` and `Assistant:`.
    Such rows are also pairs of plain texts, and `auto` takes them for these.
    """

    name = "hh"
    evaluated_as = "dpo"
    responses = 2

    def parse(self, row: Mapping) -> Example:
        chosen, rejected = (turns(_plain(row, name), name) for name in ("chosen", "rejected"))
        n, most = 0, min(len(chosen), len(rejected)) - 1  # the last turn is an answer, even where both are the same
        while n < most and chosen[n] == rejected[n]:
            n += 1
        if n == 0:
            raise RowError("fields 'chosen' and 'rejected': they do not begin with the same turn")
        if chosen[n]["role"] != "assistant" or rejected[n]["role"] != "assistant":
            raise RowError(f"fields 'chosen' and 'rejected': turn {n + 1}, where they part, is not the assistant's")
        return Example(tuple(chosen[:n]), (tuple(chosen[n:]), tuple(rejected[n:])), (1.0, 0.0))


class RankedAnswers(Format):
    """Columns of berkeley-nest/Nectar: `prompt`, text with `Human:` and `Assistant:`, and `answers`: objects with `answer` and
    `rank`, 1 the best. A score is how many ranks the answer is above the last one.
    """

    name = "nectar"
    columns = ("prompt", "answers")
    evaluated_as = "mpo"

    def parse(self, row: Mapping) -> Example:
        texts, ranks = [], []
        for i, answer in enumerate(items(row, "answers")):
            if not isinstance(answer, Mapping) or answer.get("rank") is None or answer.get("answer") is None:
                raise RowError(f"field 'answers[{i}]': expected an object with 'answer' and 'rank', got {short(answer)}")
            texts.append(as_response(answer["answer"], f"answers[{i}].answer"))
            ranks.append(number(answer["rank"], f"answers[{i}].rank"))
        found: Text = tuple(turns(_plain(row, "prompt"), "prompt"))
        if found[-1] == {"role": "assistant", "content": ""}:
            found = found[:-1]
        return Example(found, tuple(texts), tuple(max(ranks) - rank for rank in ranks))


class HelpSteer2(Format):
    """Columns of nvidia/HelpSteer2: `prompt`, `response` and `helpfulness`, a row a response; rows of one prompt (and `system`,
    `group` and other columns of it) become a group with the helpfulness as scores. Turns of a prompt are parted by
    `<extra_id_1>`.
    """

    name = "helpsteer2"
    columns = ("prompt", "response", "helpfulness")
    evaluated_as = "mpo"

    def arranged(self, source: Source) -> Source:
        of_prompt = ("prompt", "system", "group", "context", "tools", "documents")
        return JoinedRows(source, of_prompt, ("response", "helpfulness"), self.read)

    def parse(self, row: Mapping) -> Example:
        texts, scores = field(row, "response"), field(row, "helpfulness")
        if not isinstance(scores, list):  # a row alone, to see what format a file has
            texts, scores = [texts], [scores]
        pieces = _MARK.split(_plain(row, "prompt"))
        prompt: Text = pieces[0]
        if len(pieces) > 1:
            who = ["User", *pieces[1::2]]
            prompt = tuple({"role": _ROLES[w], "content": said} for w, said in zip(who, pieces[::2], strict=True))
            prompt = prompt[:-1] if prompt[-1] == {"role": "assistant", "content": ""} else prompt
        responses = tuple(as_response(value, "response") for value in texts)
        return Example(prompt, responses, tuple(written_number(value, "helpfulness") for value in scores))


def _plain(row: Mapping, name: str) -> str:
    value = text(row, name)
    if not isinstance(value, str):
        raise RowError(f"field {name!r}: expected text, got {short(value)}")
    return value
