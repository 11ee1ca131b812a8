"""Training: one run, from its config to its last checkpoint."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

import jax

from align_jax.config import Config
from align_jax.config.jobs import JOBS
from align_jax.cost.compilations import Compilations, so_far
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
    stop_early,
    stop_told,
    why_ended,
    with_its_choices,
)
from align_jax.recipes.folder import RunFolder, save_every
from align_jax.recipes.in_training import InTraining, in_training_evaluation
from align_jax.recipes.memory import memory_explained, of_training
from align_jax.recipes.recorded import AddCosts, CheckMetric, CountCut
from align_jax.recipes.say import say, speaking, watching
from align_jax.recipes.setup import Setup
from align_jax.recipes.shown_samples import ShownSamples, WriteSamples
from align_jax.recipes.summary import Told, run_lines
from align_jax.recipes.training import Training
from align_jax.recipes.warned import WatchSignatures, read_warnings, warning_lines
from align_jax.terminal import plural
from align_jax.training import optim
from align_jax.training.callbacks import Evaluate, Log, Save, SaveTimer, StopEarly, StopWhen
from align_jax.training.checkpoint import Checkpointer
from align_jax.training.fit import fit
from align_jax.training.logs import MetricsLog
from align_jax.training.saved import save_state
from align_jax.training.state import TrainState
from align_jax.training.step import JittedStep, compile_step

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
        config = with_its_choices(config, folder)
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
class _Start:
    """One start of a run, from its newest checkpoint on.

    Attributes:
      measure: the evaluations; None: there are none. missed: whether one is due for the step that was last made.
      begun: the step that it starts from. early: what may end it early, if anything.
      compiled: what was compiled before.
    """

    training: Training
    measure: InTraining | None
    stop: StopSignal
    told: Told
    checkpoints: Checkpointer
    begun: int
    missed: bool
    early: StopEarly | None
    compiled: Compilations
    cut: CountCut = dataclasses.field(default_factory=CountCut)

    @property
    def nothing_due(self) -> bool:
        """Whether no step and no evaluation follows those that were made."""
        return (self.begun >= self.training.steps and not self.missed) or bool(self.early and self.early.ended)

    def callbacks(self, log: MetricsLog) -> list[Any]:
        """What is called after every step, in this order."""
        training, told, config = self.training, self.told, self.training.setup.config
        seconds, steps = config.checkpoint.seconds, training.steps
        timer = None if seconds is None else SaveTimer(seconds)
        return [
            *_evaluations(training, self.measure, told, self.missed),
            *_samples(training, self.measure, log),
            *([self.early] if self.early else []),
            StopWhen(self.stop.requested),
            CheckMetric(config.checkpoint.best_metric),
            AddCosts(optim.make_schedule(config.optimizer, steps), self.compiled, training.skips),
            *(_watch(config, training.setup.folder, steps, self.begun) if config.log.signatures else []),
            self.cut,
            Log(log.log),
            Save(
                _save(training, self.checkpoints, {} if self.measure is None else self.measure.rows),
                save_every(config),
                self.checkpoints.latest_step,
                timer,
                config.checkpoint.keep_every,
            ),
        ]


def _train(training: Training, measure: InTraining | None, stop: StopSignal, told: Told) -> tuple[TrainState, bool]:
    """From the newest checkpoint, or the start, to the last step; False when `stop` ended it before."""
    setup, steps, before = training.setup, training.steps, so_far()
    config, folder = setup.config, setup.folder
    with folder.checkpoints(config) as checkpoints:
        state = training.resume(checkpoints, {} if measure is None else measure.rows)
        state = training.begin() if state is None else state
        begun = int(state.step)
        missed, early = measure is not None and folder.is_due(begun), stop_early(folder, config, begun)
        start = _Start(training, measure, stop, told, checkpoints, begun, missed, early, before)
        if start.nothing_due:
            say(nothing_to_do(folder, begun, steps, early))
            return state, True
        leave_if_asked()
        if begun:
            told.resumed(folder.history)
        prepare_folder(training, begun)
        step = AnnouncedStep(_step(training), len(training.loader.train_layout.shapes), setup.say_chunks)
        explained = memory_explained(lambda: of_training(config, step.tokens, step.planned()))
        with _metrics_log(config, steps, begun) as log, explained:
            state, _ = fit(
                state,
                training.loader,
                step,
                steps=steps,
                put=lambda batch: put_batch(batch, setup.mesh, leading=1),
                where=training.dataset.where,
                skips=training.skips,
                callbacks=start.callbacks(log),
            )
        with watching("writing the last checkpoint"):
            checkpoints.wait()
        return state, _ended(start, int(state.step), checkpoints.best_step())


def _step(training: Training) -> JittedStep:
    """The training step of a run."""
    setup, config = training.setup, training.setup.config
    return compile_step(
        setup.mesh,
        training.where,
        setup.scorer,
        told_apart(config.objective, training.dataset.source_names),
        training.optimizer,
        seed=config.run.seed,
        horizon=optim.Horizon.of(config.optimizer, training.steps),
        live=setup.live,
        skip=config.train.max_skipped > 0,
    )


def _ended(start: _Start, done: int, best: int | None) -> bool:
    """Says how a start ended after so many steps; False when a stop was asked for before the last one."""
    training, told, early = start.training, start.told, start.early
    config, folder, steps = training.setup.config, training.setup.folder, training.steps
    told.notes += start.cut.notes(config)
    if count := len(training.dataset.bad_rows):
        told.notes.append(f"skipped  {plural(count, 'malformed row')} of data.train, in {folder.path / 'bad_rows.train.jsonl'}")
    ended = bool(early and early.ended)
    due = folder.is_due(done)
    if due or (done < steps and not ended):
        what = " within its evaluation, which the next start makes" if due else ""
        say(f"stopped by {start.stop.cause} after step {done} of {steps}{what}; checkpoint saved, the same command resumes")
        return False
    say(f"trained to step {done} of {steps}" + (f", ended early: {why_ended(config, early)}" if ended else ""))
    told.best = best not in (None, done)
    if told.best:
        say(f"the checkpoint with the best {config.checkpoint.best_metric} is that of step {best}: export it with --step best")
    return True


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


def _save(training: Training, checkpoints: Checkpointer, evaluated: dict[str, str]):
    run = training.setup.folder.mark  # now: its file may be damaged or gone later, and a save is not lost for it

    def save(step: int, state: TrainState, position: Any, metrics: dict[str, float]) -> None:
        training.setup.folder.check_held()
        rows = training.dataset.fingerprint
        extra = {"data": position, "rows": rows, "shapes": training.loader.shapes, "run": run}
        extra |= {"config": training.setup.config.to_dict(), "evaluated": evaluated}
        extra |= {"skipped": training.skips.count, "groups": len(training.dataset), "reference": training.compared_with}
        with watching(f"saving the checkpoint of step {step}"):
            kept = state if training.live_moves else dataclasses.replace(state, reference={})
            save_state(checkpoints, step, kept, extra, metrics, training.base)

    return save
