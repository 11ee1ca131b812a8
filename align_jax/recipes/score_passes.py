"""The passes of `align-jax score`: one model over all rows, its values kept in a file of its own as they are computed."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from align_jax.config import Config
from align_jax.data import DataConfig, Encoder, TokenGroup, encode_group
from align_jax.data.formats import Example
from align_jax.data.sources import RowError
from align_jax.errors import UserError
from align_jax.files import ResultsFile
from align_jax.models import ModelConfig
from align_jax.objectives import name_of
from align_jax.recipes.models import current_model, model_at
from align_jax.recipes.sampled_ids import SampledIds
from align_jax.recipes.say import say, watching
from align_jax.recipes.setup import Setup
from align_jax.recipes.source import ModelSource, TrainedModel
from align_jax.terminal import plural

BLOCK = 1024  # rows that are sorted by length together
# groups -> (place, values `[K]`) of each, as they are computed
ScoreGroups = Callable[[Sequence[TokenGroup]], Iterator[tuple[int, np.ndarray]]]


@dataclasses.dataclass(frozen=True)
class InputRows:
    """The input.

    Attributes:
      values: every good row's columns. where: its place, `FILE:LINE`. examples: its texts.
      columns: what is added to it beside the values of passes. digest: a hash of the whole input.
    """

    values: list[dict[str, Any]]
    where: list[str]
    examples: list[Example]
    columns: list[dict[str, Any]]
    digest: str


@dataclasses.dataclass(frozen=True)
class Pass:
    """One model's pass over the rows.

    Attributes:
      name: the column that it writes, and the end of its file's name.
      settings: everything that decides its values.
      where: the place of every row. groups: every row as its tokens.
      load: loads the model; called only when there is something left to do.
    """

    name: str
    settings: dict[str, Any]
    where: list[str]
    groups: list[TokenGroup]
    load: Callable[[], ScoreGroups]


def encode_rows(rows: InputRows, encoder: Encoder, shape: ModelConfig) -> list[TokenGroup]:
    """All rows as tokens for a model; says how much was cut, and for log-probs fills `lengths` and `truncated` of the columns.

    Raises:
      UserError: a row that cannot be rendered, or is longer than the model's context; names file and line.
    """
    ends, most = shape.head == "score", shape.max_length
    what = "reward model" if ends else "model"
    groups, prompts, responses = [], 0, 0
    ids = SampledIds(encoder) if not ends else None
    for i, example in enumerate(rows.examples):
        try:
            # A reward model reads texts, with a tokenizer of its own.
            example = dataclasses.replace(example, tokens=None) if ids is None else ids.of(example, rows.values[i])
            group, prompt, answers = encode_group(encoder, example, i, ends=ends)
        except RowError as error:
            raise UserError(f"{rows.where[i]}: {error}") from error
        lengths = [len(segment.tokens) for segment in group.segments]
        longest = len(group.prompt) + max(lengths)
        if longest > most:
            raise UserError(
                f"{rows.where[i]}: the prompt with its longest response has {longest} tokens, more than the {most} of "
                f"the {what}'s context; lower data.max_prompt_tokens and data.max_response_tokens"
            )
        cuts = [answer.cut for answer in answers]
        prompts, responses = prompts + prompt.cut, responses + sum(cuts)
        groups.append(group)
        if not ends:
            rows.columns[i] |= {"lengths": lengths, "truncated": cuts}
    for line in [] if ids is None else ids.lines():
        say(line)
    if prompts or responses:
        limits = f"{encoder.config.max_prompt_tokens} and {encoder.config.max_response_tokens} tokens"
        say(f"for the {what}, cut to {limits}: {plural(prompts, 'prompt')} and {plural(responses, 'response')}")
    return groups


def policy_passes(config: Config, rows: InputRows) -> list[Pass]:
    """The passes of the policy and, where it is another model, of the reference."""
    if config.model.path is None and config.model.config is None:
        raise UserError("model: the log-probs need model.path or model.config; score.logps: false leaves them out")
    if config.head != "lm_head":
        raise UserError(
            f"objective.name: {name_of(config.objective)!r} trains a reward model, which has no log-probs; give its run folder "
            "as score.reward_model, and score.logps: false or the config of a language model"
        )
    setup, policy = Setup.of(config), current_model(config)
    if policy.shape != setup.source.shape:
        raise UserError(f"run.dir: the checkpoints in {policy.describe()} are of another model than that of this config")
    groups = encode_rows(rows, setup.encoder, setup.source.shape)
    # The file may be finished on another device: its settings name the backend that was asked for.
    asked = dataclasses.replace(setup.scorer, attention=config.model.attention)
    common = {"shape": str(asked), "param_dtype": config.model.param_dtype, "tokens": _hash(groups)}

    def part(name: str, source: ModelSource, what: str) -> Pass:
        def load() -> ScoreGroups:
            weights, step = setup.load(source)
            if step is not None:
                say(f"the {what} is that of step {step} in {source.describe()}")
            return partial(setup.under(weights).groups, rows=config.score.batch_rows)

        return Pass(name, {"model": source.fingerprint(), **common}, rows.where, groups, load)

    first = part("logps", policy, "policy")
    if policy.fingerprint() == setup.reference.fingerprint():
        say("policy and reference are one model, so all implicit rewards are 0; reference.path names another reference")
        return [first]
    return [first, part("ref_logps", setup.reference, "reference")]


def reward_pass(config: Config, rows: InputRows) -> Pass:
    """The pass of `score.reward_model`; that of a run takes the texts as its run did, with the run's `data` section."""
    key, numbers = "score.reward_model", config.model
    source = model_at(config.score.reward_model, "score", key)
    setup = Setup.of(config, source)
    data = source.run.config.data if isinstance(source, TrainedModel) else setup.config.data or DataConfig()
    encoder = Encoder(source.tokenizer, data, source.shape.vocab_size)
    groups = encode_rows(rows, encoder, source.shape)

    def load() -> ScoreGroups:
        weights, step = setup.load(source)
        if step is not None:
            say(f"the reward model is that of step {step} in {source.describe()}")
        return partial(setup.under(weights).groups, rows=config.score.batch_rows)

    settings = {"model": source.fingerprint(), "dtype": [numbers.dtype, numbers.param_dtype], "tokens": _hash(groups)}
    return Pass("scores", settings, rows.where, groups, load)


def part_of(output: str, name: str) -> Path:
    """Where a pass keeps what it has."""
    return Path(f"{output}.{name}")


def run_pass(one: Pass, output: str, stop: Callable[[], bool] = lambda: False) -> bool:
    """Brings the values of every row into the pass's file; False where `stop` ended the pass."""
    path, count = part_of(output, one.name), len(one.groups)
    with ResultsFile(path, one.settings, count, "score.output") as results:
        todo = [i for i in range(count) if i not in results.done]
        if 0 < len(todo) < count:
            say(f"{one.name}: {count - len(todo)} of {count} rows are there already")
        score = one.load() if todo else None
        try:
            with watching(f"scoring: {one.name}", len(todo), "rows") as watch:
                for block in (todo[at : at + BLOCK] for at in range(0, len(todo), BLOCK)):
                    for place, values in score([one.groups[i] for i in block]):
                        if not np.isfinite(values).all():
                            place = one.where[block[place]]
                            raise UserError(f"{place}: {one.name} are {values.tolist()}; they must be finite")
                        results.write(block[place], {"values": values.tolist()})
                        watch.add()
                        if stop() and len(results.done) < count:
                            say(kept(one, results))
                            return False
        except BaseException:
            say(kept(one, results))
            raise
    return True


def values_of(one: Pass, output: str) -> list[list[float]]:
    """The values of every row, from the file of a pass that is complete."""
    return [json.loads(line)["values"] for line in part_of(output, one.name).read_bytes().splitlines()]


def kept(one: Pass, results: ResultsFile) -> str:
    """How far a pass is, for the user."""
    return f"{one.name}: {len(results.done)} of {len(one.groups)} rows are kept; the same command goes on from there"


def _hash(groups: Sequence[TokenGroup]) -> str:
    """A hash of all tokens that go in."""
    digest = hashlib.sha256()
    for group in groups:
        parts = (group.prompt, *(segment.tokens for segment in group.segments))
        digest.update(repr([p.tolist() for p in parts]).encode())
    return digest.hexdigest()
