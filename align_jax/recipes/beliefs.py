"""Answers of people as beliefs: labels each with the belief that it expresses, and writes the rows that GDPO learns from."""

from __future__ import annotations

import collections
import dataclasses
import math
import os
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from align_jax.config import Config
from align_jax.data.formats import Example
from align_jax.data.regroup import ConversionCounts
from align_jax.data.stances import Stance, accepted_answers, opinion_rows
from align_jax.data.written import WRITERS, ending_of, write_rows
from align_jax.errors import UserError
from align_jax.recipes.convert import check_written, read_examples
from align_jax.recipes.data_check import config_of_given
from align_jax.recipes.say import say, speaking
from align_jax.recipes.stance_labels import LABELLERS, Labelled, Labelling, Place
from align_jax.terminal import plural


@dataclasses.dataclass(frozen=True)
class LabelledBeliefs:
    """What was labelled, and what of it was written.

    Attributes:
      file: which. rows: how many it has. answers: how many there were.
      beliefs: belief -> how many answers express it. sure: the mean posterior of the belief that an answer was labelled with.
      left_out: why -> how many answers.
      agreement: with labels that were there, of the accepted answers, whose beliefs are counted: `accuracy`, `chance` (one
        belief of all that there are), `majority` (always the most frequent one) and how many `answers`, NaN and 0 where all
        accepted ones were learned from; `accuracy_of_all` and `all_answers`, the rejected ones too. None where there are no
        labels, or all were learned from.
    """

    file: Path
    rows: int
    answers: int
    beliefs: dict[str, int]
    sure: float
    left_out: dict[str, int]
    agreement: dict[str, float] | None

    def describe(self) -> list[str]:
        """Lines for the user."""
        used = sum(self.beliefs.values())
        shares = ", ".join(f"{belief} {count} ({count / max(used, 1):.1%})" for belief, count in self.beliefs.items())
        lines = [
            f"{plural(used, 'answer')} of {self.answers} labelled: {shares}",
            f"how sure: {self.sure:.3f}, the mean posterior of the belief that an answer was labelled with",
        ]
        lines += [f"left out: {plural(count, 'answer')}, {why}" for why, count in self.left_out.items()]
        if self.agreement is not None and not self.agreement["answers"]:
            lines.append(
                "agreement with the labels that were there: {accuracy_of_all:.3f} of {all_answers} rejected answers; not known "
                "of accepted ones, which are counted in p*: all that have labels were learned from".format(**self.agreement)
            )
        elif self.agreement is not None:
            lines.append(
                "agreement with the labels that were there: accuracy {accuracy:.3f} of {answers} accepted answers (chance "
                "{chance:.3f}, always the most frequent {majority:.3f}); {accuracy_of_all:.3f} of all {all_answers}".format(
                    **self.agreement
                )
            )
        return [*lines, f"{self.file}: {plural(self.rows, 'row')}, format gdpo"]


def label_beliefs(what: Any, output: str | os.PathLike, *overrides: str, **how: Any) -> LabelledBeliefs:
    """Labels answers with the belief that each expresses; writes rows of format gdpo with p* and how well it is known.

        label_beliefs("answers.jsonl", "beliefs.jsonl", by="model", model="path/to/llama", options=["support", "oppose"])
        label_beliefs("answers.jsonl", "beliefs.jsonl", "data.target_shrink=group", by="classifier", labelled="some.jsonl")

    Args:
      what: a data file, folder or hub id; a list of rows or a `datasets.Dataset`; or a config whose `data.train` it is.
      output: .jsonl, .jsonl.gz, .parquet or .array_record.
      overrides: `section.key=value`. how: the fields of `Labelling`.

    Raises:
      UserError: rows without answers or beliefs, a file that is there already, no answer that could be labelled.
    """
    if isinstance(how.get("options"), str):
        raise UserError(f"label_beliefs: options are a list of beliefs, got the text {how['options']!r}")
    try:
        labelling = Labelling(**how | ({"options": tuple(how["options"])} if how.get("options") is not None else {}))
    except TypeError as error:
        names = ", ".join(field.name for field in dataclasses.fields(Labelling))
        raise UserError(f"label_beliefs: {error}; the options are {names}") from error
    if not isinstance(output, str | os.PathLike):
        raise UserError(f"label_beliefs: {output!r} is no path to write to; expected one that ends in {', '.join(WRITERS)}")
    return run(config_of_given(what, overrides, "data beliefs"), Path(output), labelling)


def run(config: Config, output: Path, how: Labelling) -> LabelledBeliefs:
    """Labels the answers of `data.train` of a config, see `label_beliefs`."""
    with speaking(config.log.quiet, config.log.progress):
        if config.data is None or config.data.train is None:
            raise UserError("data.train: there is no data to label")
        if config.data.target == "given":
            raise UserError("data.target: given, but distributions are estimated here, from the answers; leave it out")
        ending_of(output)
        if output.exists() and not how.force:
            raise UserError(f"{output} is there already; --force replaces it")
        labelled = LABELLERS[how.by](config, how)  # what it needs is checked before anything is read
        examples = read_examples(config, ConversionCounts())
        options = _options(examples, how.options)
        result = _write(config, (output, how), (examples, options), labelled(examples, options))
        for line in result.describe():
            say(line)
        return result


def _options(examples: Sequence[Example], options: tuple[str, ...] | None) -> list[tuple[str, ...]]:
    """The beliefs that there are about each row."""
    if not any(example.responses for example in examples):
        raise UserError("the rows have no answers to label: they are prompts alone")
    bare = sum(example.opinion is None for example in examples)
    if options is None and bare:
        raise UserError(
            f"--options: {plural(bare, 'row has', 'rows have')} no beliefs to choose from; name them: --options support,oppose"
        )
    return [options or example.opinion.options for example in examples]


def _write(config: Config, where: tuple[Path, Labelling], data: tuple, labelled: Labelled) -> LabelledBeliefs:
    (output, how), (examples, options) = where, data
    accepted = [accepted_answers(example) for example in examples]
    found = [Stance(i, k, accepted[i][k], values) for (i, k), values in sorted(labelled.posteriors.items())]
    kept = [stance for stance in found if stance.sure >= how.min_posterior]
    answers = sum(len(example.responses) for example in examples)
    if not found:
        raise UserError(f"{output}: no answer of {answers} is labelled" + (f": {labelled.problem}" if labelled.problem else ""))
    if not kept:
        raise UserError(
            f"{output}: no answer of {answers} is left: the surest label has a posterior of "
            f"{max(stance.sure for stance in found):.3f}, less than --min-posterior {how.min_posterior:g}; lower that"
        )
    if not any(stance.accepted for stance in kept):
        raise UserError(
            f"{output}: no row is left to write: no answer that is labelled is an accepted one ({sum(map(sum, accepted))} of "
            f"{answers} answers are), and rows and p* are made of those that people agree with"
        )
    rows, notes, alone = opinion_rows(examples, options, kept, config.data)
    if not rows:
        raise UserError(
            f"{output}: no row is left to write: no accepted answer has another one of its prompt, of another belief or "
            "text, to be set against"
        )
    for note in notes:
        say(note)
    write_rows(rows, output, lambda made: check_written(made, "gdpo", rows))
    left_out = {
        f"without a label: {labelled.problem}": answers - len(found),
        f"less sure than --min-posterior {how.min_posterior:g}": len(found) - len(kept),
        "counted in p*, but without another answer of the prompt to be set against": alone,
    }
    counts = collections.Counter(options[stance.row][stance.belief] for stance in kept)
    return LabelledBeliefs(
        output,
        len(rows),
        answers,
        {belief: counts[belief] for belief in dict.fromkeys(o for own in options for o in own)},
        float(np.mean([stance.sure for stance in kept])),
        {why: count for why, count in left_out.items() if count},
        _agreement(examples, options, found, labelled.learned),
    )


def _agreement(
    examples: Sequence[Example], options: Sequence[tuple[str, ...]], found: Sequence[Stance], learned: set[Place]
) -> dict[str, float] | None:
    """With the labels of rows that have some, but for the answers that were learned from."""
    pairs = []
    for stance in found:
        opinion, own = examples[stance.row].opinion, options[stance.row]
        known = None if opinion is None else (opinion.accepted, opinion.rejected)[stance.response]
        if known is not None and (stance.row, stance.response) not in learned:
            pairs.append((own[stance.belief] == opinion.options[known], opinion.options[known], len(own), stance.accepted))
    if not pairs:
        return None
    accepted = [pair for pair in pairs if pair[3]]
    truth = collections.Counter(known for _, known, _, _ in accepted)
    return {
        "accuracy": _mean(right for right, *_ in accepted),
        "chance": _mean(1 / count for _, _, count, _ in accepted),
        "majority": max(truth.values(), default=math.nan) / max(len(accepted), 1),
        "answers": len(accepted),
        "accuracy_of_all": sum(right for right, *_ in pairs) / len(pairs),
        "all_answers": len(pairs),
    }


def _mean(values: Iterable[float]) -> float:
    """NaN of none."""
    return statistics.fmean(found) if (found := list(values)) else math.nan


__all__ = ["Labelling", "LabelledBeliefs", "label_beliefs", "run"]
