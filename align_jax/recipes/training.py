"""What a training run is made of before its first step: data, batches, reference, the state to begin or go on with."""

from __future__ import annotations

import dataclasses
import functools
import json
from typing import Any

import jax
import optax

from align_jax.config import Config
from align_jax.config.began import completed
from align_jax.data import BatchLoader, GroupDataset
from align_jax.errors import UserError
from align_jax.models.adapting import trained_paths, trained_weights
from align_jax.recipes.before import check_same_model, other_reference, other_rows, report_data, report_plan
from align_jax.recipes.recorded import KeepSkipped
from align_jax.recipes.reference_pass import microbatches
from align_jax.recipes.say import is_part, say, watching
from align_jax.recipes.setup import Setup
from align_jax.terminal import plural
from align_jax.training import optim
from align_jax.training.checkpoint import Checkpointer
from align_jax.training.saved import restore_state
from align_jax.training.skipped import SkippedSteps
from align_jax.training.state import TrainState, create_state, split, state_shapes, state_shardings


@dataclasses.dataclass(frozen=True)
class Training:
    """What a run is made of, before its first step.

    Attributes:
      dataset: `data.train`. loader: its batches, with the reference's log-probs. steps: of the whole run.
      optimizer: with its schedule. where: the shardings of the state.
    """

    setup: Setup
    dataset: GroupDataset
    loader: BatchLoader
    steps: int
    optimizer: optax.GradientTransformation
    where: TrainState

    @classmethod
    def of(cls, setup: Setup) -> Training:
        """Reads the data."""
        config = setup.config
        dataset = setup.dataset("train")
        report_data("train", dataset, setup.folder.path)
        steps = config.train.total_steps(len(dataset))
        report_plan(config, setup.source.shape, dataset, steps)
        loader = setup.loader(dataset)
        if dataset.without_contrast and config.objective.needs_contrast and not is_part():  # a round has no loss then
            raise UserError(
                f"data.train, {dataset.path}: none of the {plural(len(dataset), 'group')} has two different scores and texts, "
                "which the objective contrasts: there is nothing to learn"
            )
        with watching("choosing the shapes of batches"):
            _ = loader.train_layout
            cut = dataset.cut
        if cut:
            say(f"data.train: {cut}")
        if (adapter := trained_weights(setup.source.shape)) is not None:
            say(adapter)
        optimizer = optim.make_optimizer(config.optimizer, steps)
        how = {"live": setup.live}
        where = state_shardings(setup.source.shape, optimizer, setup.mesh, config.model.param_dtype, **how)
        return cls(setup, dataset, loader, steps, optimizer, where)

    def join_reference(self) -> None:
        """Computes the reference's log-probs, or reads them from the cache, where the objective needs them and none is live."""
        config, dataset, loader, live = self.setup.config, self.dataset, self.loader, self.setup.live
        if live is not None:
            moves = "" if live.sync_every is None else f", and moves every {plural(live.sync_every, 'step')} (mix {live.mix:g})"
            moves = moves if live.quantize is None else f", in {live.quantize}"
            say(f"reference: {self.setup.reference.describe()} is in memory beside the policy{moves}")
        elif config.objective.needs_reference:
            # The batches of the first epoch are the run's own, so at its first step policy and reference agree exactly.
            once = min(self.steps, -(-len(dataset) // config.train.groups_per_step))
            first = microbatches(loader.preview(once))
            loader.join(self.setup.reference_logps(dataset, loader.first_rows(once), first))

    @functools.cached_property
    def base(self) -> dict[str, Any] | None:
        """What a checkpoint says of the weights that it does not hold; None where all are trained."""
        if self.setup.source.shape.lora is None:
            return None
        return {"model": self.setup.source.describe(), "fingerprint": self.setup.source.fingerprint()}

    @functools.cached_property
    def compared_with(self) -> Any:
        """The content of the reference's files, which may change; None where it has none, or is in the state and moves."""
        if not self.setup.config.objective.needs_reference or self.live_moves:
            return None
        return json.loads(json.dumps(self.setup.reference.content()))

    @functools.cached_property
    def skips(self) -> SkippedSteps:
        """The steps that are left out, counted over all starts of the run."""
        most = self.setup.config.train.max_skipped
        return SkippedSteps(most, KeepSkipped(self.setup.folder.path, self.dataset, most))

    @property
    def live_moves(self) -> bool:
        """Whether the state has a reference that changes, and so is saved; another one is read again."""
        return self.setup.live is not None and self.setup.live.sync_every is not None

    def begin(self) -> TrainState:
        """The state before the first step."""
        setup, param_dtype, weights = self.setup, self.setup.config.model.param_dtype, self.setup.weights()
        reference = None
        if setup.live is not None:
            reference = weights if setup.reference is setup.source else self.live_reference()
        return create_state(setup.source.shape, weights, self.optimizer, setup.mesh, param_dtype, reference=reference)

    def live_reference(self) -> dict:
        """The weights of a reference that is not the starting model.

        Raises:
          UserError: an adapter is trained, and the reference has another model beneath, which would be a second one in memory.
        """
        setup = self.setup
        under, own = getattr(setup.reference, "under", None), getattr(setup.source, "under", None)
        same = under is own or (under is not None and under.shape == own.shape and under.fingerprint() == own.fingerprint())
        if setup.source.shape.lora is not None and not same:
            raise UserError(
                "reference.live: with `lora`, policy and reference share the model beneath, and "
                f"{setup.reference.describe()} has another one; leave reference.live out, or reference.path"
            )
        return setup.load(setup.reference)[0]

    def resume(self, checkpoints: Checkpointer, evaluated: dict[str, str]) -> TrainState | None:
        """The newest readable checkpoint's state, with the loader moved to where it was; None when there is none.

        Args:
          evaluated: what tells the rows of each evaluation set from others.

        Raises:
          UserError: the rows of `data.train` are not those that the run began with, so its place among them means nothing; or
            model, reference or config are not.
        """
        config, shape = self.setup.config, self.setup.source.shape
        if not checkpoints.agreed_steps():
            return None
        check_same_model(self.setup.folder, self.setup.source)
        shapes = state_shapes(
            shape, self.optimizer, config.model.param_dtype, live=self.setup.live if self.live_moves else None
        )
        where = self.where if self.live_moves else dataclasses.replace(self.where, reference={})
        abstract = jax.tree.map(lambda s, w: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=w), shapes, where)
        trained = trained_paths(shape)
        weights = None if trained is None else self.setup.weights()
        frozen = {} if weights is None else split(weights, trained)[1]
        found = restore_state(checkpoints, abstract, frozen)
        if found is None:
            return None
        state, extra = found
        self.setup.folder.check_written_here(extra.get("run"), int(state.step))
        if "config" in extra:  # the file beside the checkpoints may have been edited
            self.setup.folder.check_same(config, began=Config.of(completed(extra["config"])))
        if extra.get("rows", self.dataset.fingerprint) != self.dataset.fingerprint:
            raise UserError(other_rows(self.setup.folder, self.dataset, extra.get("groups")))
        if (extra.get("reference") or self.compared_with) != self.compared_with:
            raise UserError(other_reference(self.setup.folder, self.setup.reference.describe()))
        if self.setup.live is not None and not self.live_moves:
            start = self.setup.reference is self.setup.source and weights is not None
            own = weights if start else self.setup.load(self.setup.reference)[0] if trained is None else self.live_reference()
            state = dataclasses.replace(state, reference=split(own, trained)[0])
        self.loader.restore(extra["data"], extra.get("shapes"))
        self.skips.before = extra.get("skipped", 0)
        say(f"resumed from the checkpoint of step {int(state.step)}")
        if others := [key for key, rows in extra.get("evaluated", {}).items() if evaluated.get(key, rows) != rows]:
            say(
                f"{', '.join(others)}: these are other rows than those of the evaluations until now; what changed since is not "
                "of the training alone, and train.patience and checkpoint.best_metric compare across"
            )
        return state
