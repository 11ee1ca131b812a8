"""The steps of an on-policy round: sample, score, train, export, and evaluate; each goes on with what its files hold."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from align_jax.config.job_sections import ScoreConfig
from align_jax.config.sections import ReferenceConfig, RunConfig
from align_jax.objectives import MPO
from align_jax.parallel.processes import of_first, on_first
from align_jax.recipes import generate, onpolicy, score
from align_jax.recipes.export import export_model
from align_jax.recipes.folder import RunFolder
from align_jax.recipes.models import trained_model
from align_jax.recipes.round_beliefs import DRAW, belief_summary, give, pair, sampled_ratios, state, texts_alone
from align_jax.recipes.round_job import (
    EVAL_PROMPTS,
    EVALUATION,
    PAIRS,
    Job,
    of_own_files,
    pairs_data,
    read_rows,
    samples_data,
    write,
    write_rows,
)
from align_jax.recipes.say import part_of_a_job, say
from align_jax.recipes.setup import Setup
from align_jax.recipes.train import train
from align_jax.terminal import plural

SAMPLE, TRAIN, EVALUATE = 2, 3, 4  # uses of the run's seed


def steps_of(job: Job, number: int) -> list[Callable[[], bool]]:
    """What is left of a round, in order; each returns whether it is complete."""
    at, rounds = job.at(number), job.config.rounds
    sampling = _sampling_beliefs if job.has_beliefs else _sampling
    training = [*sampling(job, number), partial(_train, job, number), partial(_export, job, number)]
    judges = [(rounds.reward_model, "eval_scored.jsonl")]
    judges += [(rounds.gold_model, "eval_gold.jsonl")] if rounds.gold_model is not None else []
    samples, judged = at / "eval_samples.jsonl", at / ("eval_stated.jsonl" if job.has_beliefs else "eval_samples.jsonl")
    evaluation = [
        partial(_sample, job, number, job.root / EVAL_PROMPTS, samples),
        *([partial(state, job, samples, judged)] if job.has_beliefs else []),
        *(partial(_score, job, judge, judged, at / name) for judge, name in judges),
        partial(_evaluate, job, number),
    ]
    if number == 0 or of_first((at / "model").exists()):
        return evaluation
    per_round = rounds.prompts_per_round or len(job.prompts)
    chosen = onpolicy.round_prompts(len(job.prompts), per_round, number, job.config.run.seed)
    write_rows(at / "prompts.jsonl", [job.prompts[i] for i in chosen])
    say(f"round {number} of {rounds.number}: {plural(per_round, 'prompt')} to sample from, score and train on")
    return training + evaluation


def _sampling(job: Job, number: int) -> list[Callable[[], bool]]:
    """The samples of a round, with their scores."""
    at = job.at(number)
    return [
        partial(_sample, job, number - 1, at / "prompts.jsonl", at / "samples.jsonl"),
        partial(_score, job, job.config.rounds.reward_model, at / "samples.jsonl", at / "scored.jsonl"),
    ]


def _sampling_beliefs(job: Job, number: int) -> list[Callable[[], bool]]:
    """The same with a belief before each text, and the pairs that are made of them."""
    at, rounds = job.at(number), job.config.rounds
    prompts, given, samples, stated = (at / f"{name}.jsonl" for name in ("prompts", "given", "samples", "stated"))
    drawn = at / "drawn.jsonl" if rounds.beliefs == "model" else None
    draws = rounds.beliefs_per_prompt, onpolicy.derived_seed(job.config.run.seed, DRAW, number)
    return [
        *([partial(_draw, job, number - 1, prompts, drawn)] if drawn is not None else []),
        partial(give, prompts, drawn, given, draws),
        partial(_sample, job, number - 1, given, samples),
        partial(state, job, samples, stated),
        partial(_score, job, rounds.reward_model, stated, at / "scored.jsonl"),
        partial(pair, at / "scored.jsonl", at / PAIRS),
    ]


def _draw(job: Job, number: int, prompts: Path, output: Path) -> bool:
    """Beliefs that the model after round `number` draws for prompts, each with a token of text, which is not used."""
    config, draws = job.config, job.config.rounds.beliefs_per_prompt
    drawing = {"samples": draws, "max_new_tokens": 1, "beliefs": True, "tokens": False}
    options = dataclasses.replace(config.generate, prompts=str(prompts), output=str(output), **drawing)
    run = RunConfig(dir=None, seed=onpolicy.derived_seed(config.run.seed, DRAW, number + 1))
    return generate.run(job.with_model(number, run=run, generate=options), cut_prompts=True, stop=job.stopped)


def _sample(job: Job, number: int, prompts: Path, output: Path) -> bool:
    """Samples of the model after round `number`; held-out ones are drawn with the same random numbers in every round."""
    rounds, held_out = job.config.rounds, prompts.name == EVAL_PROMPTS
    use, samples = ((EVALUATE,), rounds.eval_samples) if held_out else ((SAMPLE, number + 1), rounds.samples_per_prompt)
    files = {"prompts": str(prompts), "output": str(output)}
    options = dataclasses.replace(job.config.generate, **files, samples=samples, tokens=True, beliefs=job.has_beliefs)
    run = RunConfig(dir=None, seed=onpolicy.derived_seed(job.config.run.seed, *use))
    return generate.run(job.with_model(number, run=run, generate=options), cut_prompts=True, stop=job.stopped)


def _score(job: Job, reward_model: str, samples: Path, scored: Path) -> bool:
    config = job.config
    options = ScoreConfig(str(samples), str(scored), reward_model, False, config.score.batch_rows)
    data = dataclasses.replace(of_own_files(config), format="groups", max_rows=None, on_bad_row="error")
    return score.run(dataclasses.replace(config, rounds=None, score=options, data=data), job.stopped)


def _train(job: Job, number: int) -> bool:
    """The run of a round: the model before it, the scored samples, a reference, and an optimizer that begins anew."""
    config, at = job.config, job.at(number)
    name = config.log.wandb_name and f"{config.log.wandb_name}-round-{number}"
    derived = job.with_model(
        number - 1,
        run=RunConfig(str(at), onpolicy.derived_seed(config.run.seed, TRAIN, number)),
        reference=job.reference(),
        data=pairs_data(config, at / PAIRS) if job.has_beliefs else samples_data(config, at / "scored.jsonl"),
        log=dataclasses.replace(config.log, wandb_name=name),
    )
    with part_of_a_job():
        return train(derived, job.stop).finished


def _export(job: Job, number: int) -> bool:
    at = job.at(number)
    on_first(lambda: [shutil.rmtree(left) for left in at.glob(".model.*.tmp")], "rounds")  # left by a kill
    export_model(trained_model(RunFolder(at)), at / "model", mesh=Setup.of(job.config).mesh)
    return True


def _evaluate(job: Job, number: int) -> bool:
    at = job.at(number)
    scored = at / "eval_scored.jsonl"
    now, start = ({name: _texts(job, folder / f"eval_{name}.jsonl") for name in _judges(job)} for folder in (at, job.at(0)))
    # Under one program, so that equal models give equal numbers.
    ratios = _logps(job, number, scored) - _logps(job, 0, scored)
    if job.has_beliefs:
        ratios = sampled_ratios(ratios, now["scored"], start["scored"])
    result = {"round": number, **onpolicy.held_out_summary(now["scored"], start["scored"], ratios)}
    if "gold" in now:
        result |= onpolicy.reward_summary("gold", now["gold"], start["gold"])
    if job.has_beliefs:
        result |= belief_summary(now["scored"])
    if number:
        result |= onpolicy.training_summary(_texts(job, at / "scored.jsonl"))
    write(at / EVALUATION, json.dumps(result, indent=2) + "\n")
    return True


def _texts(job: Job, scored: Path) -> list[dict[str, Any]]:
    """Scored samples, with the tokens of their texts."""
    rows = read_rows(scored)
    return texts_alone(rows) if job.has_beliefs else rows


def _judges(job: Job) -> tuple[str, ...]:
    """Whose scores of held-out samples there are."""
    return ("scored", "gold") if job.config.rounds.gold_model else ("scored",)


def _logps(job: Job, number: int, scored: Path) -> np.ndarray:
    """Log-probs `[prompts, samples]` of held-out samples, with their beliefs, under the model after a round."""
    longest = job.config.generate.max_new_tokens
    if job.has_beliefs:  # their statements stand before them
        longest = max(len(tokens) for row in read_rows(scored) for tokens in row["tokens"])
    data = {"max_response_tokens": longest, "max_responses": None}
    config = job.with_model(number, reference=ReferenceConfig(cache_dir=job.config.reference.cache_dir),
                            data=samples_data(job.config, scored, **data))  # fmt: skip
    config = dataclasses.replace(config, run=dataclasses.replace(config.run, dir=str(scored.parent)))
    setup = Setup.of(config)
    with jax.set_mesh(setup.mesh):
        dataset = setup.dataset("train", MPO())
        every, batches = np.arange(len(dataset)), setup.loader(dataset, 1).eval_batches()
        return setup.reference_logps(dataset, every, batches)["ref_logps"]
