"""Compilation of a training step for a TPU that is not there, and what an epoch of it would take."""

from __future__ import annotations

import dataclasses
import tempfile
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from align_jax.config import Config
from align_jax.config.jobs import JOBS
from align_jax.cost import topology, topology_report
from align_jax.cost.advice import advice
from align_jax.cost.benchmark import shape_key
from align_jax.cost.chips import chip_of
from align_jax.cost.epoch import ShapeUse, chosen, epoch_steps, shapes_of
from align_jax.cost.estimate import CompiledShape, EpochEstimate
from align_jax.cost.length_data import LengthData, read_lengths
from align_jax.cost.plan import MeshPlan, PlanEstimate
from align_jax.data import DataConfig
from align_jax.errors import UserError
from align_jax.models.known import known_model
from align_jax.objectives import name_of
from align_jax.parallel.mesh import axis_sizes, idle, make_mesh
from align_jax.recipes import auto_mesh
from align_jax.recipes.models import starting_model
from align_jax.recipes.say import say, speaking
from align_jax.recipes.setup import Setup
from align_jax.recipes.source import ModelSource
from align_jax.terminal import Watch
from align_jax.training import optim

REQUIRED = JOBS["compile"].requires
_STEPS = 64  # that stand for all
_RUN = 500  # steps of a run on lengths, whose number says nothing of that of the data


@dataclasses.dataclass(frozen=True)
class CompileRequest:
    """What is compiled for.

    Attributes:
      topology: such as `v5e:4x4` or `v5p:4x4x4`. slices: how many of them, joined by the data center's network.
      lengths: a file of token counts, or the name of one that comes with the package.
      rows: full rows of these lengths, in place of what any data would give.
      model: the name of a known shape, in place of the config's model.
      shapes: how many of the epoch's shapes are compiled. candidates: with `mesh: auto`, how many of the best meshes are.
    """

    topology: str
    slices: int = 1
    lengths: str | None = None
    rows: topology.Lengths | None = None
    model: str | None = None
    shapes: int = 2
    candidates: int = 2

    def __post_init__(self):
        if self.lengths is not None and self.rows is not None:
            raise UserError(
                f"--lengths {self.lengths}: give it or --prompt-tokens, --response-tokens and --responses (full rows), not both"
            )
        for name in ("shapes", "candidates"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name}: {getattr(self, name)} is not a positive number")


def compile_step(config: Config, asked: CompileRequest) -> dict[str, Any]:
    """Compiles the training step of a config for a TPU topology: what a chip holds and does, and what an epoch takes.

    Args:
      config: with the mesh. Its own data decide the shapes, unless `asked` has lengths or full rows.
      asked: the topology, and what takes the place of the config's model and data.

    Returns:
      The numbers, see `topology_report.report`; also `topology`, `slices`, and `lengths`, a line about where they are from.

    Raises:
      UserError: an unknown topology, a mesh or batch that does not fit it, or a step that needs more memory than there is.
    """
    config = with_model(config, asked.model)
    config.require(*REQUIRED)
    devices = topology.topology_devices(asked.topology, asked.slices)
    with tempfile.TemporaryDirectory() as folder, speaking(config.log.quiet, config.log.progress):
        config = dataclasses.replace(config, run=dataclasses.replace(config.run, dir=folder))
        source = starting_model(config)
        auto = AutoMesh(source, devices, asked).chosen(config) if config.mesh.auto else None
        config = config if auto is None else auto.config
        mesh = make_mesh(
            *config.mesh_sizes(len(devices)), devices=devices, sequence=config.mesh.sequence, expert=config.mesh.expert
        )
        if line := idle(mesh, len(devices)):
            say(line)
        topology.check_groups(config.train.groups_per_step, config.train.accumulation_steps, mesh)
        setup = Setup(config, mesh, source)
        uses, lengths = shapes_for(setup, asked)
        known = () if auto is None else (auto.shape,)
        estimate = EpochEstimate(tuple(uses), tuple(compiled(setup, chosen(uses, asked.shapes), asked.topology, known)))
    advised = advice(
        estimate,
        remat=config.model.remat,
        accumulation=config.train.accumulation_steps,
        packed=uses[0].batch.packed,
        attention=setup.scorer.attention,
        fsdp=axis_sizes(mesh)["fsdp"],
        expert=config.mesh.expert,
    )
    values = topology_report.report(estimate, axis_sizes(mesh), setup.scorer, advised)
    more = {} if auto is None else {"auto": auto.rows}
    return {"topology": asked.topology, "slices": asked.slices, "lengths": lengths, **values, **more}


@dataclasses.dataclass(frozen=True)
class ChosenMesh:
    """What was chosen.

    Attributes:
      config: with the plan. shape: the first of its shapes that are compiled, see `epoch.chosen`.
      rows: the choice and its runners-up as JSON values, best first: each by formula, and as compiled where it was.
    """

    config: Config
    shape: CompiledShape
    rows: list[dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class AutoMesh:
    """`mesh: auto` for a topology: plans by formula, and the best of them compiled."""

    source: ModelSource
    devices: list[jax.Device]
    asked: CompileRequest

    def chosen(self, config: Config) -> ChosenMesh:
        """The plan that is predicted to take least among those compiled.

        Raises:
          UserError: none of those compiled fits.
        """
        found = auto_mesh.ranked(config, self.source.shape, self.devices, self._use)
        found = found[: max(auto_mesh.SHOWN, self.asked.candidates)]
        say("mesh: auto, by formula:")
        for line in auto_mesh.shown(found, chip_of(self.devices[0].device_kind).memory).splitlines():
            say(line)
        tried, fitting = [], []
        for each in found:  # formulas of memory are rough: where those asked for do not fit, the next ones are tried
            if len(tried) >= self.asked.candidates and fitting:
                break
            tried.append((each, self._compiled(config, each.plan)))
            fitting += [pair for pair in tried[-1:] if pair[1] is not None and pair[1].fits]
        if not fitting:
            raise UserError(f"mesh: auto: none of the {len(tried)} best meshes fits when compiled; raise --candidates")
        best = min(fitting, key=lambda pair: pair[1].seconds.serial + pair[1].seconds.bound)
        say(f"mesh: auto: {best[0].plan}")
        for line in auto_mesh.replaced(config, best[0].plan):
            say(line)
        rest = [pair for pair in tried if pair[0] is not best[0]] + [(each, None) for each in found[len(tried) :]]
        return ChosenMesh(auto_mesh.planned(config, best[0].plan), best[1], [_row(*pair) for pair in [best, *rest]])

    def _use(self, config: Config, mesh: Mesh) -> ShapeUse:
        return shapes_for(Setup(config, mesh, self.source), self.asked)[0][0]

    def _compiled(self, config: Config, plan: MeshPlan) -> CompiledShape | None:
        """The shape that is compiled first as it is with a plan; None where it does not fit."""
        mesh = make_mesh(plan.data, plan.fsdp, plan.tensor, self.devices, expert=plan.expert)
        setup = Setup(auto_mesh.planned(config, plan), mesh, self.source)
        try:
            uses, _ = shapes_for(setup, self.asked)
            return compiled(setup, chosen(uses, self.asked.shapes)[:1], f"{self.asked.topology}, {plan}")[0]
        except topology.DoesNotFit as error:
            say(f"mesh: auto: {plan}: {error}")
            return None


def _row(each: PlanEstimate, shape: CompiledShape | None) -> dict[str, Any]:
    """A plan as JSON values, by formula and as compiled."""
    by = lambda seconds, memory: {  # noqa: E731
        "serial_seconds": seconds.serial,
        "overlapped_seconds": seconds.overlapped,
        "memory_bytes": round(memory),
    }
    as_compiled = None if shape is None else {**by(shape.seconds, shape.memory.total), "fits": shape.fits}
    return {**dataclasses.asdict(each.plan), **by(each.seconds, each.memory), "compiled": as_compiled}


def with_model(config: Config, name: str | None) -> Config:
    """The config with a known shape in place of its model's, whose tokenizer it keeps; itself where there is no name."""
    if name is None:
        return config
    shape = dataclasses.asdict(known_model(name))
    del shape["head"]  # the objective's
    model = dataclasses.replace(
        config.model, path=None, revision=None, config=shape, tokenizer=config.model.tokenizer or config.model.at
    )
    return dataclasses.replace(config, model=model)


def shapes_for(setup: Setup, asked: CompileRequest) -> tuple[list[ShapeUse], str]:
    """The shapes of an epoch, and where the lengths are from: a file, full rows, or the config's own data."""
    config, model = setup.config, setup.source.shape
    rows = asked.rows
    if rows is None and asked.lengths is None and (config.data is None or config.data.train is None):
        rows = lengths_of(config)
    if rows is not None:
        groups, accumulation = config.train.groups_per_step, config.train.accumulation_steps
        use = topology.full_rows(config.objective, rows, setup.mesh, groups, accumulation, model)
        return [use], f"full rows: prompts of {rows.prompt}, {rows.responses} responses of {rows.response}"
    dataset, each = _dataset(setup, asked.lengths), config.train.groups_per_step
    on_lengths = asked.lengths is not None and config.train.steps is None
    loader = setup.loader(dataset, passes=-(-_RUN * each // len(dataset)) if on_lengths else None)
    if config.objective.needs_reference:
        loader.join({"ref_logps": np.zeros((len(dataset), dataset.slots), np.float32)})
    most = _STEPS if on_lengths else min(_STEPS, config.train.total_steps(len(dataset)))
    uses = shapes_of(epoch_steps(loader, dataset, model, most))
    source = f"data.train: {dataset.path}" if asked.lengths is None else f"{asked.lengths}: {dataset.describe()}"
    return uses, f"{source}; {most} steps of {each}"


def _dataset(setup: Setup, lengths: str | None) -> Any:
    config = setup.config
    if lengths is not None:
        return LengthData(read_lengths(lengths), config.data or DataConfig(), config.objective)
    try:
        return setup.dataset("train")
    except UserError as error:
        raise UserError(f"{error} (compile needs no data with --lengths ultrafeedback, or a file of token counts)") from error


def compiled(setup: Setup, uses: list[ShapeUse], name: str, known: tuple[CompiledShape, ...] = ()) -> list[CompiledShape]:
    """The step compiled for each of these shapes.

    Args:
      name: of the topology. known: shapes that were compiled by the same setup already.
    """
    config, found = setup.config, []
    before = {shape_key(shape.use.batch): shape for shape in known}
    optimizer = optim.make_optimizer(config.optimizer, config.train.steps or 1000)
    what = topology.StepCompiler(
        setup.mesh, topology.resolved(setup.scorer), config.objective, optimizer, config.model.param_dtype, setup.live
    )
    for number, use in enumerate(uses, start=1):
        if (shape := before.get(shape_key(use.batch))) is not None:
            found.append(dataclasses.replace(shape, use=use))
            continue
        if len(uses) > 1:
            say(f"shape {number} of {len(uses)}: {use.describe()}")
        # Not `watching`, which asks JAX for this machine's devices: there may be none.
        with Watch(f"compiling the training step for {name}", show=config.log.progress and not config.log.quiet, at_once=True):
            found.append(what.compile(use))
    return found


def lengths_of(config: Config, prompt: int | None = None, response: int | None = None, responses: int | None = None):
    """The lengths of full rows: those given, else those of the `data` section, else 512, 512 and 4.

    Args:
      prompt, response: tokens. responses: of a prompt; pairs and single responses decide that themselves.
    """
    data, fixed = config.data, config.objective.arrangement.responses
    given = {"prompt": prompt, "response": response, "responses": responses}
    for name, value in given.items():
        if value is not None and value < 1:
            raise UserError(f"compile: {name} tokens or responses must be positive, got {value}")
    keys = {"prompt": "max_prompt_tokens", "response": "max_response_tokens", "responses": "max_responses"}
    found = {name: getattr(data, key, None) if given[name] is None else given[name] for name, key in keys.items()}
    found["responses"] = fixed or found["responses"]
    lengths = dataclasses.replace(topology.Lengths(), **{name: value for name, value in found.items() if value is not None})
    options = {"prompt": "--prompt-tokens", "response": "--response-tokens", "responses": "--responses"}
    rest = [f"{option} {getattr(lengths, name)}" for name, option in options.items() if given[name] is None]
    with speaking(config.log.quiet):
        if 0 < len(rest) < len(given):
            say(f"full rows: not given, so as the objective or the data section says, or by default: {', '.join(rest)}")
        if fixed and responses not in (None, fixed):
            say(f"--responses {responses}: objective.name: {name_of(config.objective)} takes {fixed}, and so these rows have")
    return lengths
