"""Which keys of different sections go together, once each section is whole."""

from __future__ import annotations

import dataclasses
from typing import Protocol

from align_jax.config.check import build
from align_jax.config.job_sections import EvaluateConfig, GenerateConfig, RoundsConfig
from align_jax.config.lora import LoraConfig
from align_jax.config.sections import CheckpointConfig, MeshConfig, ModelSection, ReferenceConfig, TrainConfig
from align_jax.config.source import ConfigValues
from align_jax.data.config import DataConfig
from align_jax.data.formats import find_format
from align_jax.errors import UserError
from align_jax.models.config import ModelConfig
from align_jax.objectives import Objective, name_of
from align_jax.training.optim import OptimizerConfig


class Sections(Protocol):
    """What is read here of a `config.load.Config`, which imports this module."""

    model: ModelSection
    lora: LoraConfig | None
    reference: ReferenceConfig
    data: DataConfig | None
    objective: Objective | None
    optimizer: OptimizerConfig
    mesh: MeshConfig
    train: TrainConfig
    checkpoint: CheckpointConfig
    generate: GenerateConfig
    evaluate: EvaluateConfig
    rounds: RoundsConfig | None

    @property
    def head(self) -> str:
        """What is trained on top of the decoder."""


def usual_metric(config: Sections) -> str:
    """A metric of evaluations that the objective always has."""
    objective, sets = config.objective, config.data.eval_sets()
    if not sets:
        return "eval/text/loss"
    of = "eval" + f"/{next(iter(sets))}".rstrip("/")
    if objective is None or objective.arrangement.has_beliefs:
        return f"{of}/beliefs/js_distance"
    return f"{of}/rewards/accuracies" if objective.arrangement.contrasts else f"{of}/loss"


def without_evaluations(config: Sections) -> tuple[Sections, list[str]]:
    """The config without the keys that need what it does not evaluate on, and a line about those that were set."""
    metric, data = config.checkpoint.best_metric, config.data
    of_any = {
        "train.eval_every": (config.train.eval_every, None),
        "train.eval_first": (not config.train.eval_first and "false", True),
        "train.patience": (config.train.patience, None),
        "checkpoint.best_metric": (metric if (metric or "").startswith("eval/") else None, None),
    }
    of_sets = {
        "evaluate.training_samples": (config.evaluate.training_samples, 0),
        # configs of before hold `test` whether or not it was asked for
        "data.eval_split": (data.eval_split if data.eval_split != "test" else None, None),
    }
    needs = of_any if data.eval is None and data.eval_text is None else {}
    lines = []
    for key, (value, off) in (needs | (of_sets if data.eval is None else {})).items():
        if value:
            section, _, name = key.partition(".")
            changed = dataclasses.replace(getattr(config, section), **{name: off})
            config = dataclasses.replace(config, **{section: changed})
            lines.append(f"{key}: {value} is off, since data.eval is not set")
    return config, lines


def check_groups(train: TrainConfig, data: int, fsdp: int, expert: int) -> None:
    """UserError where a step's groups are no whole number for every shard and microbatch."""
    shards = train.accumulation_steps * data * fsdp * expert
    if train.groups_per_step % shards:
        raise UserError(
            f"train.groups_per_step: {train.groups_per_step} is not a multiple of {shards} = accumulation_steps "
            f"{train.accumulation_steps} x mesh.data {data} x mesh.fsdp {fsdp}"
            + (f" x mesh.expert {expert}" if expert > 1 else "")
        )


def cross_check(source: ConfigValues, config: Sections) -> None:
    """UserError, with its place, for values that are right alone and not beside others."""
    if config.model.config is not None:
        build(source, ModelConfig, dict(config.model.config), "model.config.")
    mesh, train, model = config.mesh, config.train, config.model
    if model.quantize is not None and config.lora is None and config.objective is not None:
        raise source.error("model.quantize", f"{model.quantize}: weights of few bits cannot be trained; add `lora: {{}}`")
    if config.lora is not None and config.optimizer.name == "muon":
        raise source.error(
            "optimizer.name", "muon is for the matrices of layers, and with `lora` their factors are trained; take adamw"
        )
    decay = getattr(config.optimizer, "weight_decay", 0)
    whole = config.lora is None or config.lora.modules_to_save or config.lora.path or config.head == "score"
    if decay and not whole and config.optimizer.decayed != "all":
        raise source.error(
            "optimizer.weight_decay",
            f"{decay:g} has no effect with `lora`, whose factors have no weight decay; leave it out, or set "
            "optimizer.decayed: all",
        )
    if config.reference.adapter is not None and config.lora is None:
        raise source.error("reference.adapter", f"{config.reference.adapter} is used with `lora` alone; see reference.path")
    if mesh.memory_gib is not None and "auto" not in (model.rows_per_chunk, model.head_chunk):
        rows, head = ("null" if value is None else value for value in (model.rows_per_chunk, model.head_chunk))
        raise source.error(
            "mesh.memory_gib",
            f"{mesh.memory_gib:g} has no effect with model.rows_per_chunk: {rows} and model.head_chunk: {head}; leave one of "
            "them out (auto, the default, takes as many as fit)",
        )
    if config.lora is not None and config.reference.mix != 1:
        raise source.error(
            "reference.mix",
            f"{config.reference.mix}: with `lora` the reference can become the policy (1), but not go a part of the way: the "
            "mean of two adapters' factors is not that of what they add",
        )
    if config.reference.quantize is not None and config.lora is not None:
        raise source.error(
            "reference.quantize",
            f"{config.reference.quantize}: with `lora` the reference is the model beneath the adapter; see model.quantize",
        )
    if config.reference.quantize is not None and config.objective is not None and not config.objective.needs_reference:
        raise source.error("reference.quantize", f"objective {name_of(config.objective)} has no reference; leave it out")
    if config.reference.live and config.objective is not None and not config.objective.needs_reference:
        raise source.error("reference.live", f"objective {name_of(config.objective)} has no reference; leave it out")
    if mesh.data > 0 and mesh.fsdp > 0:
        try:
            check_groups(train, mesh.data, mesh.fsdp, mesh.expert)
        except UserError as error:
            raise source.error("train.groups_per_step", str(error).partition(": ")[2]) from error


def check_rounds(source: ConfigValues, config: Sections) -> None:
    """UserError for what does not go with on-policy rounds, with its place."""
    objective, rounds = config.objective, config.rounds
    beliefs = objective.arrangement.has_beliefs
    refused = [
        ("data.eval", config.data.eval is None, "is required by rounds: the reward of samples on held-out prompts is measured"),
        (
            "data.eval",
            config.data.eval is not None and "" not in config.data.eval_sets(),
            "names several sets, and rounds take the prompts of one",
        ),
        (
            "objective.name",
            config.head != "lm_head" or not (beliefs or objective.arrangement.refusal(find_format("samples")) is None),
            f"{name_of(objective)!r} cannot be trained in rounds: a language model is, on samples with scores",
        ),
        (
            "objective.latent_beliefs",
            any(getattr(term, "latent_beliefs", False) for term in getattr(objective, "terms", (objective,))),
            "true is not used in rounds, where the belief of each text is known: it was drawn first",
        ),
        *(
            (f"rounds.{key}", getattr(rounds, key) != default and not beliefs, "is used by objective gdpo alone")
            for key, default in (("beliefs", "model"), ("beliefs_per_prompt", 1))
        ),
        (
            "rounds.reference",
            rounds.reference == "run" and not objective.needs_reference,
            f"'run' is not used by objective {name_of(objective)}, which has no reference",
        ),
        ("reference.path", config.reference.path is not None, "is not used in rounds; see rounds.reference"),
        ("reference.adapter", config.reference.adapter is not None, "is not used in rounds; see rounds.reference"),
        ("reference.quantize", config.reference.quantize is not None, "is not used in rounds"),
        ("generate.temperature", config.generate.temperature == 0, "0 gives the same sample every time; rounds need contrast"),
        ("generate.beliefs", config.generate.beliefs, "is not used in rounds"),
        ("train.eval_every", config.train.eval_every is not None, "is not used in rounds: each ends with an evaluation"),
        ("train.patience", config.train.patience is not None, "is not used in rounds: each makes all its steps"),
        ("checkpoint.best_metric", config.checkpoint.best_metric is not None, "is not used in rounds: each hands on its last"),
        ("evaluate.training_samples", config.evaluate.training_samples > 0, "is not used in rounds; see rounds.eval_samples"),
        ("generate.alpaca_eval", config.generate.alpaca_eval is not None, "is not used in rounds"),
        (
            "generate.max_new_tokens",
            config.generate.max_new_tokens > config.data.max_response_tokens,
            f"{config.generate.max_new_tokens} is more than data.max_response_tokens={config.data.max_response_tokens}: the "
            "rest of a response would be neither scored nor trained on",
        ),
    ]
    for key, wrong, message in refused:
        if wrong:
            raise source.error(key, message)
