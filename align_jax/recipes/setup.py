"""What every job makes of its config first: mesh, model, encoder, scorer; and from them data sets, loaders, references."""

from __future__ import annotations

import dataclasses
import datetime
import functools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from align_jax.batch import GroupBatch
from align_jax.config import Config
from align_jax.cost.epoch import ShapeUse, epoch_steps, shapes_of
from align_jax.data import BatchLoader, DataConfig, Encoder, GroupDataset, RowLayout
from align_jax.data.opened import Opened, open_data
from align_jax.data.packing.lengths import padded_length
from align_jax.errors import UserError
from align_jax.models.attention import BackendChoice, choose_backend, takes_no_pieces, takes_packed
from align_jax.models.finite import not_finite, spelled
from align_jax.objectives import Objective
from align_jax.parallel.gpu_flags import gpu_flags_in_use
from align_jax.parallel.mesh import axis_sizes, data_shards, idle, make_mesh, shards_of_processes
from align_jax.parallel.processes import LargestAhead, largest_anywhere, of_first
from align_jax.parallel.tpu_flags import compiler_options
from align_jax.recipes.alike import agree_on, agree_on_model, agree_on_rows
from align_jax.recipes.auto_mesh import with_mesh
from align_jax.recipes.experts import check_experts
from align_jax.recipes.fits import check_batches_fit
from align_jax.recipes.folder import RunFolder
from align_jax.recipes.models import for_length, reference_model, starting_model
from align_jax.recipes.reference_pass import fill_reference
from align_jax.recipes.room import Room
from align_jax.recipes.row_layout import estimated, layout_for, usually_pays
from align_jax.recipes.say import say, say_once, watching
from align_jax.recipes.source import ModelSource
from align_jax.scoring.logps import HEAD_CHUNK
from align_jax.scoring.reference import Growing, cache_key, cache_of, cached, known
from align_jax.scoring.scorer import FixedScorer, Scorer
from align_jax.training.live import LiveReference

GPUS = ("gpu", "cuda", "rocm")
_PLANNED_STEPS = 16  # that `mesh: auto` looks at


@dataclasses.dataclass(frozen=True)
class Setup:
    """A config with the devices and the model that it means.

    Attributes:
      config: the whole config. mesh: the devices.
      source: the starting model; no weight of it is loaded yet.
    """

    config: Config
    mesh: Mesh
    source: ModelSource

    @classmethod
    def of(cls, config: Config, source: ModelSource | None = None) -> Setup:
        """The setup of a config on the devices that there are.

        Args:
          source: another model than the config's starting model.

        Raises:
          UserError: a mesh that does not fit the devices, or a model that cannot be read.
        """
        agree_on(config)
        config = on_its_day(config)
        if jax.default_backend() == "gpu":
            say_once(gpu_flags_in_use())
        source = for_length(starting_model(config) if source is None else source, sum(_cuts(config)))
        agree_on_model(source)
        if config.mesh.auto:
            trains = config.objective is not None and config.data is not None and config.data.train is not None
            config = with_mesh(config, source.shape, _use_of(source) if trains else None)
        mesh = make_mesh(*config.mesh_sizes(jax.device_count()), sequence=config.mesh.sequence, expert=config.mesh.expert)
        # Devices of a CPU share its cores: idle ones cost nothing.
        if (line := idle(mesh, jax.device_count())) and jax.default_backend() != "cpu":
            say_once(line)
        return cls(config, mesh, source)

    def with_data(self, data: DataConfig) -> Setup:
        """The same setup with another data section that makes the same tokens of a row."""
        other = dataclasses.replace(self, config=dataclasses.replace(self.config, data=data))
        known = ("encoder", "backend", "scorer", "_loaded", "room", "reference")
        vars(other).update({name: vars(self)[name] for name in known if name in vars(self)})
        return other

    @property
    def folder(self) -> RunFolder:
        """`run.dir`."""
        return RunFolder(Path(self.config.run.dir))

    @property
    def objective(self) -> Objective | None:
        """What is trained, if anything is."""
        return self.config.objective

    @functools.cached_property
    def backend(self) -> str:
        """The attention backend, decided once for data and model; says what `auto` takes where that may surprise, and why.

        Raises:
          UserError: the one that was asked for cannot run on these devices, or not this model.
        """
        model, platform = self.config.model, self.mesh.devices.flat[0].platform
        longest, pack = _longest(self.config), (self.config.data or DataConfig()).pack
        if (pieces := self.config.mesh.sequence) > 1:
            return self._backend_for_pieces(pieces, platform)

        def chosen(packed: bool) -> BackendChoice:
            return choose_backend(model.attention, model.dtype, platform, self.source.shape, longest, packed)

        choice = chosen(pack and platform not in GPUS)
        if model.attention == "auto" and pack and choice.backend == "cudnn" and self._packing_pays(longest):
            choice = chosen(True)
        if choice.reason:
            say_once(f"model.attention: auto takes xla here, which is slower: {choice.reason}")
        elif model.attention == "auto" and pack and takes_packed(choice.backend) and platform != "cpu":
            say_once(f"model.attention: auto takes {choice.backend}: rows hold several prompts and responses (data.pack)")
        return choice.backend

    def _backend_for_pieces(self, pieces: int, platform: str) -> str:
        """The backend for rows that are cut over `mesh.sequence` devices."""
        model, width, parts = self.config.model, self.source.shape.width, axis_sizes(self.mesh).get("fsdp", 1) * pieces
        if width % parts:
            raise UserError(
                f"mesh.sequence: {pieces} and mesh.fsdp: {parts // pieces} cut weights in {parts} parts, which do not divide "
                f"the model's width {width}: every device would hold them whole; choose sizes whose product divides {width}"
            )
        if model.attention != "auto" and (why := takes_no_pieces(model.attention, pieces)):
            raise UserError(f"model.attention: {why}")
        choice = choose_backend(model.attention, model.dtype, platform, self.source.shape, packed=True)
        if platform != "cpu":
            why = f": {choice.reason}" if choice.reason else ""
            say_once(f"model.attention: {choice.backend}, for rows that are cut over mesh.sequence: {pieces} devices{why}")
        return choice.backend

    @functools.cached_property
    def _loaded(self) -> list[Any]:
        """The first data set that batches were made of; empty before."""
        return []

    def _packing_pays(self, longest: int | None) -> bool:
        """Whether rows packed for XLA's attention are estimated to take less time on a GPU than single ones for cuDNN's."""
        if self.config.bench.prompt_tokens is not None:  # random tokens, one response a row
            return False
        if not self._loaded:
            return usually_pays(self.source.shape, longest)
        estimate = estimated(self.config, self.source.shape, self.mesh, self._loaded[0])
        ratio = estimate.packed / estimate.single
        say_once(
            f"model.attention: by an estimate from these lengths, rows packed for xla take {ratio:.2f} of the time of one "
            "response a row for cudnn (formulas, not measured on a card)"
        )
        return estimate.packing_pays

    @functools.cached_property
    def encoder(self) -> Encoder:
        """Texts to tokens, by the model's tokenizer and the `data` section."""
        return Encoder(self.source.tokenizer, self.config.data or DataConfig(), self.source.shape.vocab_size)

    @functools.cached_property
    def scorer(self) -> Scorer:
        """How responses are scored.

        Raises:
          UserError: keys for a mixture of experts that do not fit the model.
        """
        model = self.config.model
        check_experts(self.config, self.source.shape)
        return Scorer(
            self.source.shape,
            dtype=model.dtype,
            attention=self.backend,
            remat=model.remat,
            rows_per_chunk=model.rows_per_chunk,
            head_chunk=HEAD_CHUNK if model.head_chunk is None else model.head_chunk,
            memory=self.room.activations if "auto" in (model.rows_per_chunk, model.head_chunk) else None,
            tensor=axis_sizes(self.mesh).get("tensor", 1),
            sequence=self.config.mesh.sequence,
            expert=self.config.mesh.expert,
            router_aux_weight=model.router_aux_weight,
        )

    @functools.cached_property
    def room(self) -> Room:
        """What a device holds, and what training keeps there."""
        return Room.of(self.config, self.mesh, self.source.shape, self.live)

    def say_chunks(self, batch: GroupBatch) -> None:
        """Says so where `auto` does not take all rows of such a batch at a time, or not all logits, or none can fit."""
        for line in self.room.chunks(self.config.model, self.scorer, batch):
            say_once(line)

    def under(self, weights: dict) -> FixedScorer:
        """Scores of groups under some weights of the model's shape."""
        return FixedScorer(self.scorer, weights, self.mesh)

    def load(self, source: ModelSource) -> tuple[dict, int | None]:
        """The weights of a model on this mesh, in `model.param_dtype`, and the step of a checkpoint.

        Raises:
          UserError: they cannot be read, or are no numbers; names the tensors.
        """
        with watching(f"loading the weights of {source.describe()}"):
            weights, step = source.load(self.mesh, self.config.model.param_dtype)
            if bad := not_finite(weights):
                raise UserError(f"{source.describe()}: {spelled(bad)} of its weights hold NaN or infinite values; give another")
        return weights, step

    def weights(self) -> dict:
        """The starting model's weights on this mesh."""
        return self.load(self.source)[0]

    @functools.cached_property
    def reference(self) -> ModelSource:
        """The reference policy: `reference.path`, by default the starting model."""
        return reference_model(self.config, self.source)

    @property
    def live(self) -> LiveReference | None:
        """How the reference is kept in the state of training; None where its log-probs are a table, or none are needed."""
        reference = self.config.reference
        return (
            LiveReference(reference.sync_every, reference.mix, reference.quantize) if self.config.has_live_reference else None
        )

    def opened(self, which: str) -> Opened:
        """`data.train` or `data.eval`, opened."""
        opened = open_data(self.config.data, which, self.folder.path / "spool")
        for note in opened.source.notes:
            say_once(f"data.{which}: {note}")
        return opened

    def dataset(self, which: str, objective: Objective | None = None, opened: Opened | None = None) -> GroupDataset:
        """`data.train` or `data.eval`, arranged for the objective (by default the one that is trained)."""
        objective = objective or self.objective
        opened = opened or self.opened(which)
        with watching(f"reading data.{which}"):
            dataset = GroupDataset(
                self.config.data,
                which,
                self.encoder,
                arrangement=objective.arrangement,
                seed=self.config.run.seed,
                ends=objective.head == "score",
                spool_dir=self.folder.path / "spool",
                opened=opened,
            )
        agree_on_rows(which, dataset)
        return dataset

    @property
    def layout(self) -> RowLayout:
        """How rows are filled: packed where the backend takes that; and what a further shape must save."""
        return layout_for(self.config, self.source.shape, self.mesh, self.backend)

    def loader(self, dataset: Any, passes: int | None = None) -> BatchLoader:
        """Batches of a data set for this mesh and this process.

        Args:
          passes: how often all of it will be scored; None: it is trained on, as the `train` section says.
        """
        if not self._loaded:
            self._loaded.append(dataset)
        check_batches_fit(self.config, dataset)
        config, processes, own = self.config, jax.process_count(), tuple(range(data_shards(self.mesh)))
        readers = [own]
        if processes > 1:
            held = shards_of_processes(self.mesh, processes)
            own, readers = held[jax.process_index()], sorted(set(held.values()))
        once = -(-len(dataset) // config.train.groups_per_step)
        return BatchLoader(
            dataset,
            shards=len(own),
            groups_per_step=config.train.groups_per_step,
            accumulation_steps=config.train.accumulation_steps,
            seed=config.run.seed,
            shuffle=config.data.shuffle,
            layout=self.layout,
            batches=config.train.total_steps(len(dataset)) if passes is None else once * passes,
            workers=config.data.workers,
            prefetch=config.data.prefetch,
            process_index=readers.index(own),
            process_count=len(readers),
            shard_numbers=own,
            agree=largest_anywhere if processes > 1 else None,
            agree_ahead=LargestAhead if processes > 1 else None,
        )

    def reference_logps(
        self, dataset: GroupDataset, needed: np.ndarray, batches: Iterable[GroupBatch]
    ) -> dict[str, np.ndarray]:
        """`{"ref_logps": [rows, K]}` with at least the needed rows known (NaN elsewhere), from the cache or computed now.

        Args:
          needed: int row numbers. batches: host batches that together hold them.
        """
        config, reference, shape = self.config, self.reference, self.source.shape
        key = cache_key(
            version=2,
            model=reference.fingerprint(),
            shape=shape.fields(),
            data=dataset.fingerprint,
            dtype=self.scorer.dtype,
            param_dtype=config.model.param_dtype,
            # Others round differently, and at step one policy and reference are to agree exactly.
            program=(
                jax.__version__,
                self.mesh.devices.flat[0].platform,
                *([self.backend] if self.backend in ("pallas", "triton") else []),
                *(["sequence"] if self.config.mesh.sequence > 1 else []),
                *(["compiler options"] if compiler_options(self.mesh) else []),
            ),
        )
        cache = cache_of(key, dataset.path, config.reference.cache_dir, self.folder.path)
        if cache.note:
            say_once(cache.note)

        def compute(table: Growing) -> None:
            if there := int(known(table.values)[needed].sum()):
                say(f"reference log-probs: {there} of {len(needed)} rows are there already, from {cache.file}")
            fill_reference(table, needed, self.under(self.load(reference)[0]), batches)

        values, found = cached(cache, (len(dataset), dataset.slots), needed, compute)
        said = f"computed and stored in {cache.file}" if found is None else f"reused from {found}"
        say(f"reference log-probs {said}")
        return {"ref_logps": values}


def _use_of(source: ModelSource) -> Callable[[Config, Mesh], ShapeUse]:
    """For `auto_mesh.ranked`: the shape that computes most of the first steps on `data.train`, which is read once."""
    datasets: list[GroupDataset] = []

    def use(config: Config, mesh: Mesh) -> ShapeUse:
        setup = Setup(config, mesh, source)
        if not datasets:
            datasets.append(setup.dataset("train"))
        loader, steps = setup.loader(datasets[0]), config.train.total_steps(len(datasets[0]))
        return shapes_of(epoch_steps(loader, datasets[0], source.shape, min(_PLANNED_STEPS, steps)))[0]

    return use


def on_its_day(config: Config) -> Config:
    """The config with `data.date`: as given, else that of the run in `run.dir`, else today, the same on every process."""
    if config.data is None or config.data.date is not None:
        return config
    folder = RunFolder(Path(config.run.dir)).newest if config.run.dir else None
    stored = folder.config.data if folder is not None and folder.is_run else None
    known = stored is not None and stored.date is not None
    day = datetime.date.fromisoformat(stored.date) if known else datetime.date.today()
    # Always asked of the first: its disk alone may hold the run.
    agreed = datetime.date.fromordinal(of_first(day.toordinal())).isoformat()
    return dataclasses.replace(config, data=dataclasses.replace(config.data, date=agreed))


def _longest(config: Config) -> int | None:
    """Tokens of the longest prompt row and response row together, with their padding; None: any number."""
    return padded_length(*_cuts(config))


def _cuts(config: Config) -> tuple[int, int]:
    """Tokens of the longest prompt, and of what may stand behind it."""
    data, bench = config.data or DataConfig(), config.bench
    prompt = max(data.max_prompt_tokens, bench.prompt_tokens or 0)
    response = max(data.max_response_tokens, config.evaluate.max_new_tokens, bench.response_tokens or 0) + 1
    if config.objective is not None and config.objective.arrangement.has_beliefs:
        response *= 2  # a text stands behind its belief
    return prompt, response
