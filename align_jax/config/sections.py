"""The sections of a training run that no module defines for itself: one frozen dataclass each, whose fields are its keys."""

from __future__ import annotations

import dataclasses
import re
from typing import Any, Literal

from omegaconf import OmegaConf

from align_jax.errors import UserError, check_fields, check_range
from align_jax.models.config import ModelConfig


def check_local(key: str, path: str | None) -> None:
    """UserError for the address of a bucket, which would become a local folder of that name."""
    if path is not None and "://" in path:
        raise UserError(f"{key}: {path} is no place of this machine; mount the bucket and name where (docs/pods.md)")


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """Where a run is kept, and its random numbers.

    Attributes:
      dir: folder of config.yaml, metrics.jsonl and checkpoints/; None is a folder in `runs/` for every run that differs in what
        decides its weights.
      seed: of everything random: fresh weights, the order of rows, samples.
      wait_s: seconds that a process waits at most for others to come, or to have read their data.
      stopped_status: exit status of `train` where SIGTERM ended it before its work was done, after it saved. 0, or 143 for
        launchers that take 0 for done and start again what fails (docs/pods.md).
    """

    dir: str | None = None
    seed: int = 0
    wait_s: float = 300.0
    stopped_status: int = 0

    def __post_init__(self):
        if self.dir is not None and not self.dir.strip():
            raise UserError(f"run.dir: {self.dir!r} is blank; an environment variable that is not set?")
        check_local("run.dir", self.dir)
        check_range("run.seed", self.seed, 0, 2**32, open_high=True)
        check_range("run.wait_s", self.wait_s, 0, 1e6, open_low=True)
        check_range("run.stopped_status", self.stopped_status, 0, 255)


@dataclasses.dataclass(frozen=True)
class ModelSection:
    """The starting model: a checkpoint, or a fresh one.

    Attributes:
      path: Hugging Face folder or hub id; `ID@REVISION` is a branch, tag or commit, here and wherever a model is named.
      revision: that of `path`, written apart.
      config: fields of `models.ModelConfig` for a fresh model, instead of `path`.
      tokenizer: folder or hub id; None is `path`.
      chat_template: file with a Jinja template, in place of the tokenizer's own; it is exported with the tokenizer.
      dtype: type of activations.
      param_dtype: type of the trained parameters; bfloat16 takes less memory, and is rounded at random after an update, since
        to the nearest most updates would be lost.
      quantize: keep the projections of all layers in few bits, int8 (0.6% off), int4 or nf4 (11% and 9%), with `lora` alone:
        they are not trained. The reference is the same model.
      attention: xla, pallas (TPU, also packed rows), splash (TPU), cudnn (GPU), or triton (GPU, also packed rows; it has never
        run on a card, and `auto` leaves it out); auto is what suits the devices and `data.pack`, or xla where that cannot
        compute this model, with a line that says why.
      remat: what the backward pass computes again: nothing, all but matrix products, or everything; `offload` keeps matrix
        products in host memory.
      rows_per_chunk: response rows of a device scored at once; auto is as many as its memory holds by an estimate
        (`mesh.memory_gib`), None is all.
      head_chunk: positions of a device whose logits exist at one time; auto is all where they fit by an estimate, since they
        are then computed once and not twice, else as many as fit; None is 1024.
      router_aux_weight: of the load-balancing loss of a mixture of experts, beside the objective's; 0 only measures it. It is
        taken of all layers at once, of the real tokens of a microbatch, as transformers does, and k (experts of a token) where
        all experts have as many.
    """

    path: str | None = None
    revision: str | None = None
    config: dict[str, Any] | None = None
    tokenizer: str | None = None
    chat_template: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    param_dtype: Literal["float32", "bfloat16"] = "float32"
    quantize: Literal["int8", "int4", "nf4"] | None = None
    attention: str = "auto"
    remat: Literal["none", "dots", "full", "offload"] = "none"
    rows_per_chunk: int | Literal["auto"] | None = "auto"
    head_chunk: int | Literal["auto"] | None = "auto"
    router_aux_weight: float = 0.0

    def __post_init__(self):
        if self.path is not None and self.config is not None:
            raise UserError(f"model.config: give model.path (here {self.path!r}) or model.config, not both")
        if self.revision is not None and (self.path is None or "@" in self.path or not self.revision.strip()):
            also = f"model.path: {self.path}" if self.path is not None else "a model without model.path"
            raise UserError(f"model.revision: {self.revision!r} does not go with {also}; it is of a hub id, which has none yet")
        if self.config is not None and "head" in self.config:
            raise UserError("model.config.head: the head follows from objective.name; leave it out")
        if self.config is not None and (key := next((key for key in ("quantize", "lora") if self.config.get(key)), None)):
            raise UserError(f"model.config.{key}: that is {dict(quantize='model.quantize', lora='the section lora')[key]} here")
        if self.rows_per_chunk != "auto":
            check_range("model.rows_per_chunk", self.rows_per_chunk, 1, hint="or auto")
        if self.head_chunk != "auto":
            check_range("model.head_chunk", self.head_chunk, 1, hint="or auto")
        check_range("model.router_aux_weight", self.router_aux_weight, 0)

    @property
    def at(self) -> str | None:
        """`path` with its revision."""
        return self.path if self.revision is None else f"{self.path}@{self.revision}"

    def fresh_config(self) -> ModelConfig:
        """`config` as a `ModelConfig`, its rope scaling too."""
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(ModelConfig), self.config))


@dataclasses.dataclass(frozen=True)
class ReferenceConfig:
    """The reference policy, whose log-probs are computed once and kept, or, where it is live, in every step.

    Attributes:
      path: Hugging Face folder, hub id or run folder; None is the starting model.
      adapter: folder of an adapter on top of the starting model without its own; with `lora` alone.
      live: keep its weights in memory beside the policy's, and compute its log-probs in the step: more memory and time for a
        step, and no pass before the first one. Needed by `sync_every`.
      sync_every: optimizer steps after which the reference moves to the policy (TR-DPO); None: it never does.
      quantize: keep the projections of its layers in few bits, int8 (0.6% off), int4 or nf4 (11% and 9%): those of a live
        reference then take 0.27 or 0.14 of float32's memory. Policy and reference differ from the first step on. With `lora`
        both are one model (model.quantize).
      mix: how far it moves: reference <- mix * policy + (1 - mix) * reference; 1 copies the policy.
      cache_dir: folder of its log-probs; None is `align_jax/reference` in the user's cache folder (`$XDG_CACHE_HOME`, or
        `~/.cache`). Each file is called by a hash of weights, rows, templates, lengths, types, JAX's version and the kind of
        device, so that nothing is used that would be another now; all of it may be deleted at any time.
    """

    path: str | None = None
    adapter: str | None = None
    cache_dir: str | None = None
    live: bool = False
    quantize: Literal["int8", "int4", "nf4"] | None = None
    sync_every: int | None = None
    mix: float = 1.0

    def __post_init__(self):
        check_range("reference.sync_every", self.sync_every, 1)
        check_range("reference.mix", self.mix, 0, 1, open_low=True)
        if self.sync_every is not None and not self.live:
            raise UserError(
                f"reference.sync_every: {self.sync_every} moves the reference's weights, which then are kept in memory; set "
                "reference.live: true"
            )
        if self.quantize is not None and self.sync_every is not None:
            raise UserError(
                f"reference.quantize: {self.quantize}: weights of few bits cannot move to the policy; leave it or "
                "reference.sync_every out"
            )
        if self.mix != 1 and self.sync_every is None:
            raise UserError(
                f"reference.mix: {self.mix} has no effect where the reference never moves; set reference.sync_every"
            )
        if self.path is not None and self.adapter is not None:
            raise UserError(f"reference.adapter: {self.adapter} is on top of the starting model; leave out reference.path")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each axis; at most one may be -1, the rest of the devices.

    Attributes:
      data: copies of the model, each with a part of the batch.
      fsdp: devices that share the batch and the weights, which are gathered layer by layer.
      tensor: devices that share the heads, the MLP and the vocabulary of each layer.
      sequence: devices that share the positions of each row, and the weights, too: for rows longer than one device holds. It is
        no -1, and not chosen by `auto`.
      expert: devices that share the experts of a mixture, and the batch and all other weights, as those of fsdp do; it divides
        the number of experts. It is no -1.
      auto: choose these, and with them `model.remat` and `train.accumulation_steps`, by what a step is
        predicted to take (docs/performance.md); written `mesh: auto`, too. A run that was begun keeps its choice.
      memory_gib: what a device may hold, for `model.rows_per_chunk` and `model.head_chunk: auto`; None is what there is.
    """

    data: int = 1
    fsdp: int = 1
    tensor: int = 1
    sequence: int = 1
    expert: int = 1
    auto: bool = False
    memory_gib: float | None = None

    def __post_init__(self):
        check_range("mesh.memory_gib", self.memory_gib, 0, open_low=True)
        check_fields("mesh", self, "sequence", "expert", low=1)
        sizes = {axis: getattr(self, axis) for axis in ("data", "fsdp", "tensor", "sequence", "expert")}
        if self.auto and (given := {axis: size for axis, size in sizes.items() if size != 1}):
            axis, size = next(iter(given.items()))
            raise UserError(f"mesh.auto: true chooses the sizes; leave out mesh.{axis}: {size}")
        rest = [axis for axis in ("data", "fsdp", "tensor") if getattr(self, axis) == -1]
        for axis in ("data", "fsdp", "tensor"):
            size = getattr(self, axis)
            if size != -1:
                check_range(f"mesh.{axis}", size, 1, hint="or -1 for the rest of the devices")
        if len(rest) > 1:
            raise UserError(f"mesh.{rest[1]}: only one axis may be -1, and mesh.{rest[0]} is")

    def sizes(self, devices: int) -> tuple[int, int, int]:
        """(data, fsdp, tensor) on this many devices, beside `sequence` and `expert`; UserError unless they divide."""
        sizes = [self.data, self.fsdp, self.tensor]
        product = abs(self.data * self.fsdp * self.tensor) * self.sequence * self.expert
        if devices % product if -1 in sizes else devices < product:
            cut = [axis for axis in ("sequence", "expert") if getattr(self, axis) > 1]
            names = " x ".join(("data", "fsdp", "tensor", *cut))
            written = " x ".join(str(size) for size in (*sizes, *(getattr(self, axis) for axis in cut)))
            raise UserError(f"mesh: {names} = {written} does not fit {devices} devices")
        data, fsdp, tensor = (devices // product if size == -1 else size for size in sizes)
        return data, fsdp, tensor


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Length and batch of a run.

    Attributes:
      steps: optimizer steps; or give `epochs`.
      epochs: passes over the training data; with neither it nor `steps`, one.
      groups_per_step: prompts of one optimizer step, over all devices and microbatches.
      accumulation_steps: microbatches of a step.
      eval_every: optimizer steps between evaluations; None evaluates before the first step and after the last one only.
      eval_first: evaluate before the first step, too, which later evaluations are told against.
      patience: end the run after so many evaluations in a row without a better `checkpoint.best_metric`; None never does.
      max_skipped: how many steps of a run may have a loss or gradient that is not finite: such a step changes nothing but the
        count of steps, its rows are kept in `skipped_rows.jsonl`, and one more ends the run; 0 ends it at the first.
    """

    steps: int | None = None
    epochs: float | None = None
    groups_per_step: int = 8
    accumulation_steps: int = 1
    eval_every: int | None = None
    eval_first: bool = True
    patience: int | None = None
    max_skipped: int = 0

    def __post_init__(self):
        check_fields("train", self, "steps", "groups_per_step", "accumulation_steps", "eval_every", "patience", low=1)
        check_fields("train", self, "max_skipped", low=0)
        check_fields("train", self, "epochs", low=0, open_low=True)
        if self.steps is not None and self.epochs is not None:
            raise UserError("train.epochs: give train.steps or train.epochs, not both")

    def total_steps(self, rows: int) -> int:
        """Optimizer steps of a run on this many rows: `steps`, or those of `epochs` passes over them."""
        if self.steps is not None:
            return self.steps
        return max(1, -(-int((1 if self.epochs is None else self.epochs) * rows) // self.groups_per_step))


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """When the state of a run is saved, and what is kept.

    A checkpoint is written at the end, and where SIGTERM or Ctrl-C stops the run, whatever these keys are.

    Attributes:
      every: optimizer steps between checkpoints; None saves by `minutes`, and at every evaluation where `best_metric` is one of
        these.
      minutes: minutes of training between checkpoints, also beside `every`; None saves none by the clock.
      max_age_s: the same in seconds: what a kill may cost; of `minutes` and it, the sooner one decides.
      keep: how many of the newest stay; where `every` is set, those of the clock go first.
      keep_every: steps that are multiples of it are saved, and stay, beside those of `keep`; None: no others stay.
      best_metric: a name in metrics.jsonl; the checkpoint where it was best stays, too. None: the newest only.
      best_mode: whether a small or a large value of `best_metric` is the better one; None: small for losses, distances, gaps
        and the KL, large for all others.
    """

    every: int | None = None
    minutes: float | None = 10.0
    max_age_s: float | None = None
    keep: int = 2
    keep_every: int | None = None
    best_metric: str | None = None
    best_mode: Literal["min", "max"] | None = None

    @property
    def mode(self) -> Literal["min", "max"]:
        """`best_mode`, or what fits `best_metric`."""
        small = re.search(
            r"loss|forgotten|distance|divergence|kl/|gap|norm|perplexity|error|time/|memory/", self.best_metric or "loss"
        )
        return self.best_mode or ("min" if small else "max")

    @property
    def seconds(self) -> float | None:
        """Of training between checkpoints by the clock; None: the clock does not count."""
        asked = (None if self.minutes is None else 60 * self.minutes, self.max_age_s)
        return min((seconds for seconds in asked if seconds is not None), default=None)

    def __post_init__(self):
        check_fields("checkpoint", self, "every", "keep", "keep_every", low=1)
        check_fields("checkpoint", self, "minutes", "max_age_s", low=0, open_low=True)
