"""Which prompts are held out: a fraction of them, the same ones whatever the order of the rows and the run's seed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from align_jax.data.formats.example import Example


def prompt_digest(example: Example) -> bytes:
    """A hash of the prompt alone: rows that ask the same of another group, or with other options, stay on one side."""
    # As the key of a row without group, context and options, by which runs of before held out.
    return hashlib.sha256(repr((example.prompt, "", "", None)).encode(errors="surrogatepass")).digest()


def chosen_prompts(prompts: Iterable[bytes], fraction: float) -> set[bytes]:
    """Those that are held out, at least one and at most all but one.

    Args:
      prompts: of all rows, by `prompt_digest`. fraction: above 0 and below 1.
    """
    distinct = sorted(set(prompts))
    return set(distinct[: min(max(1, round(fraction * len(distinct))), max(0, len(distinct) - 1))])
