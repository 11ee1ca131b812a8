"""The typed config: one frozen dataclass per section, from YAML or a dict, and `section.key=value`.

    config = Config.of("config.yaml", "train.steps=10")
    config = Config.of({"model": {"path": "a/llama"}, "data": {"train": rows}, "objective": {"name": "mpo"}})

Sections that belong to a module are defined there (`data.config.DataConfig`, `objectives`,
`optim.OPTIMIZERS`), the others in `config.sections` and `config.job_sections`; this
module assembles them. What sections must be to each other is in `config.together`. `objective.name` and
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
from align_jax.config.job_sections import BenchConfig, EvaluateConfig, GenerateConfig, LogConfig, RoundsConfig, ScoreConfig
from align_jax.config.lora import LEARNING_RATE, LoraConfig
from align_jax.config.rows import rows_in, with_rows
from align_jax.config.sections import CheckpointConfig, MeshConfig, ModelSection, ReferenceConfig, RunConfig, TrainConfig
from align_jax.config.source import ConfigValues, Override, dump, escaped, parse_overrides
from align_jax.config.together import check_groups, check_rounds, cross_check, usual_metric, without_evaluations
from align_jax.data.config import DataConfig
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
            check_rounds(self.source, self)
            return self, []
        config, lines = without_evaluations(self)
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
                f"evaluations, such as {usual_metric(self)}" + (f", and not {metric}" if metric else ""),
            )
        if train.eval_every is None:
            raise self.source.error("train.patience", f"{train.patience} evaluations are waited for; set train.eval_every, too")

    def mesh_sizes(self, devices: int) -> tuple[int, int, int]:
        """(data, fsdp, tensor) on this many devices, beside `mesh.sequence` and `mesh.expert`.

        Raises:
          UserError: the mesh or `train.groups_per_step` do not fit them.
        """
        data, fsdp, tensor = self.mesh.sizes(devices)
        check_groups(self.train, data, fsdp, self.mesh.expert)
        return data, fsdp, tensor


def _has_required(cls: type) -> bool:
    return any(f.default is f.default_factory is dataclasses.MISSING for f in dataclasses.fields(cls))


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
    cross_check(source, config)
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
