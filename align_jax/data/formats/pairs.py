"""Format `pairs`: TRL's preference data."""

from __future__ import annotations

from collections.abc import Mapping

from align_jax.data.formats.base import Format
from align_jax.data.formats.example import Example, Text
from align_jax.data.formats.fields import response, text
from align_jax.data.formats.messages import short, words
from align_jax.data.sources import RowError

# Columns that often hold what is answered; `prompt` alone is read as that
_LIKE_PROMPTS = ("question", "instruction", "input", "query", "post", "history", "problem", "user", "user_input")


class Pairs(Format):
    """Columns: `chosen`, `rejected`, and `prompt`, which may be left out where both begin with it; texts or conversations."""

    name = "pairs"
    columns = ("chosen", "rejected")
    evaluated_as = "dpo"
    responses = 2

    def parse(self, row: Mapping) -> Example:
        chosen, rejected = response(row, "chosen"), response(row, "rejected")
        prompt = text(row, "prompt") if row.get("prompt") is not None else None
        if prompt is None or isinstance(prompt, str) and not isinstance(chosen, str) and not isinstance(rejected, str):
            # A text beside whole conversations repeats what the user says first in them (ultrafeedback_binarized).
            if isinstance(prompt, str) and chosen[0]["role"] == rejected[0]["role"] == "assistant":
                return Example(({"role": "user", "content": prompt},), (chosen, rejected), (1.0, 0.0))
            written = prompt
            prompt, chosen, rejected = _implicit_prompt(chosen, rejected, row)
            _check_repeated(written, prompt)
        elif not isinstance(prompt, str):
            # TRL also writes the whole conversation in `chosen` and `rejected`.
            chosen, rejected = (r[len(prompt) :] if r[: len(prompt)] == prompt else r for r in (chosen, rejected))
        if chosen == () or rejected == ():
            raise RowError("fields 'chosen' and 'rejected': nothing is left after the prompt that they share")
        return Example(prompt, (chosen, rejected), (1.0, 0.0))


def _check_repeated(written: str | None, prompt: Text) -> None:
    """RowError where a text `prompt` is none of the turns that the conversations begin with, nor the text of all of them."""
    if written is None or isinstance(prompt, str):
        return
    said = [_plain(words(message)) for message in prompt]
    asked = [text for text, message in zip(said, prompt, strict=True) if message["role"] == "user"]
    if _plain(written) in said or asked and all(text in _plain(written) for text in asked):
        return
    raise RowError(
        f"field 'prompt' is {short(written)}, but 'chosen' and 'rejected' begin with {short(words(prompt[-1]))}; remove one of "
        "the two, or make them the same"
    )


def _plain(text: str) -> str:
    """Text without differences of white space."""
    return " ".join(text.split())


def _implicit_prompt(chosen: Text, rejected: Text, row: Mapping) -> tuple[Text, Text, Text]:
    """TRL's rule: what chosen and rejected begin with in common is the prompt (for text, up to a word's end)."""
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise RowError("fields 'chosen' and 'rejected': one is text, the other a conversation")
    n, same = 0, chosen == rejected
    while n < min(len(chosen), len(rejected)) and chosen[n] == rejected[n]:
        n += 1
    if isinstance(chosen, str):
        n -= same and n > 0  # a pair without contrast: its last word is the answer, so that it can be counted
        while n and not (chosen[n - 1].isspace() or (n < len(chosen) and chosen[n].isspace())):
            n -= 1
        # As in TRL, a space between prompt and response belongs to the response: so do tokenizers join them.
        n -= n > 0 and chosen[n - 1] == " "
    elif same:
        n -= 1
    other = _column_like_a_prompt(row, chosen[:n])
    if other is not None:
        raise RowError(
            f"field 'prompt' is missing, and column {other!r} looks like it: 'chosen' and 'rejected' do not begin with it. "
            f"Rename {other!r} to 'prompt'; or remove it, if what they begin with is the prompt"
        )
    if not n or not chosen[:n]:
        raise RowError("field 'prompt' is missing, and 'chosen' and 'rejected' do not begin alike")
    return chosen[:n], chosen[n:], rejected[n:]


def _column_like_a_prompt(row: Mapping, shared: Text) -> str | None:
    """A column that has a prompt's name, and text that is not in what the answers share; None where there is none."""
    if not isinstance(shared, str):
        if any(message["role"] == "user" for message in shared):
            return None
        shared = "".join(map(words, shared))
    given = {name: row[name] for name in _LIKE_PROMPTS if isinstance(row.get(name), str) and row[name].strip()}
    return next((name for name, value in given.items() if value.strip() not in shared), None)
