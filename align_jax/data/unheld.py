"""What rows of a format do not hold of examples, in words with counts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from align_jax.data.formats.example import Example
from align_jax.data.regroup import TARGETS, scored
from align_jax.terminal import plural

_SCORES = {
    "pairs": "a pair says which response is better, not by how much",
    "unpaired": "a response above the mean of its row is desirable",
    "completions": "a completion has none",
    "prompts": "a prompt has none",
}


def unheld(to: str, examples: Sequence[Example]) -> list[str]:
    """A line for each thing that examples have and rows of a format have not; those that become no row are not counted.

    Args:
      to: a name of `TARGETS`.
    """
    kept = [example for example in map(scored, examples) if not isinstance(TARGETS[to](example), str)]
    return [f"--to {to}: {line}" for line in _lines(to, kept)]


def _lines(to: str, kept: Sequence[Example]) -> Iterator[str]:
    beliefs = sum(example.opinion is not None for example in kept)
    if to != "gdpo" and beliefs:
        yield f"the beliefs and their probabilities of {plural(beliefs, 'row')} are left out"
    sampled = sum(example.tokens is not None for example in kept)
    if to != "samples" and sampled:
        yield f"the ids that were sampled are left out of {plural(sampled, 'row')}; the texts are tokenized again"
    scores = sum(_loses_scores(to, example) for example in kept)
    if scores:
        yield f"the scores or labels of {plural(scores, 'row')} are left out; {_SCORES[to]}"
    most = {"pairs": 2, "completions": 1, "prompts": 0}.get(to)
    several = [e for e in kept if to != "completions" or e.scores is not None]  # others are a completion each
    fewer = [] if most is None else [len(e.responses) - most for e in several if len(e.responses) > most]
    if fewer:
        stay = {
            "pairs": "the best and the worst of each stay",
            "completions": "the best of each stays",
            "prompts": "none stays",
        }
        yield f"{plural(sum(fewer), 'response')} of {plural(len(fewer), 'row')} {_are(sum(fewer))} left out; {stay[to]}"


def _are(count: int) -> str:
    return "is" if count == 1 else "are"


def _loses_scores(to: str, example: Example) -> bool:
    """Whether a row of a format says less of an example than its scores do."""
    if to not in _SCORES or example.scores is None or example.opinion is not None:
        return False
    if to == "pairs":
        return set(example.scores) != {0.0, 1.0}
    return to in ("completions", "prompts") or not set(example.scores) <= {0.0, 1.0}
