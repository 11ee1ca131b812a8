"""Training: one run, from its config to its last checkpoint."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import jax
import optax

from align_jax.config import Config
from align_jax.config.jobs import JOBS
from align_jax.cost.compilations import so_far
from align_jax.data import BatchLoader, GroupDataset
from align_jax.errors import UserError
from align_jax.models.adapting import trained_paths, trained_weights
from align_jax.objectives.by_source import told_apart
from align_jax.parallel.company import advising
from align_jax.parallel.mesh import put_batch
from align_jax.parallel.stop import StopSignal, leave_if_asked
from align_jax.recipes.alike import agree_on
from align_jax.recipes.announced import AnnouncedStep
from align_jax.recipes.before import (
    check_best_metric,
    check_sinks,
    kept_in,
    made_already,
    nothing_to_do,
    other_reference,
    other_rows,
    report_plan,
    stop_early,
    stop_told,
    why_ended,
    with_its_decay,
)
from align_jax.recipes.folder import RunFolder, save_every
from align_jax.recipes.in_training import InTraining, in_training_evaluation
from align_jax.recipes.memory import memory_explained, of_training
from align_jax.recipes.recorded import AddCosts, CheckMetric, CountCut, KeepSkipped
from align_jax.recipes.say import say, speaking, watching
from align_jax.recipes.setup import Setup, microbatches, report_data
from align_jax.recipes.shown_samples import ShownSamples, WriteSamples
from align_jax.recipes.source import AdaptedModel, StoredModel
from align_jax.recipes.summary import Told, run_lines
from align_jax.recipes.warned import WatchSignatures, read_warnings, warning_lines
from align_jax.terminal import plural
from align_jax.training import optim
from align_jax.training.callbacks import Evaluate, Log, Save, SaveTimer, StopWhen
from align_jax.training.checkpoint import Checkpointer
from align_jax.training.fit import fit
from align_jax.training.logs import MetricsLog
from align_jax.training.saved import restore_state, save_state
from align_jax.training.skipped import SkippedSteps
from align_jax.training.state import TrainState, create_state, split, state_shapes, state_shardings
from align_jax.training.step import compile_step

REQUIRED = JOBS["train"].requires


@dataclasses.dataclass(frozen=True)
class Run:
    """A run as it stands.

    Attributes:
      folder: `run.dir`, which `align_jax.export` and `align-jax evaluate` take. steps: made so far, of this and earlier starts.
      finished: whether all steps were made, or `train.patience` ended it before.
      metrics: the last value of every metric. history: every line of metrics.jsonl, `step` among its values.
      stopped: whether SIGTERM asked for a stop, also where the run was finished by then: a program that would go on with other
        work should end. (Ctrl-C is raised.)
      warnings: failure signatures that showed, a dict each with `name`, `step`, `value`, `limit`, `what` and `try`.
    """

    folder: Path
    steps: int
    finished: bool
    metrics: dict[str, float] = dataclasses.field(repr=False)
    history: list[dict[str, Any]] = dataclasses.field(repr=False)
    warnings: list[dict[str, Any]] = dataclasses.field(default_factory=list, repr=False)
    stopped: bool = False

    def __repr__(self) -> str:
        how = "finished" if self.finished else "not finished; train(config) goes on"
        lines = [*run_lines(self.history), *warning_lines(self.warnings)]
        return "\n".join([f"Run in {self.folder}: {self.steps} steps, {how}", *lines])


def train(config: Config, stop: StopSignal | None = None) -> Run:
    """Trains, or resumes where the run's folder holds checkpoints.

    Args:
      config: with `model`, `data.train` and `objective`; everything else has a default.
      stop: asked after every step; when it says so, a checkpoint is written and the run ends. None: SIGTERM and Ctrl-C say so.

    Returns:
      The run, whose folder holds config.yaml, metrics.jsonl and checkpoints/.

    Raises:
      UserError: anything that the user can mend, see the message; what was trained before it is kept.
      KeyboardInterrupt: Ctrl-C, after the checkpoint is written; pressed again, or before the first step, at once.
    """
    config.require(*REQUIRED)
    config, off = config.for_training()
    with contextlib.ExitStack() as stack:
        stack.enter_context(speaking(config.log.quiet, config.log.progress))
        told = Told(config)
        stop = stack.enter_context(StopSignal("this step", say)) if stop is None else stop
        stop.idle()
        agree_on(config)
        check_sinks(config)
        check_best_metric(config)
        folder = RunFolder(Path(config.run.dir))
        config = with_its_decay(config, folder)
        folder.check(config)
        stack.enter_context(folder.claimed())
        for line in off:
            say(line)
        if (made := made_already(folder, config)) is not None:
            say(nothing_to_do(folder, made, config.train.steps, None))
            told.end(folder.path, folder.history)
            return _run(folder, made, finished=True)
        stack.enter_context(advising(lambda: kept_in(folder)))
        stack.enter_context(stop_told(stop))
        with watching("starting: devices, model and tokenizer"):
            setup = Setup.of(config)
        leave_if_asked()
        stack.enter_context(jax.set_mesh(setup.mesh))
        stack.enter_context(memory_explained(lambda: of_training(config, None, "")))
        training = Training.of(setup)
        leave_if_asked()
        measure = in_training_evaluation(setup, training.steps)
        training.join_reference()
        leave_if_asked()
        state, finished = _train(training, measure, stop, told)
        told.end(folder.path, folder.history)
    return dataclasses.replace(_run(folder, int(state.step), finished), stopped=stop.heard)


def _run(folder: RunFolder, steps: int, finished: bool) -> Run:
    history = folder.history
    latest = {name: value for line in history for name, value in line.items() if value is not None and name != "step"}
    return Run(folder.path, steps, finished, latest, history, read_warnings(folder.path))


@dataclasses.dataclass(frozen=True)
class Training:
    """What a run is made of, before its first step.

    Attributes:
      dataset: `data.train`. loader: its batches, with the reference's log-probs. steps: of the whole run.
      optimizer: with its schedule. where: the shardings of the state.
    """

    setup: Setup
    dataset: GroupDataset
    loader: BatchLoader
    steps: int
    optimizer: optax.GradientTransformation
    where: TrainState

    @classmethod
    def of(cls, setup: Setup) -> Training:
        """Reads the data."""
        config = setup.config
        dataset = setup.dataset("train")
        report_data("train", dataset, setup.folder.path)
        steps = config.train.total_steps(len(dataset))
        report_plan(config, setup.source.shape, dataset, steps)
        loader = setup.loader(dataset)
        with watching("choosing the shapes of batches"):
            _ = loader.train_layout
        if (adapter := trained_weights(setup.source.shape)) is not None:
            say(adapter)
        optimizer = optim.make_optimizer(config.optimizer, steps)
        how = {"live": setup.live}
        where = state_shardings(setup.source.shape, optimizer, setup.mesh, config.model.param_dtype, **how)
        return cls(setup, dataset, loader, steps, optimizer, where)

    def join_reference(self) -> None:
        """Computes the reference's log-probs, or reads them from the cache, where the objective needs them and none is live."""
        config, dataset, loader, live = self.setup.config, self.dataset, self.loader, self.setup.live
        if live is not None:
            moves = "" if live.sync_every is None else f", and moves every {plural(live.sync_every, 'step')} (mix {live.mix:g})"
            moves = moves if live.quantize is None else f", in {live.quantize}"
            say(f"reference: {self.setup.reference.describe()} is in memory beside the policy{moves}")
        elif config.objective.needs_reference:
            # The batches of the first epoch are the run's own, so at its first step policy and reference agree exactly.
            once = min(self.steps, -(-len(dataset) // config.train.groups_per_step))
            first = microbatches(loader.preview(once))
            loader.join(self.setup.reference_logps(dataset, loader.first_rows(once), first))

    @functools.cached_property
    def base(self) -> dict[str, Any] | None:
        """What a checkpoint says of the weights that it does not hold; None where all are trained."""
        if self.setup.source.shape.lora is None:
            return None
        return {"model": self.setup.source.describe(), "fingerprint": self.setup.source.fingerprint()}

    @functools.cached_property
    def compared_with(self) -> Any:
        """The content of a reference that files hold, a model's or an adapter's, which may change; None of others."""
        table, reference = self.setup.live is None and self.setup.config.objective.needs_reference, self.setup.reference
        stored = isinstance(reference, StoredModel) or (isinstance(reference, AdaptedModel) and reference.folder is not None)
        return json.loads(json.dumps(reference.fingerprint())) if table and stored else None

    @functools.cached_property
    def skips(self) -> SkippedSteps:
        """The steps that are left out, counted over all starts of the run."""
        most = self.setup.config.train.max_skipped
        return SkippedSteps(most, KeepSkipped(self.setup.folder.path, self.dataset, most))

    @property
    def live_moves(self) -> bool:
        """Whether the state has a reference that changes, and so is saved; another one is read again."""
        return self.setup.live is not None and self.setup.live.sync_every is not None

    def begin(self) -> TrainState:
        """The state before the first step."""
        setup, param_dtype, weights = self.setup, self.setup.config.model.param_dtype, self.setup.weights()
        reference = None
        if setup.live is not None:
            reference = weights if setup.reference is setup.source else self.live_reference()
        return create_state(setup.source.shape, weights, self.optimizer, setup.mesh, param_dtype, reference=reference)

    def live_reference(self) -> dict:
        """The weights of a reference that is not the starting model.

        Raises:
          UserError: an adapter is trained, and the reference has another model beneath, which would be a second one in memory.
        """
        setup = self.setup
        under, own = getattr(setup.reference, "under", None), getattr(setup.source, "under", None)
        same = under is own or (under is not None and under.shape == own.shape and under.fingerprint() == own.fingerprint())
        if setup.source.shape.lora is not None and not same:
            raise UserError(
                "reference.live: with `lora`, policy and reference share the model beneath, and "
                f"{setup.reference.describe()} has another one; leave reference.live out, or reference.path"
            )
        return setup.load(setup.reference)[0]

    def resume(self, checkpoints: Checkpointer) -> TrainState | None:
        """The newest readable checkpoint's state, with the loader moved to where it was; None when there is none.

        Raises:
          UserError: the rows of `data.train` are not those that the run began with, so its place among them means nothing.
        """
        config, shape = self.setup.config, self.setup.source.shape
        if not checkpoints.agreed_steps():
            return None
        shapes = state_shapes(
            shape, self.optimizer, config.model.param_dtype, live=self.setup.live if self.live_moves else None
        )
        where = self.where if self.live_moves else dataclasses.replace(self.where, reference={})
        abstract = jax.tree.map(lambda s, w: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=w), shapes, where)
        trained = trained_paths(shape)
        weights = None if trained is None else self.setup.weights()
        frozen = {} if weights is None else split(weights, trained)[1]
        found = restore_state(checkpoints, abstract, frozen)
        if found is None:
            return None
        state, extra = found
        self.setup.folder.check_written_here(extra.get("run"), int(state.step))
        if extra.get("rows", self.dataset.fingerprint) != self.dataset.fingerprint:
            raise UserError(other_rows(self.setup.folder, self.dataset, extra.get("groups")))
        if (extra.get("reference") or self.compared_with) != self.compared_with:
            raise UserError(other_reference(self.setup.folder, self.setup.reference.describe()))
        if self.setup.live is not None and not self.live_moves:
            start = self.setup.reference is self.setup.source and weights is not None
            own = weights if start else self.setup.load(self.setup.reference)[0] if trained is None else self.live_reference()
            state = dataclasses.replace(state, reference=split(own, trained)[0])
        self.loader.restore(extra["data"], extra.get("shapes"))
        self.skips.before = extra.get("skipped", 0)
        say(f"resumed from the checkpoint of step {int(state.step)}")
        return state


def _train(training: Training, measure: InTraining | None, stop: StopSignal, told: Told) -> tuple[TrainState, bool]:
    """From the newest checkpoint, or the start, to the last step; False when `stop` ended it before."""
    setup, steps, before = training.setup, training.steps, so_far()
    config, folder = setup.config, setup.folder
    with folder.checkpoints(config) as checkpoints:
        state = training.resume(checkpoints)
        state = training.begin() if state is None else state
        begun = int(state.step)
        early = stop_early(folder, config, begun)
        missed = measure is not None and folder.is_due(begun)
        if (begun >= steps and not missed) or (early and early.ended):
            say(nothing_to_do(folder, begun, steps, early))
            return state, True
        leave_if_asked()
        if begun:
            told.resumed(folder.history)
        prepare_folder(training, begun)
        step = compile_step(
            setup.mesh,
            training.where,
            setup.scorer,
            told_apart(config.objective, training.dataset.source_names),
            training.optimizer,
            seed=config.run.seed,
            horizon=optim.Horizon.of(config.optimizer, steps),
            live=setup.live,
            skip=config.train.max_skipped > 0,
        )
        step = AnnouncedStep(step, len(training.loader.train_layout.shapes), setup.say_chunks)
        explained = memory_explained(lambda: of_training(config, step.tokens, step.planned()))
        with _metrics_log(config, steps, begun) as log, explained:
            cut, seconds = CountCut(), config.checkpoint.seconds
            timer = None if seconds is None else SaveTimer(seconds)
            every, skips = (save_every(config), config.checkpoint.keep_every), training.skips
            state, _ = fit(
                state,
                training.loader,
                step,
                steps=steps,
                put=lambda batch: put_batch(batch, setup.mesh, leading=1),
                where=training.dataset.where,
                skips=skips,
                callbacks=[
                    *_evaluations(training, measure, told, missed),
                    *_samples(training, measure, log),
                    *([early] if early else []),
                    StopWhen(stop.requested),
                    CheckMetric(config.checkpoint.best_metric),
                    AddCosts(optim.make_schedule(config.optimizer, steps), before, skips),
                    *(_watch(config, folder, steps, begun) if config.log.signatures else []),
                    cut,
                    Log(log.log),
                    Save(_save(training, checkpoints), every[0], checkpoints.latest_step, timer, every[1]),
                ],
            )
        with watching("writing the last checkpoint"):
            checkpoints.wait()
        best = checkpoints.best_step()
    done = int(state.step)
    told.notes += cut.notes(config)
    if count := len(training.dataset.bad_rows):
        told.notes.append(f"skipped  {plural(count, 'malformed row')} of data.train, in {folder.path / 'bad_rows.train.jsonl'}")
    ended = bool(early and early.ended)
    due = folder.is_due(done)
    if due or (done < steps and not ended):
        what = " within its evaluation, which the next start makes" if due else ""
        say(f"stopped by {stop.cause} after step {done} of {steps}{what}; checkpoint saved, the same command resumes")
        return state, False
    say(f"trained to step {done} of {steps}" + (f", ended early: {why_ended(config, early)}" if ended else ""))
    told.best = best not in (None, done)
    if told.best:
        say(f"the checkpoint with the best {config.checkpoint.best_metric} is that of step {best}: export it with --step best")
    return state, True


def _evaluations(training: Training, measure: InTraining | None, told: Told, missed: bool) -> list[Evaluate]:
    config, due = training.setup.config.train, training.setup.folder.evaluation_due
    options = config.eval_every, told.evaluated, config.eval_first, training.live_moves, missed, due
    return [] if measure is None else [Evaluate(told.measured(measure), *options)]


def _samples(training: Training, measure: InTraining | None, log: MetricsLog) -> list[WriteSamples]:
    setup, every = training.setup, training.setup.config.log.samples_every
    if every is None:
        return []
    dataset = measure.sets[0].dataset if measure is not None and measure.sets else training.dataset
    return [WriteSamples(ShownSamples(setup, dataset), every, setup.folder.path, log.samples)]


def _watch(config: Config, folder: RunFolder, steps: int, begun: int) -> list[WatchSignatures]:
    options = {"pulled": config.objective.needs_reference, "history": folder.history if begun else []}
    return [WatchSignatures(folder.path, steps, warmup=optim.warmup_of(config.optimizer, steps), **options)]


def prepare_folder(training: Training, begun: int) -> None:
    """Writes what makes the folder a run's, and says what becomes of what was there."""
    setup, steps = training.setup, training.steps
    folder, spec = setup.folder, setup.config.optimizer
    if begun and folder.is_run:
        of_before, before = folder.config.optimizer, folder.config.train.total_steps(len(training.dataset))
        old, new = (float(optim.make_schedule(o, n)(begun)) for o, n in ((of_before, before), (spec, steps)))
        ended, ends = of_before.schedule_steps or before, spec.schedule_steps or steps
        if old != new:
            say(
                f"the {spec.schedule} schedule ends at step {ends} now, not {ended}: step {begun + 1} goes on at a learning "
                f"rate of {new:.3g} instead of {old:.3g}; optimizer.schedule_steps: {ended} keeps it as it was"
            )
    elif not begun and (kept := folder.set_metrics_aside()):
        say(f"{folder.path} held metrics of steps that no checkpoint has; they are kept as {kept}")
    folder.write(setup.config, setup.source)


def _metrics_log(config: Config, steps: int, begun: int) -> MetricsLog:
    return MetricsLog(
        config.run.dir,
        total_steps=steps,
        resume_step=begun or None,
        every=config.log.every,
        progress=config.log.progress and not config.log.quiet,
        tensorboard=config.log.tensorboard,
        wandb_project=config.log.wandb_project,
        wandb_name=config.log.wandb_name,
        sinks=config.log.sinks,
        config=config.to_dict(),
        active=jax.process_index() == 0,
    )


def _save(training: Training, checkpoints: Checkpointer):
    run = training.setup.folder.mark  # now: its file may be damaged or gone later, and a save is not lost for it

    def save(step: int, state: TrainState, position: Any, metrics: dict[str, float]) -> None:
        training.setup.folder.check_held()
        rows = training.dataset.fingerprint
        extra = {"data": position, "rows": rows, "shapes": training.loader.shapes, "run": run}
        extra |= {"skipped": training.skips.count, "groups": len(training.dataset), "reference": training.compared_with}
        with watching(f"saving the checkpoint of step {step}"):
            kept = state if training.live_moves else dataclasses.replace(state, reference={})
            save_state(checkpoints, step, kept, extra, metrics, training.base)

    return save
