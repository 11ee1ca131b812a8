"""The typed config: one frozen dataclass per section, from YAML or a dict, and `section.key=value`.

    config = Config.of("config.yaml", "train.steps=10")
    config = Config.of({"model": {"path": "a/llama"}, "data": {"train": rows}, "objective": {"name": "mpo"}})

Sections that belong to a module are defined there (`data.config.DataConfig`, `objectives`,
`optim.OPTIMIZERS`), the others in `config.sections`; this module assembles them. `objective.name` and
`optimizer.name` choose a dataclass, and only its keys are accepted; a list of objectives, each with a `weight`, is a mixture.
An override that chooses another one takes the keys of the file out that only the former has, as one of two keys that exclude
each other (`config.rivals`) takes the other out; `source.notes` says so. What can be said without JAX is said by
`config.early` first, through the same functions.
"""

from __future__ import annotations

import dataclasses
import os
import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from align_jax.config import check
from align_jax.config.check import Choice, Schema, build
from align_jax.config.given import config_of
from align_jax.config.identity import identity
from align_jax.config.lora import LEARNING_RATE, LoraConfig
from align_jax.config.rows import rows_in, with_rows
from align_jax.config.sections import (
    BenchConfig,
    CheckpointConfig,
    EvaluateConfig,
    GenerateConfig,
    LogConfig,
    MeshConfig,
    ModelSection,
    ReferenceConfig,
    RoundsConfig,
    RunConfig,
    ScoreConfig,
    TrainConfig,
)
from align_jax.config.source import ConfigValues, Override, dump, escaped, parse_overrides
from align_jax.data.config import DataConfig
from align_jax.data.formats import find_format
from align_jax.data.members import Member
from align_jax.errors import UserError
from align_jax.models.config import ModelConfig
from align_jax.objectives import OBJECTIVES, Mixture, Objective, find_objective, name_of
from align_jax.training.optim import OPTIMIZERS, AdamW, OptimizerConfig

__all__ = ["Config", "load_config", "parse_overrides"]

SECTIONS: dict[str, type] = {
    "run": RunConfig,
    "model": ModelSection,
    "lora": LoraConfig,
    "reference": ReferenceConfig,
    "data": DataConfig,
    "mesh": MeshConfig,
    "train": TrainConfig,
    "checkpoint": CheckpointConfig,
    "generate": GenerateConfig,
    "score": ScoreConfig,
    "bench": BenchConfig,
    "evaluate": EvaluateConfig,
    "rounds": RoundsConfig,
    "log": LogConfig,
}

# None where they are not given, though every key has a default.
_OPTIONAL = ("lora",)


@dataclasses.dataclass(frozen=True)
class Config:
    """All sections; `lora`, `data`, `objective` and `rounds` are None when there are none.

    Attributes:
      source: where the values came from, for errors.
    """

    run: RunConfig
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
    score: ScoreConfig
    bench: BenchConfig
    evaluate: EvaluateConfig
    rounds: RoundsConfig | None
    log: LogConfig
    source: ConfigValues = dataclasses.field(repr=False, compare=False)

    @classmethod
    def of(cls, values: str | os.PathLike | Mapping[str, Any] | Config, *overrides: str) -> Config:
        """A config from a YAML file or a dict, with a default for everything that can have one.

        Args:
          values: the file, the folder of a run or a model, nested dicts (section -> key -> value), or another config.
            `data.train` and `data.eval` may be rows instead of a path: a list of dicts with the columns of `data.format`, or a
            `datasets.Dataset`.
          overrides: `section.key=value`, values as on the command line. Another `objective.name` or `optimizer.name` than that
            of a config that is given drops the options that the new one does not have.

        Raises:
          UserError: see `load_config`.
        """
        if not all(isinstance(text, str) for text in overrides):
            raise UserError(f"overrides are texts, section.key=value, one after the other; got {overrides!r}")
        options = parse_overrides([f"--{text.removeprefix('--')}" for text in overrides])
        if isinstance(values, Config) and not options:
            return values
        if isinstance(values, str | os.PathLike) and os.path.isdir(values):
            source, follows = config_of(os.fspath(values), "Config.of")
            return load_config(source, [*follows, *options])
        if isinstance(values, str | os.PathLike):
            return load_config(values, options)
        given = escaped(values.to_dict()) if isinstance(values, Config) else values
        if isinstance(values, Config):
            _drop_other_options(given, dict(options))
        if isinstance(values, Config) and values.run.dir == _own_folder(values):
            given["run"]["dir"] = None  # another run has another folder
        source = ConfigValues.of(given)
        rows = rows_in(source)
        config = _from_source(source, options)
        for note in [] if config.log.quiet else source.notes:
            warnings.warn(note, stacklevel=2)
        return dataclasses.replace(config, data=with_rows(config.data, rows)) if rows else config

    @property
    def head(self) -> str:
        """What the model that is trained has on its last layer, see `objectives.Objective`."""
        return "lm_head" if self.objective is None else self.objective.head

    @property
    def has_live_reference(self) -> bool:
        """Whether training keeps a reference's weights beside the policy's."""
        return self.reference.live and self.objective is not None and self.objective.needs_reference

    def to_dict(self) -> dict[str, Any]:
        """Every key of every section, resolved; `name` first where a section is chosen by one."""
        sections = ((f.name, getattr(self, f.name)) for f in dataclasses.fields(self) if f.name != "source")
        values = {key: section for key, section in sections if section is not None}
        written = {"objective": _objective_values, "optimizer": lambda own: {"name": own.name} | dataclasses.asdict(own)}
        return {key: written.get(key, dataclasses.asdict)(section) for key, section in values.items()}

    def to_yaml(self) -> str:
        """The complete config; loading it gives an equal one."""
        return dump(self.to_dict())

    def require(self, *keys: str) -> None:
        """UserError naming all sections and dotted keys among these that the config lacks."""
        check.require(self.source, self.to_dict(), keys)

    def for_training(self) -> tuple[Config, list[str]]:
        """The config with what training would not use switched off, and a line about each such key.

        Raises:
          UserError: what training, or on-policy rounds of it, cannot do.
        """
        if self.rounds is not None:
            _check_rounds(self.source, self)
            return self, []
        config, lines = _without_evaluations(self)
        config._check_patience()
        return config, lines

    def _check_patience(self) -> None:
        train, metric = self.train, self.checkpoint.best_metric
        if train.patience is None:
            return
        if metric is None or not metric.startswith("eval/"):
            raise self.source.error(
                "train.patience",
                f"{train.patience} evaluations without a better checkpoint.best_metric are waited for; set that to a metric of "
                f"evaluations, such as {_usual_metric(self)}" + (f", and not {metric}" if metric else ""),
            )
        if train.eval_every is None:
            raise self.source.error("train.patience", f"{train.patience} evaluations are waited for; set train.eval_every, too")

    def mesh_sizes(self, devices: int) -> tuple[int, int, int]:
        """(data, fsdp, tensor) on this many devices, beside `mesh.sequence` and `mesh.expert`.

        Raises:
          UserError: the mesh or `train.groups_per_step` do not fit them.
        """
        data, fsdp, tensor = self.mesh.sizes(devices)
        _check_groups(self.train, data, fsdp, self.mesh.expert)
        return data, fsdp, tensor


def _usual_metric(config: Config) -> str:
    """A metric of evaluations that the objective always has."""
    objective, sets = config.objective, config.data.eval_sets()
    if not sets:
        return "eval/text/loss"
    of = "eval" + f"/{next(iter(sets))}".rstrip("/")
    if objective is None or objective.arrangement.has_beliefs:
        return f"{of}/beliefs/js_distance"
    return f"{of}/rewards/accuracies" if objective.arrangement.contrasts else f"{of}/loss"


def _without_evaluations(config: Config) -> tuple[Config, list[str]]:
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


def _check_groups(train: TrainConfig, data: int, fsdp: int, expert: int) -> None:
    shards = train.accumulation_steps * data * fsdp * expert
    if train.groups_per_step % shards:
        raise UserError(
            f"train.groups_per_step: {train.groups_per_step} is not a multiple of {shards} = accumulation_steps "
            f"{train.accumulation_steps} x mesh.data {data} x mesh.fsdp {fsdp}"
            + (f" x mesh.expert {expert}" if expert > 1 else "")
        )


def _has_required(cls: type) -> bool:
    return any(f.default is f.default_factory is dataclasses.MISSING for f in dataclasses.fields(cls))


def _cross_check(source: ConfigValues, config: Config) -> None:
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
            _check_groups(train, mesh.data, mesh.fsdp, mesh.expert)
        except UserError as error:
            raise UserError(f"{source.where('train.groups_per_step')}: {error}") from error


def _check_rounds(source: ConfigValues, config: Config) -> None:
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


def load_config(path: str | Path | ConfigValues, overrides: Iterable[Override] = (), *, require: Iterable[str] = ()) -> Config:
    """Reads, resolves, types and checks a config.

    Args:
      path: YAML file, or what was read from one.
      overrides: what `parse_overrides` returns.
      require: sections and dotted keys that must be there, for example `("model", "data.train")`.

    Returns:
      The config, with every default filled in.

    Raises:
      UserError: an unknown or duplicate key, a wrong type, a value out of range, an option that the chosen objective or
        optimizer does not use, an unset environment variable, or a missing required key; names key, value and place.
    """
    config = _from_source(path if isinstance(path, ConfigValues) else ConfigValues.read(path), overrides)
    config.require(*require)
    return config


def _schema() -> Schema:
    """What the code accepts."""
    choices = {
        "objective": Choice(tuple(OBJECTIVES), find_objective, own=True, many=True),
        "optimizer": Choice(tuple(OPTIMIZERS), OPTIMIZERS.__getitem__, AdamW.name),
    }
    return Schema(
        SECTIONS, choices, {"model.config": ModelConfig, "data.train": Member, "data.eval": Member, "data.eval_text": Member}
    )


def _from_source(source: ConfigValues, overrides: Iterable[Override]) -> Config:
    source.override(overrides)
    source.resolve()
    check.check(source, _schema())
    built: dict[str, Any] = {}
    for section, cls in SECTIONS.items():
        if section == "model" and "lora" in source.values:
            # What is not trained needs no more digits than it is computed in.
            given = source.values.setdefault("model", {})
            given.setdefault("param_dtype", "float32" if given.get("dtype") == "float32" else "bfloat16")
        if section in source.values or not (_has_required(cls) or section in _OPTIONAL):
            built[section] = build(source, cls, source.values.get(section, {}), f"{section}.")
        else:
            built[section] = None
    for section, choice in _schema().choices.items():
        values = source.values.get(section)
        if section == "optimizer" and built["objective"] is not None:
            values.setdefault("learning_rate", _usual_rate(built["objective"], built["lora"]))
        if isinstance(values, list):
            built[section] = _mixture(source, values)
            continue
        cls = None if values is None else choice.find(values.pop("name"))
        built[section] = None if cls is None else build(source, cls, values, f"{section}.")
    config = Config(**built, source=source)
    _cross_check(source, config)
    return _with_folder(config)


def _mixture(source: ConfigValues, values: list[dict[str, Any]]) -> Mixture:
    """The objective that a list of them is.

    Raises:
      UserError: a value out of range, or terms that cannot be mixed; with their place.
    """
    terms, weights = [], []
    for i, own in enumerate(values):
        cls = find_objective(own["name"])
        if any(field.name == check.WEIGHT for field in dataclasses.fields(cls)):
            raise source.error(f"objective.{i}.name", f"{own['name']!r} has a key `weight` of its own, which terms cannot have")
        keys = {key: value for key, value in own.items() if key not in ("name", check.WEIGHT)}
        terms.append(build(source, cls, keys, "objective.", f"objective.{i}"))
        weights.append(float(own.get(check.WEIGHT, 1.0)))
    try:
        return Mixture(tuple(terms), tuple(weights))
    except UserError as error:
        key, _, said = str(error).partition(": ")
        raise source.error(key, said) from error


def _objective_values(objective: Objective) -> dict[str, Any] | list[dict[str, Any]]:
    """The section `objective` that is this objective."""
    if not isinstance(objective, Mixture):
        return {"name": name_of(objective)} | dataclasses.asdict(objective)
    terms = zip(objective.terms, objective.weights, strict=True)
    return [{"name": name_of(term), check.WEIGHT: weight} | dataclasses.asdict(term) for term, weight in terms]


def _with_folder(config: Config) -> Config:
    """The config with a `run.dir` of its own: one for every run that differs in what decides its weights."""
    if config.run.dir is not None:
        return config
    return dataclasses.replace(config, run=dataclasses.replace(config.run, dir=_own_folder(config)))


def _drop_other_options(given: dict[str, Any], options: Mapping[str, Any]) -> None:
    """Takes out the options of an objective or optimizer that another one, which takes its place, does not have.

    Where an adapter comes in or goes out, also what nobody chose and what is otherwise with one.
    """
    comes = "lora" not in given and any(key.partition(".")[0] == "lora" and options[key] is not None for key in options)
    goes = "lora" in given and "lora" in options and options["lora"] is None
    if comes or goes:
        if "objective" in given and _has_usual_rate(given):
            del given["optimizer"]["learning_rate"]
        if given["model"]["param_dtype"] == ("bfloat16" if goes else "float32"):
            del given["model"]["param_dtype"]
    if "objective" in options and "objective" in given and _has_usual_rate(given):
        del given["optimizer"]["learning_rate"]  # nobody chose it
    for section, choice in _schema().choices.items():
        name, before = options.get(f"{section}.name"), given.get(section)
        if choice.has(name) and isinstance(before, dict) and name != before["name"]:
            kept = {"name", *(field.name for field in dataclasses.fields(choice.find(name)))}
            if section == "objective" and _has_usual_rate(given):
                del given["optimizer"]["learning_rate"]  # nobody chose it
            given[section] = {key: value for key, value in before.items() if key in kept}


def _usual_rate(objective: Objective | type[Objective], lora: Any) -> float:
    """The learning rate of a config that gives none."""
    usual = objective.learning_rate
    return usual if lora is None else max(LEARNING_RATE, 10 * usual if usual > LEARNING_RATE else 0)


def _has_usual_rate(given: Mapping[str, Any]) -> bool:
    """Whether the learning rate is the one that the objective gives."""
    terms = given["objective"] if isinstance(given["objective"], list) else [given["objective"]]
    usual = min(_usual_rate(find_objective(term["name"]), given.get("lora")) for term in terms)
    return given["optimizer"]["learning_rate"] == usual


def _own_folder(config: Config) -> str | None:
    if config.objective is None or config.data is None or config.data.train is None:
        return None
    name = re.sub(r"\W+", "-", name_of(config.objective))
    return os.path.join("runs", f"{name}-{identity(config.to_dict())}")
