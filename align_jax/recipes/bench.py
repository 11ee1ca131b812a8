"""What a training step costs: time, memory and operations, on data or on random tokens."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
import optax

from align_jax.batch import GroupBatch
from align_jax.config import Config
from align_jax.config.jobs import JOBS
from align_jax.cost import benchmark
from align_jax.cost.compilations import so_far
from align_jax.cost.flops import batch_flops
from align_jax.cost.kernels import expert_flops, kernel_flops
from align_jax.cost.length_data import LengthData, read_lengths
from align_jax.cost.parts import parts_of
from align_jax.data import DataConfig, GroupDataset
from align_jax.errors import UserError
from align_jax.models import init_weights, weight_shardings
from align_jax.objectives import name_of
from align_jax.parallel.mesh import data_shards, put_batch
from align_jax.recipes.say import compiling, say, say_once, speaking, watching
from align_jax.recipes.setup import Setup
from align_jax.training import optim
from align_jax.training.state import TrainState, create_state, state_shardings
from align_jax.training.step import compile_step

REQUIRED = JOBS["bench"].requires
POLICIES = ("none", "dots", "full")  # from the fewest operations to the most


def bench(config: Config, measured: Callable[[dict[str, Any]], None] | None = None) -> dict[str, Any]:
    """Measures the training step of a config, on `data.train` or on random tokens (`bench.lengths`, `bench.prompt_tokens`).

    Args:
      measured: is given all numbers but those of `bench.recommend`, before the programs for these are compiled.

    Returns:
      The numbers as JSON values, see `cost.benchmark.report`.

    Raises:
      UserError: neither data nor lengths, or lengths that do not fit the objective or the model's context.
    """
    config.require(*REQUIRED)
    with tempfile.TemporaryDirectory() as folder, speaking(config.log.quiet, config.log.progress):
        config = dataclasses.replace(with_data(config), run=dataclasses.replace(config.run, dir=folder))
        setup, before = Setup.of(config), so_far()
        with jax.set_mesh(setup.mesh):
            return _Bench.of(setup).measure(before, measured)


@dataclasses.dataclass(frozen=True)
class _Bench:
    """A setup with what its step takes: the optimizer, where the state lives, and batches."""

    setup: Setup
    optimizer: optax.GradientTransformation
    where: TrainState
    loader: Any
    batches: list[GroupBatch]

    @classmethod
    def of(cls, setup: Setup) -> _Bench:
        config = setup.config
        optimizer = optim.make_optimizer(config.optimizer, config.train.steps or 1000)
        how = {"live": setup.live}
        where = state_shardings(setup.source.shape, optimizer, setup.mesh, config.model.param_dtype, **how)
        return cls(setup, optimizer, where, *batches_of(setup))

    @property
    def devices(self) -> int:
        return int(self.setup.mesh.devices.size)

    def put(self, batch: GroupBatch) -> GroupBatch:
        return put_batch(batch, self.setup.mesh, leading=1)

    def state(self) -> TrainState:
        """A state with fresh weights: what a step costs does not depend on their values."""
        config, shape, mesh = self.setup.config, self.setup.source.shape, self.setup.mesh
        make = jax.jit(
            partial(init_weights, shape, param_dtype=config.model.param_dtype), out_shardings=weight_shardings(shape, mesh)
        )
        weights = make(jax.random.key(config.run.seed))
        live = self.setup.live
        reference = None if live is None else weights if live.quantize is None else self.setup.load(self.setup.reference)[0]
        return create_state(shape, weights, self.optimizer, mesh, config.model.param_dtype, reference=reference)

    def program(self, remat: str, state: TrainState, batch: GroupBatch) -> benchmark.CompiledStep:
        """The compiled step with a rematerialization policy."""
        scorer = dataclasses.replace(self.setup.scorer, remat=remat)
        config = self.setup.config
        horizon = optim.Horizon.of(config.optimizer, config.train.steps or 1000)  # as in training: one program, one cache
        parts = (self.setup.mesh, self.where, scorer, self.setup.objective, self.optimizer)
        step = compile_step(*parts, seed=config.run.seed, horizon=horizon, live=self.setup.live)
        self.setup.say_chunks(batch)
        with compiling(f"the training step (remat {remat}, {batch.tokens.shape[-2]} rows of {batch.tokens.shape[-1]})"):
            return benchmark.program(step, state, self.put(batch), self.devices)

    def measure(self, before: Any, measured: Callable[[dict[str, Any]], None] | None = None) -> dict[str, Any]:
        """All numbers; `before` is what was compiled so far. `measured`: see `bench`."""
        config, state = self.setup.config, self.state()
        shapes = benchmark.distinct(self.batches)
        programs = {key: self.program(self.setup.scorer.remat, state, batch) for key, batch in shapes.items()}
        spent = benchmark.compilations_since(before)
        with watching(f"timing {config.bench.steps} steps"):
            for key, batch in shapes.items():  # the first run of a program is not like the others
                state, metrics = programs[key].run(state, self.put(batch))
                jax.block_until_ready(metrics)
            state, timing = benchmark.time_steps(
                lambda host: programs[benchmark.shape_key(host)], state, self.loader, self.put, config.bench.steps
            )
        work = benchmark.Work.of(self.setup.source.shape, self.batches)
        peak = benchmark.device_peak(config.bench.peak_flops, config.model.dtype)
        values = benchmark.report(work, timing, list(programs.values()), spent, peak, self.devices)
        values |= {"attention": self.setup.backend, "packed": self.batches[0].packed} | self.parts(programs, shapes)
        if measured is not None:
            measured(values)
        if config.bench.recommend:
            biggest = max(programs, key=lambda key: programs[key].memory_bytes)
            values |= self.recommendation(state, shapes[biggest])
        return values

    def parts(self, programs: dict[Any, benchmark.CompiledStep], shapes: dict[Any, GroupBatch]) -> dict[str, Any]:
        """Where the operations of the largest program go; nothing on a device whose programs do not say what they do."""
        counted = {key: step.flops for key, step in programs.items() if step.flops is not None}
        if len(counted) < len(programs):
            return {}
        largest = max(counted, key=counted.get)
        batch, scorer = shapes[largest], dataclasses.replace(self.setup.scorer, attention=self.setup.backend)
        done = counted[largest] + kernel_flops(scorer, batch)
        if self.setup.mesh.devices.flat[0].platform == "tpu":
            done += expert_flops(scorer, batch)
        return {"flops_parts": parts_of(scorer, batch, batch_flops(scorer.config, batch), done).values()}

    def recommendation(self, state: TrainState, batch: GroupBatch) -> dict[str, Any]:
        """Memory of the step under every rematerialization policy, and the one to choose."""
        limit = benchmark.device_memory(self.setup.config.bench.memory_bytes)
        memory: dict[str, int | str] = {}
        for policy in POLICIES:
            try:
                memory[policy] = self.program(policy, state, batch).memory_bytes
            except jax.errors.JaxRuntimeError as error:
                if "RESOURCE_EXHAUSTED" not in str(error):
                    raise
                memory[policy] = "does not compile: out of memory"
        try:
            chosen: str | None = benchmark.recommend(memory, limit)
        except UserError as error:
            say(str(error))
            chosen = None
        now = self.setup.scorer.remat
        return {"remat_memory_bytes": memory, "memory_limit_bytes": limit, "remat": now, "remat_recommended": chosen}


def batches_of(setup: Setup) -> tuple[Any, list[GroupBatch]]:
    """What the timed steps take their batches from, and those batches."""
    config, bench = setup.config, setup.config.bench
    if bench.prompt_tokens is not None:
        batch = random_batch(setup)
        return benchmark.Repeated(batch), [batch]
    dataset = data_of(setup)
    loader = setup.loader(dataset)
    if config.objective.needs_reference and setup.live is None:  # its values cost nothing in a step: any will do
        loader.join({"ref_logps": np.zeros((len(dataset), dataset.slots), np.float32)})
    return loader, list(loader.preview(bench.steps))


def with_data(config: Config) -> Config:
    """The config with a `data` section, that of defaults where `bench.lengths` needs one and there is none."""
    return dataclasses.replace(config, data=DataConfig()) if config.data is None and config.bench.lengths else config


def data_of(setup: Setup) -> GroupDataset | LengthData:
    """The groups that are trained on: of `bench.lengths`, where that is given, else of `data.train`."""
    config, given = setup.config, setup.config.bench.lengths
    if given is not None:
        lengths = read_lengths(given, "bench.lengths")
        data = LengthData(lengths, config.data or DataConfig(), config.objective, setup.source.shape.vocab_size)
        say_once(f"bench.lengths: {given}: {data.describe()}")
        return data
    if config.data is None or config.data.train is None:
        raise UserError(
            "bench: give data.train, or, for random tokens, bench.lengths, or bench.prompt_tokens and bench.response_tokens"
        )
    return setup.dataset("train")


def random_batch(setup: Setup) -> GroupBatch:
    """A batch of `bench.groups` groups of random tokens for the config's objective."""
    config, bench, shape = setup.config, setup.config.bench, setup.source.shape
    name, arrangement = name_of(config.objective), config.objective.arrangement
    fixed = arrangement.responses
    responses = bench.responses or fixed or (config.data.max_responses if config.data else None) or 2
    if arrangement.random_labels(responses) is None:
        raise UserError(f"bench.prompt_tokens: random tokens are for set and pair objectives; bench {name} on its data")
    if fixed not in (None, responses):
        takes = "pairs" if fixed == 2 else f"{fixed} response slots"
        raise UserError(f"bench.responses: {responses}, but objective {name} takes {takes}")
    groups = bench.groups or config.train.groups_per_step
    parts = data_shards(setup.mesh) * config.train.accumulation_steps
    if groups % parts:
        raise UserError(f"bench.groups: {groups} is not a multiple of {parts} (accumulation_steps x data x fsdp)")
    if bench.prompt_tokens + bench.response_tokens > shape.max_length:
        raise UserError(
            f"bench.prompt_tokens: {bench.prompt_tokens} + {bench.response_tokens} tokens are more than the model's context "
            f"of {shape.max_length}"
        )

    def label(k: int) -> dict[str, np.ndarray]:
        reference = {"ref_logps": np.zeros(k, np.float32)} if config.objective.needs_reference and setup.live is None else {}
        return arrangement.random_labels(k) | reference

    return benchmark.random_batch(
        shape,
        label,
        groups=groups,
        responses=responses,
        prompt_tokens=bench.prompt_tokens,
        response_tokens=bench.response_tokens,
        shards=data_shards(setup.mesh),
        accumulation=config.train.accumulation_steps,
        seed=config.run.seed,
    )


def sweep(config: Config, responses: Sequence[int]) -> Iterator[dict[str, Any]]:
    """One measurement for every number of responses, with random tokens; `responses` is among its values.

    Raises:
      UserError: `bench.prompt_tokens` and `bench.response_tokens` are not given.
    """
    if config.bench.prompt_tokens is None:
        raise UserError("--sweep: give bench.prompt_tokens and bench.response_tokens; a sweep is on random tokens")
    for k in responses:
        one = dataclasses.replace(config, bench=dataclasses.replace(config.bench, responses=k, recommend=False))
        yield {"responses": k, **bench(one)}
