"""On-policy rounds: sample, score, train on the samples, evaluate, repeat; every round is an ordinary run in its own folder.

    run.dir/config.yaml  rounds.jsonl  rounds.png  eval_prompts.jsonl
    run.dir/rounds/N/    prompts.jsonl  samples.jsonl  scored.jsonl      sampled from the model of round N - 1
                         config.yaml  metrics.jsonl  checkpoints/        the run that is trained on scored.jsonl
                         model/                                          its last checkpoint, in Hugging Face format
                         eval_samples.jsonl  eval_scored.jsonl  eval_gold.jsonl  evaluation.json

Each step continues or passes over what its files hold, so a killed run goes on inside the step where it was. Several processes
take every step together, and the first one writes; the folder must be one that all of them see.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from align_jax import hf
from align_jax.config import Config
from align_jax.config.identity import FREE
from align_jax.data.prompts import distinct_prompts
from align_jax.errors import UserError
from align_jax.evaluation.rounds_plot import draw_rounds
from align_jax.models import Decoder
from align_jax.parallel.processes import from_first, of_first
from align_jax.parallel.stop import StoppedPass, StopSignal
from align_jax.recipes import onpolicy
from align_jax.recipes.before import with_its_choices
from align_jax.recipes.folder import RunFolder
from align_jax.recipes.models import model_at, starting_model
from align_jax.recipes.round_beliefs import check_prompts
from align_jax.recipes.round_job import EVAL_PROMPTS, EVALUATION, LINES, Job, read_rows, write, write_rows
from align_jax.recipes.round_steps import steps_of
from align_jax.recipes.say import say, say_plainly, speaking
from align_jax.recipes.setup import Setup, on_its_day
from align_jax.recipes.summary import rounds_table, with_interval
from align_jax.recipes.train import REQUIRED
from align_jax.terminal import plural

PICTURE = "rounds.png"
# The sampling decides the data, so it may not change within a run; how many rounds there are, and which is taken, may.
DECIDES = ("generate", "data.eval", "data.eval_split")
ROUNDS_FREE = (
    *("rounds.number", "rounds.kl_stop", "rounds.best", "generate.rows"),
    *(key for key in FREE if key not in DECIDES),
)


@dataclasses.dataclass(frozen=True)
class Rounds:
    """Rounds as they stand.

    Attributes:
      folder: `run.dir`. finished: whether all rounds were made.
      history: a dict per round, with the reward of samples on held-out prompts and its gain over the start, which is round 0.
    """

    folder: Path
    finished: bool
    history: list[dict[str, Any]]

    def __repr__(self) -> str:
        how = "finished" if self.finished else "not finished; train(config) goes on"
        return "\n".join([f"Rounds in {self.folder}: {max(len(self.history) - 1, 0)} made, {how}", rounds_table(self.history)])


def rounds(config: Config, stop: StopSignal | None = None) -> Rounds:
    """All on-policy rounds of a config with a `rounds` section; goes on where an earlier start ended.

    Args:
      stop: asked between and within the steps of a round. None: SIGTERM and Ctrl-C say so.

    Raises:
      UserError: the folder holds another run, fewer prompts than a round takes, or anything that a step refuses.
      KeyboardInterrupt: Ctrl-C, after what there is was saved; pressed again, or where nothing would be lost, at once.
    """
    config.require(*REQUIRED, "rounds")
    config, _ = config.for_training()
    config = on_its_day(config)
    with contextlib.ExitStack() as stack:
        stack.enter_context(speaking(config.log.quiet, config.log.progress))
        stop = stack.enter_context(StopSignal(tell=say)) if stop is None else stop
        stop.idle()
        folder = RunFolder(Path(config.run.dir))
        config = with_its_choices(config, folder)
        if folder.is_run and ((folder.path / "rounds").exists() or folder.steps):
            folder.check_same(config, _free(folder))
        stack.enter_context(folder.claimed())
        finished = _rounds(config, stop)
    lines = Path(config.run.dir) / LINES
    return Rounds(Path(config.run.dir), finished, read_rows(lines) if lines.exists() else [])


def _free(folder: RunFolder) -> tuple[str, ...]:
    """The keys that may change within the run of a folder: a gold model may come later."""
    rounds = folder.config.rounds
    return (*ROUNDS_FREE, "rounds.gold_model") if rounds is not None and rounds.gold_model is None else ROUNDS_FREE


def _rounds(config: Config, stop: StopSignal) -> bool:
    job, ended = _prepare(config, stop), ""
    for number in range(config.rounds.number + 1):
        for step in () if job.evaluated(number) else steps_of(job, number):
            stopped = job.stopped()
            job.stop.idle()
            if stopped or not _complete(step):
                say(f"stopped by {stop.cause} in round {number} of {config.rounds.number}; the same command goes on from there")
                return False
        kl = _report(job, number)
        if config.rounds.kl_stop is not None and kl > config.rounds.kl_stop:
            ended = f"the rounds end with round {number} of {config.rounds.number}: its KL to the start, {kl:.3g}, is above "
            ended += f"rounds.kl_stop={config.rounds.kl_stop:g}"
            break
    _tell_end(job, ended or "all rounds are done")
    return True


def _complete(step: Callable[[], bool]) -> bool:
    try:
        return step()
    except StoppedPass:  # in a pass that keeps what it has
        return False


def _prepare(config: Config, stop: StopSignal) -> Job:
    """Reads the prompts; a fresh model is written out, so that every model is a folder."""
    root = Path(config.run.dir)
    for key in ("reward_model", "gold_model"):  # before hours of sampling
        if (given := getattr(config.rounds, key)) is not None:
            model_at(given, "score", f"rounds.{key}")
    prompts, held_out = (_read_prompts(config, which) for which in ("train", "eval"))
    if config.lora is not None and starting_model(config).shape.fused:  # before hours of sampling
        raise UserError(
            "lora: a round hands its adapter on in PEFT's format, where that of this model (Phi) has up to three times its rank"
        )
    rounds = config.rounds
    for key, wanted, there, where in (
        ("prompts_per_round", rounds.prompts_per_round, len(prompts), config.data.train),
        ("eval_prompts", rounds.eval_prompts, len(held_out), config.data.eval),
    ):
        if wanted is not None and wanted > there:
            raise UserError(f"rounds.{key}: {wanted} are wanted, but {where} has {there} different prompts")
    write(root / "config.yaml", config.to_yaml())
    chosen = onpolicy.round_prompts(len(held_out), rounds.eval_prompts or len(held_out), 1, config.run.seed)
    asked = [held_out[i] for i in chosen]
    from_first("the held-out prompts", lambda: _check_held_out(root, asked, config.data.eval))
    write_rows(root / EVAL_PROMPTS, asked)
    return Job(config, _start_folder(config, root), prompts, stop)


def _check_held_out(root: Path, asked: list[dict[str, Any]], where: Any) -> None:
    """UserError where the rounds so far were measured on other held-out prompts than those asked now."""
    measured = root / "rounds" / "0" / EVALUATION
    if measured.exists() and read_rows(root / EVAL_PROMPTS) != json.loads(json.dumps(asked)):
        raise UserError(
            f"data.eval: {where} has other prompts than when the rounds in {root} began ({root / EVAL_PROMPTS}), whose rewards "
            "could not be compared; put them back, or choose another run.dir"
        )


def _read_prompts(config: Config, which: str) -> list[dict[str, Any]]:
    beliefs = config.objective.arrangement.has_beliefs
    rows, bad, notes = distinct_prompts(config.data, which, Path(config.run.dir) / "spool", beliefs)
    if beliefs:
        check_prompts(rows, which)
    skipped = f", {plural(len(bad), 'malformed row')} skipped, the first: {bad[0]}" if bad else ""
    for note in notes:
        say(f"data.{which}: {note}")
    say(f"data.{which}: {len(rows)} different prompts in {getattr(config.data, which)}{skipped}")
    return rows


def _start_folder(config: Config, root: Path) -> str:
    if config.model.path is not None:
        return config.model.at
    folder = root / "rounds" / "0" / "model"
    if not of_first(folder.exists()):
        plain = dataclasses.replace(config, lora=None, model=dataclasses.replace(config.model, quantize=None))
        setup = Setup.of(plain)
        with jax.set_mesh(setup.mesh):
            model = Decoder(setup.source.shape, setup.weights(), dtype=config.model.dtype)
            hf.save_model(model, folder, tokenizer=setup.source.tokenizer)
    return str(folder)


def _report(job: Job, number: int) -> float:
    """Writes `rounds.jsonl` up to this round, and says a line about it; returns its KL to the start."""
    found = from_first("what rounds were measured", lambda: [job.evaluation(n) for n in range(number + 1)])
    write(job.root / LINES, "".join(json.dumps(line) + "\n" for line in found))
    now, before = found[-1], f"{found[-2]['eval/reward']:.3f} -> " if number else ""
    gain = f" (against the start {with_interval(now, 'gain')})" if number else ", before training"
    gold = f", gold reward {with_interval(now, 'gold')}" if "eval/gold" in now else ""
    gold += f", belief distance {with_interval(now, 'js_distance')}" if "eval/js_distance" in now else ""
    say(
        f"round {number} of {job.config.rounds.number}: held-out reward {before}{with_interval(now, 'reward')}{gain}{gold}, "
        f"KL {now['eval/kl']:.3g}, {now['eval/length']:.0f} tokens"
    )
    return now["eval/kl"]


def _tell_end(job: Job, ended: str) -> None:
    """Says how the rounds went, and which one is taken; draws their picture."""
    lines, by = read_rows(job.root / LINES), job.config.rounds.best
    say(f"{ended}, see {job.root / LINES}; export with: align-jax export {job.root} {job.root / 'export'}")
    say_plainly(rounds_table(lines))
    if job.config.log.plots and jax.process_index() == 0:
        best = None if by == "last" else (by, onpolicy.best_round(lines, by))
        say_plainly(draw_rounds(lines, job.root / PICTURE, best, job.config.rounds.kl_stop))
    if by != "last" and len(lines) > 1:
        say(_best_line(lines, by))


def _best_line(lines: list[dict[str, Any]], by: str) -> str:
    best = lines[onpolicy.best_round(lines, by)]
    text = (
        f"rounds.best: {by} is highest in round {best['round']}, {with_interval(best, by)}, KL {best['eval/kl']:.3g} to "
        "the start: export, generate and evaluate take it"
    )
    start = lines[0][f"eval/{by}"]
    return text if best[f"eval/{by}"] > start else f"{text}; it is no higher than at the start, {start:.3f}"
