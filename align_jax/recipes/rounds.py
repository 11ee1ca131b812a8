"""On-policy rounds: sample, score, train on the samples, evaluate, repeat; every round is an ordinary run in its own folder.

    run.dir/config.yaml  rounds.jsonl  eval_prompts.jsonl
    run.dir/rounds/N/    prompts.jsonl  samples.jsonl  scored.jsonl      sampled from the model of round N - 1
                         config.yaml  metrics.jsonl  checkpoints/        the run that is trained on scored.jsonl
                         model/                                          its last checkpoint, in Hugging Face format
                         eval_samples.jsonl  eval_scored.jsonl  evaluation.json

Each step continues or passes over what its files hold, so a killed run goes on inside the step where it was. Several processes
take every step together, and the first one writes; the folder must be one that all of them see.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from align_jax import hf
from align_jax.config import Config
from align_jax.config.identity import FREE
from align_jax.config.sections import ReferenceConfig, RunConfig, ScoreConfig
from align_jax.data import DataConfig
from align_jax.data.prompts import distinct_prompts
from align_jax.errors import UserError
from align_jax.files import write_whole
from align_jax.models import Decoder
from align_jax.objectives import MPO
from align_jax.parallel.processes import of_first, on_first
from align_jax.parallel.stop import Stopped, StopSignal
from align_jax.recipes import generate, onpolicy, score
from align_jax.recipes.export import export_model
from align_jax.recipes.folder import RunFolder
from align_jax.recipes.say import part_of_a_job, say, say_plainly, speaking
from align_jax.recipes.setup import Setup, on_its_day
from align_jax.recipes.source import model_at, trained_model
from align_jax.recipes.summary import rounds_table, with_interval
from align_jax.recipes.train import REQUIRED, train
from align_jax.terminal import plural

SAMPLE, TRAIN, EVALUATE = 2, 3, 4  # uses of the run's seed
EVALUATION, EVAL_PROMPTS = "evaluation.json", "eval_prompts.jsonl"
# The sampling decides the data, so it may not change within a run; the number of rounds may.
DECIDES = ("generate", "data.eval", "data.eval_split")
ROUNDS_FREE = ("rounds.number", "generate.rows", *(key for key in FREE if key not in DECIDES))


@dataclasses.dataclass(frozen=True)
class Job:
    """A run of several rounds.

    Attributes:
      start: folder (or hub id) of the model at the start.
      prompts: rows with `prompt`, of the training data.
    """

    config: Config
    start: str
    prompts: list[dict[str, Any]]
    stop: StopSignal

    @property
    def root(self) -> Path:
        return Path(self.config.run.dir)

    def at(self, number: int) -> Path:
        """The folder of a round; round 0 is the start."""
        return self.root / "rounds" / str(number)

    def model(self, number: int) -> str:
        """The model after a round."""
        return str(self.at(number) / "model") if number else self.start

    def stopped(self) -> bool:
        return self.stop.requested()

    def with_model(self, number: int, **sections) -> Config:
        """The config of one step, which begins from the model after a round."""
        tokenizer = self.config.model.tokenizer or self.start
        model = dataclasses.replace(self.config.model, path=self.model(number), revision=None, config=None, tokenizer=tokenizer)
        return dataclasses.replace(self.config, model=model, rounds=None, **sections)


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
        if folder.is_run and ((folder.path / "rounds").exists() or folder.steps):
            folder.check_same(config, ROUNDS_FREE)
        stack.enter_context(folder.claimed())
        finished = _rounds(config, stop)
    lines = Path(config.run.dir) / "rounds.jsonl"
    return Rounds(Path(config.run.dir), finished, _read_rows(lines) if lines.exists() else [])


def _rounds(config: Config, stop: StopSignal) -> bool:
    job = _prepare(config, stop)
    for number in range(config.rounds.number + 1):
        finished = of_first((job.at(number) / EVALUATION).exists())
        for step in () if finished else _steps(job, number):
            stopped = job.stopped()
            job.stop.idle()
            if stopped or not _complete(step):
                say(f"stopped by {stop.cause} in round {number} of {config.rounds.number}; the same command goes on from there")
                return False
        _report(job, number)
    say(f"all rounds are done, see {job.root / 'rounds.jsonl'}; export with: align-jax export {job.root} {job.root / 'export'}")
    say_plainly(rounds_table(_read_rows(job.root / "rounds.jsonl")))
    return True


def _complete(step: Callable[[], bool]) -> bool:
    try:
        return step()
    except Stopped:  # in a pass that keeps what it has
        return False


def _prepare(config: Config, stop: StopSignal) -> Job:
    """Reads the prompts; a fresh model is written out, so that every model is a folder."""
    root = Path(config.run.dir)
    model_at(config.rounds.reward_model, "score", "rounds.reward_model")  # before hours of sampling
    prompts, held_out = (_read_prompts(config, which) for which in ("train", "eval"))
    rounds = config.rounds
    for key, wanted, there, where in (
        ("prompts_per_round", rounds.prompts_per_round, len(prompts), config.data.train),
        ("eval_prompts", rounds.eval_prompts, len(held_out), config.data.eval),
    ):
        if wanted is not None and wanted > there:
            raise UserError(f"rounds.{key}: {wanted} are wanted, but {where} has {there} different prompts")
    _write(root / "config.yaml", config.to_yaml())
    chosen = onpolicy.round_prompts(len(held_out), rounds.eval_prompts or len(held_out), 1, config.run.seed)
    _write_rows(root / EVAL_PROMPTS, [held_out[i] for i in chosen])
    return Job(config, _start_folder(config, root), prompts, stop)


def _read_prompts(config: Config, which: str) -> list[dict[str, Any]]:
    rows, bad, notes = distinct_prompts(config.data, which, Path(config.run.dir) / "spool")
    skipped = f", {len(bad)} malformed rows skipped, the first: {bad[0]}" if bad else ""
    for note in notes:
        say(f"data.{which}: {note}")
    say(f"data.{which}: {len(rows)} different prompts in {getattr(config.data, which)}{skipped}")
    return rows


def _start_folder(config: Config, root: Path) -> str:
    if config.model.path is not None:
        return config.model.at
    folder = root / "rounds" / "0" / "model"
    if not of_first(folder.exists()):
        setup = Setup.of(config)
        with jax.set_mesh(setup.mesh):
            model = Decoder(setup.source.shape, setup.weights(), dtype=config.model.dtype)
            hf.save_model(model, folder, tokenizer=setup.source.tokenizer)
    return str(folder)


def _steps(job: Job, number: int) -> list[Callable[[], bool]]:
    """What is left of a round, in order; each returns whether it is complete."""
    at = job.at(number)
    training = [
        partial(_sample, job, number - 1, at / "prompts.jsonl", at / "samples.jsonl"),
        partial(_score, job, at / "samples.jsonl", at / "scored.jsonl"),
        partial(_train, job, number),
        partial(_export, job, number),
    ]
    evaluation = [
        partial(_sample, job, number, job.root / EVAL_PROMPTS, at / "eval_samples.jsonl"),
        partial(_score, job, at / "eval_samples.jsonl", at / "eval_scored.jsonl"),
        partial(_evaluate, job, number),
    ]
    if number == 0 or of_first((at / "model").exists()):
        return evaluation
    config = job.config
    per_round = config.rounds.prompts_per_round or len(job.prompts)
    chosen = onpolicy.round_prompts(len(job.prompts), per_round, number, config.run.seed)
    _write_rows(at / "prompts.jsonl", [job.prompts[i] for i in chosen])
    say(f"round {number} of {config.rounds.number}: {plural(per_round, 'prompt')} to sample from, score and train on")
    return training + evaluation


def _sample(job: Job, number: int, prompts: Path, output: Path) -> bool:
    """Samples of the model after round `number`; held-out ones are drawn with the same random numbers in every round."""
    rounds, held_out = job.config.rounds, prompts.name == EVAL_PROMPTS
    use, samples = ((EVALUATE,), rounds.eval_samples) if held_out else ((SAMPLE, number + 1), rounds.samples_per_prompt)
    options = dataclasses.replace(job.config.generate, prompts=str(prompts), output=str(output), samples=samples, tokens=True)
    run = RunConfig(dir=None, seed=onpolicy.derived_seed(job.config.run.seed, *use))
    return generate.run(job.with_model(number, run=run, generate=options), cut_prompts=True, stop=job.stopped)


def _score(job: Job, samples: Path, scored: Path) -> bool:
    config = job.config
    options = ScoreConfig(str(samples), str(scored), config.rounds.reward_model, False, config.score.batch_rows)
    data = dataclasses.replace(_of_own_files(config), format="groups", max_rows=None, on_bad_row="error")
    return score.run(dataclasses.replace(config, rounds=None, score=options, data=data), job.stopped)


def _train(job: Job, number: int) -> bool:
    """The run of a round: the model before it, the scored samples, a reference, and an optimizer that begins anew."""
    config, at = job.config, job.at(number)
    reference = ReferenceConfig(job.start if config.rounds.reference == "run" else None, config.reference.cache_dir)
    name = config.log.wandb_name and f"{config.log.wandb_name}-round-{number}"
    derived = job.with_model(
        number - 1,
        run=RunConfig(str(at), onpolicy.derived_seed(config.run.seed, TRAIN, number)),
        reference=reference,
        data=_samples_data(config, at / "scored.jsonl"),
        log=dataclasses.replace(config.log, wandb_name=name),
    )
    with part_of_a_job():
        return train(derived, job.stop).finished


def _samples_data(config: Config, scored: Path, **more):
    plain = {"format": "samples", "eval": None, "max_rows": None, "on_bad_row": "error"}
    return dataclasses.replace(_of_own_files(config), train=str(scored), **plain, **more)


def _of_own_files(config: Config) -> DataConfig:
    """The data section for files that the rounds wrote, which have none of the parts that a data set may have."""
    whole = {"split": None, "eval_split": None, "subset": None, "revision": None, "streaming": False}
    return dataclasses.replace(config.data, **whole, on_empty="keep")


def _export(job: Job, number: int) -> bool:
    at = job.at(number)
    on_first(lambda: [shutil.rmtree(left) for left in at.glob(".model.*.tmp")], "rounds")  # left by a kill
    export_model(trained_model(RunFolder(at)), at / "model", mesh=Setup.of(job.config).mesh)
    return True


def _evaluate(job: Job, number: int) -> bool:
    at = job.at(number)
    rows, start = _read_rows(at / "eval_scored.jsonl"), _read_rows(job.at(0) / "eval_scored.jsonl")
    scored = at / "eval_scored.jsonl"
    # Under one program, so that equal models give equal numbers.
    ratios = _logps(job, number, scored) - _logps(job, 0, scored)
    result = {"round": number, **onpolicy.held_out_summary(rows, start, ratios)}
    if number:
        result |= onpolicy.training_summary(_read_rows(at / "scored.jsonl"))
    _write(at / EVALUATION, json.dumps(result, indent=2) + "\n")
    return True


def _logps(job: Job, number: int, scored: Path) -> np.ndarray:
    """Log-probs `[prompts, samples]` of held-out samples under the model after a round."""
    data = {"max_response_tokens": job.config.generate.max_new_tokens, "max_responses": None}
    config = job.with_model(number, reference=ReferenceConfig(None, job.config.reference.cache_dir),
                            data=_samples_data(job.config, scored, **data))  # fmt: skip
    config = dataclasses.replace(config, run=dataclasses.replace(config.run, dir=str(scored.parent)))
    setup = Setup.of(config)
    with jax.set_mesh(setup.mesh):
        dataset = setup.dataset("train", MPO())
        every, batches = np.arange(len(dataset)), setup.loader(dataset, 1).eval_batches()
        return setup.reference_logps(dataset, every, batches)["ref_logps"]


def _report(job: Job, number: int) -> None:
    """Writes `rounds.jsonl` up to this round, and says a line about it."""
    found = [json.loads((job.at(n) / EVALUATION).read_text(encoding="utf-8")) for n in range(number + 1)]
    _write(job.root / "rounds.jsonl", "".join(json.dumps(line) + "\n" for line in found))
    now, before = found[-1], f"{found[-2]['eval/reward']:.3f} -> " if number else ""
    gain = f" (against the start {with_interval(now, 'gain')})" if number else ", before training"
    say(
        f"round {number} of {job.config.rounds.number}: held-out reward {before}{with_interval(now, 'reward')}{gain}, "
        f"KL {now['eval/kl']:.3g}, {now['eval/length']:.0f} tokens"
    )


def _write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    _write(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _write(path: Path, text: str) -> None:
    """Writes a file that all processes see afterwards."""

    def write() -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text)

    on_first(write, str(path))


def _read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]
