"""Parts of belief statements: the id alone, and what the GDPO authors' code takes the likelihood of."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from align_jax.data.encode import Encoder, Prompt
from align_jax.data.sources import RowError
from align_jax.errors import UserError

_ID = "{id}"


def check_template(template: str, ids: bool, shortened: bool) -> None:
    """UserError where `data.belief_template` does not have the parts that are asked for."""
    if ids and not template.startswith(_ID):
        raise UserError(
            f"objective.calibrate: id needs data.belief_template to begin with {_ID}, got {template!r}; such as "
            "'{id}<{belief}>'"
        )
    if shortened and not template.partition("{belief}")[2]:
        raise UserError(
            "objective.statement: authors leaves out what data.belief_template has behind {belief}, but it has nothing there: "
            f"{template!r}; such as '{{id}}<{{belief}}>'"
        )


def beginnings(template: str, ids: bool, shortened: bool) -> list[str]:
    """Of the template: the id, and all but what stands behind the belief's words; those that are asked for."""
    before, words, _ = template.partition("{belief}")
    return ([_ID] if ids else []) + ([before + words] if shortened else [])


def statement_parts(
    encoder: Encoder, prompt: Prompt, options: Sequence[str], statements: Sequence[np.ndarray], beginning: str
) -> list[np.ndarray]:
    """The tokens of every statement that a beginning of the template is.

    Raises:
      RowError: a statement has no such tokens, or those of an id begin with those of another.
    """
    pairs = enumerate(zip(options, statements, strict=True))
    parts = [encoder.belief_part(prompt, (i, words), ids, beginning) for i, (words, ids) in pairs]
    for i, ids in enumerate(parts) if beginning == _ID else ():
        for k, other in enumerate(parts):
            if i != k and other[: len(ids)].tolist() == ids.tolist():
                raise RowError(
                    f"field 'options': by its tokens the id {k} begins with the id {i}, so that objective.calibrate: id cannot "
                    "tell these beliefs apart; use objective.calibrate: statement"
                )
    return parts
