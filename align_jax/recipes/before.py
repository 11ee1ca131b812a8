"""What is checked and said of a training run before its first step, and why none follows."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import jax
from flax.traverse_util import unflatten_dict

from align_jax import hf
from align_jax.config import Config
from align_jax.data import GroupDataset
from align_jax.errors import UserError
from align_jax.files import write_whole
from align_jax.models import ModelConfig
from align_jax.models.adapting import trained_paths
from align_jax.objectives import Mixture, Objective
from align_jax.objectives.likelihoods import ALIGNMENTS, WPO
from align_jax.parallel.processes import from_first, of_first
from align_jax.parallel.stop import StoppedPass, StopSignal
from align_jax.recipes.folder import RunFolder, save_every
from align_jax.recipes.models import other_shape
from align_jax.recipes.say import say
from align_jax.recipes.source import ModelSource
from align_jax.terminal import plural
from align_jax.training import optim
from align_jax.training.callbacks import StopEarly
from align_jax.training.decay import DECAYED, decay_mask
from align_jax.training.logs import find_sink
from align_jax.training.manifest import is_listed


@contextlib.contextmanager
def stop_told(stop: StopSignal) -> Iterator[None]:
    """Says what is kept where a stop comes before there is anything to save, and nobody else says it."""
    try:
        yield
    except StoppedPass as stopped:
        if not stopped.said:
            say(f"stopped by {stop.cause} before a step of this start; the same command begins it again")
        raise


def check_sinks(config: Config) -> None:
    """UserError, before hours of work, for a sink that is not there or lacks its package."""
    log = config.log
    asked = {"tensorboard": log.tensorboard, "wandb": log.wandb_project is not None}
    for name in [*log.sinks, *(name for name, wanted in asked.items() if wanted)]:
        find_sink(name).check()


def check_best_metric(config: Config) -> None:
    """UserError where `checkpoint.best_metric` is an evaluation that no checkpoint would have."""
    metric, every = config.checkpoint.best_metric, config.train.eval_every
    if metric is None or not metric.startswith("eval/"):
        return
    if every is None or save_every(config) % every:
        raise UserError(
            f"checkpoint.best_metric: {metric!r} is measured every train.eval_every={every} steps on data.eval="
            f"{config.data.eval!r}; set both, and checkpoint.every to a multiple of train.eval_every"
        )


def check_decays(config: Config, shape: ModelConfig) -> None:
    """UserError where `optimizer.weight_decay` pulls at nothing of what is trained beside an adapter."""
    spec, trained = config.optimizer, trained_paths(shape)
    if trained is None or not getattr(spec, "weight_decay", 0):
        return
    if not any(jax.tree.leaves(decay_mask(unflatten_dict(dict.fromkeys(trained, 0)), spec.decayed))):
        whole = f" and {', '.join(shape.lora.saved)}" if shape.lora.saved else ""
        raise UserError(
            f"optimizer.weight_decay: {spec.weight_decay:g} has no effect: what is trained, the factors of `lora`{whole}, "
            "has no weight decay; leave it out, or set optimizer.decayed: all"
        )


def with_its_choices(config: Config, folder: RunFolder) -> Config:
    """The config with keys that it leaves open as the run in the folder began: what decays, and how WPO is weighted."""
    return _with_its_alignment(_with_its_decay(config, folder), folder)


def _with_its_decay(config: Config, folder: RunFolder) -> Config:
    """The config with `optimizer.decayed` as the run in the folder began, where weights decay and it does not say which."""
    spec = config.optimizer
    if not getattr(spec, "weight_decay", 0.0) or spec.decayed is not None:
        return config
    choices = get_args(DECAYED)
    began = folder.config.optimizer if folder.is_run and folder.newest.steps else spec
    chosen = getattr(began, "decayed", None) or ("matrices" if began is spec else "embeddings")
    chosen = choices[of_first(choices.index(chosen))]  # its disk alone may hold the run
    if began is not spec and getattr(began, "decayed", None) is None:
        say(
            "optimizer.decayed: embeddings, since this run began when weight decay pulled these, too; a new run decays "
            "matrices alone (give the key to choose)"
        )
    return dataclasses.replace(config, optimizer=dataclasses.replace(spec, decayed=chosen))


def _with_its_alignment(config: Config, folder: RunFolder) -> Config:
    """The config with `objective.alignment` as the run in the folder began, where WPO does not say which."""
    terms = _terms(config)
    if not any(isinstance(term, WPO) and term.alignment is None for term in terms):
        return config
    began = _terms(folder.config) if folder.is_run and folder.newest.steps else ()

    def chosen(place: int) -> str:
        found = getattr(began[place], "alignment", None) if place < len(began) else None
        return ALIGNMENTS[of_first(ALIGNMENTS.index(found or "sampled"))]  # its disk alone may hold the run

    made = [
        dataclasses.replace(term, alignment=chosen(i)) if isinstance(term, WPO) and term.alignment is None else term
        for i, term in enumerate(terms)
    ]
    if any(now.alignment == "none" != was.alignment for was, now in zip(terms, made, strict=True) if isinstance(was, WPO)):
        say("objective.alignment: none, as this run began (give the key to choose in a new run)")
    mixed = isinstance(config.objective, Mixture)
    return dataclasses.replace(
        config, objective=dataclasses.replace(config.objective, terms=tuple(made)) if mixed else made[0]
    )


def _terms(config: Config) -> tuple[Objective | None, ...]:
    return getattr(config.objective, "terms", (config.objective,))


def made_already(folder: RunFolder, config: Config) -> int | None:
    """The steps of a run that has all that `train.steps` asks for, so that neither model nor data are needed; else None."""
    asked = config.train.steps

    def whole() -> list[int]:  # a copy that was broken off is no end of a run: reading it says so
        newest = folder.steps[-1:] if folder.is_run else []
        return [step for step in newest if is_listed(folder.path / "checkpoints" / str(step))]

    made = from_first("the steps that were made", whole)
    due = folder.is_due(made[0] if made else -1)
    return made[0] if made and asked is not None and made[0] >= asked and not due else None


def kept_in(folder: RunFolder) -> str:
    """What a run that ends early leaves, in a few words."""
    steps = folder.steps
    newest = folder.path / "checkpoints" / str(steps[-1]) if steps else None
    return f"the newest checkpoint is {newest}" if steps else f"{folder.path} has no checkpoint"


def nothing_to_do(folder: RunFolder, begun: int, steps: int, early: StopEarly | None) -> str:
    """Why no step follows those that were made."""
    if begun == steps:
        return f"{folder.path} is complete: step {begun} of {steps}"
    if begun > steps:
        return f"{folder.path} has {begun} steps already, and train.steps is {steps}: nothing to do"
    return f"{folder.path} ended early at step {begun}: nothing to do; train.patience above {early.waited} goes on"


def report_warmup(config: Config, steps: int) -> None:
    """Says where the warm-up is longer than the run, and so was cut."""
    asked, given = config.optimizer.warmup_steps or 0, optim.warmup_of(config.optimizer, steps)
    if asked > given:
        of = "of optimizer.schedule_steps" if config.optimizer.schedule_steps else "of the run"
        say(
            f"optimizer.warmup_steps: {asked} is more than the {config.optimizer.schedule_steps or steps} steps {of}, and was "
            f"cut to {given}"
        )


def report_plan(config: Config, shape: ModelConfig, dataset: GroupDataset, steps: int) -> None:
    """Says what a run of so many steps does that may not be meant; UserError for a weight decay of nothing."""
    report_context(dataset, shape.max_length)
    report_unheld(config, shape)
    check_decays(config, shape)
    report_warmup(config, steps)
    if config.train.groups_per_step > len(dataset):
        say(
            f"train.groups_per_step: {config.train.groups_per_step} is more than the {plural(len(dataset), 'group')} of "
            "data.train: a step takes each several times"
        )


def report_context(dataset: GroupDataset, context: int) -> None:
    """Says where texts are longer than the model's context, at whose positions beyond it was never trained."""
    if sum(dataset.limits) < context:
        return
    longest = max(1 + size.prompt + max(unit.size for unit in size.units) for size in dataset.sizes)
    if longest > context:
        say(
            f"data.train: prompts with their responses have up to {longest} tokens, more than the model's context of "
            f"{context}; lower data.max_prompt_tokens and data.max_response_tokens, unless this is meant"
        )


def report_unheld(config: Config, shape: ModelConfig) -> None:
    """Says of a fresh model, before it is trained for hours, that no family of Hugging Face's can hold it."""
    if config.model.path is not None:
        return
    try:
        hf.hf_config_from_model(shape)
    except UserError as error:
        say(f"model.config: {error}")


def stop_early(folder: RunFolder, config: Config, begun: int) -> StopEarly | None:
    """What ends a run by `train.patience`, knowing the evaluations of earlier starts; None where nothing does."""
    options, patience = config.checkpoint, config.train.patience
    if patience is None:
        return None
    history = from_first("the evaluations so far", lambda: [line for line in folder.history if line["step"] <= begun])
    return StopEarly(options.best_metric, patience, options.mode, history)


def why_ended(config: Config, early: StopEarly) -> str:
    """The evaluations that `train.patience` waited for."""
    best = f"step {early.best[0]} ({early.best[1]:.4g})" if early.best else "no step"
    kind = "smallest" if config.checkpoint.mode == "min" else "largest"
    return f"{config.checkpoint.best_metric} was {kind} at {best}, and no better in {early.waited} evaluations since"


def check_same_model(folder: RunFolder, source: ModelSource) -> None:
    """UserError where a model's config.json says other things than when the run in the folder began."""
    if not folder.is_run or not folder.has_shape:  # not on this process's disk, or it is written again
        return
    before, now = (dataclasses.replace(shape.plain, rope_length=None) for shape in (folder.shape, source.shape))
    if before != now:
        raise UserError(
            f"model: {source.describe()} has {other_shape(now, before)} when the run in {folder.path} began: its config.json "
            "is another one; put it back (or set the revision of a hub id) to resume the run, or choose another run.dir"
        )


def other_reference(folder: RunFolder, now: str) -> str:
    """Why a run cannot go on beside weights that are not those of the reference that it began with."""
    return (
        f"reference: the weights of {now} are not those that the run in {folder.path} began with, to which its rewards are "
        "relative; put them back (or set the revision of a hub id) to resume it, or choose another run.dir"
    )


def other_rows(folder: RunFolder, dataset: GroupDataset, groups: int | None) -> str:
    """Why a run cannot go on with the rows that it is given; `groups`: how many it began with, where that is known."""
    path, now = dataset.path, len(dataset)
    if folder.config.data.date is None:  # which every run has since
        return (
            f"data.train: the run in {folder.path} began with an align_jax that tokenized prompt and answer apart; {path} "
            "becomes other tokens now (docs/data.md, Tokens); evaluate or export it, or choose another run.dir"
        )
    count = ""
    if groups is not None:
        count = f" ({groups} groups then, {now} now)" if groups != now else f" ({now} groups, as many as then)"
    return (
        f"data.train: {path} holds other rows than when the run in {folder.path} began, or they become other tokens{count}; "
        "put rows and tokenizer back to resume it, or choose another run.dir"
    )


def report_data(which: str, dataset: GroupDataset, folder: Path) -> None:
    """Says how much data there is and what was left out; lists bad rows in the run folder."""
    for line in (dataset.describe(), *dataset.notes):
        say(f"data.{which}: {line}")
    if dataset.bad_rows and jax.process_index() == 0:
        lines = "".join(json.dumps(bad) + "\n" for bad in dataset.bad_rows)
        write_whole(folder / f"bad_rows.{which}.jsonl", lines)
        bad = plural(len(dataset.bad_rows), "bad row")
        say(f"data.{which}: {bad} skipped, listed in {folder / f'bad_rows.{which}.jsonl'}")
