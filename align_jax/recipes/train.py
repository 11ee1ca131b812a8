"""`align-jax train CONFIG.yaml [--section.key value ...]`."""

from __future__ import annotations

import collections
import itertools
from pathlib import Path

import jax

from align_jax.config import Config, load_config, parse_overrides
from align_jax.cost.compilations import so_far
from align_jax.data import Encoder, GroupDataset
from align_jax.errors import UserError
from align_jax.parallel.mesh import put_batch
from align_jax.parallel.stop import StopSignal
from align_jax.recipes import setup as assemble
from align_jax.recipes.evaluation import in_training_evaluation, reference_table, report_data
from align_jax.recipes.folder import prepare_folder, say
from align_jax.training import optim
from align_jax.training.checkpoint import Checkpointer
from align_jax.training.fit import Hooks, Plan, run
from align_jax.training.logs import MetricsLog
from align_jax.training.saved import restore_state, save_state
from align_jax.training.state import TrainState, create_state, state_shapes, state_shardings
from align_jax.training.step import compile_step

REQUIRED = ("run.dir", "model", "data", "data.train", "objective", "optimizer", "train")


def main(argv: list[str]) -> int:
    """Trains, or resumes; returns 0 also when SIGTERM ended the run after a checkpoint."""
    if not argv or argv[0].startswith("--"):
        raise UserError("give a config: align-jax train CONFIG.yaml [--section.key value ...]")
    config = load_config(argv[0], parse_overrides(argv[1:]), require=REQUIRED)
    with StopSignal() as stop:
        if config.rounds is not None:
            from align_jax.recipes.rounds import run_rounds

            run_rounds(config, stop)
        else:
            train(config, stop)
    return 0


def train(config: Config, stop: StopSignal) -> bool:
    """One run from its config to its last checkpoint; False when `stop` ended it before its last step."""
    folder, before = Path(config.run.dir), so_far()
    mesh, start = assemble.mesh_of(config), assemble.start_of(config)
    tokenizer = assemble.tokenizer_of(config)
    prepare_folder(folder, config, start, tokenizer)
    encoder = Encoder(tokenizer, config.data, start.config.vocab_size)
    scorer = assemble.scorer_of(start, config)
    check_best_metric(config)
    with jax.set_mesh(mesh):
        dataset = assemble.dataset_of(config, "train", encoder, config.objective, folder / "spool")
        report_data("train", dataset, folder)
        report_context(dataset, start.config.max_length)
        steps = total_steps(config, len(dataset))
        optimizer = optim.make_optimizer(config.optimizer, steps)
        with Checkpointer(
            folder / "checkpoints", config.checkpoint.keep, config.checkpoint.best_metric, config.checkpoint.best_mode
        ) as checkpoints:
            labels = reference_labels(config, start, dataset, steps, scorer, mesh)
            loader = assemble.loader_of(config, dataset, mesh, labels=labels)
            where = state_shardings(start.config, optimizer, mesh, config.model.param_dtype)
            state = resume(checkpoints, start, optimizer, where, config, loader, dataset)
            measure = in_training_evaluation(config, start, encoder, scorer, mesh, folder)
            if state is None:
                params = assemble.weights_of(start, config, mesh)
                state = create_state(start.config, params, optimizer, mesh, config.model.param_dtype)
            begun = int(state.step)
            if begun >= steps:
                say(f"{folder} is complete: step {begun} of {steps}")
                return True
            step = compile_step(mesh, where, scorer, config.objective, optimizer, config.run.seed)
            schedule = optim.make_schedule(config.optimizer, steps)
            with MetricsLog(
                folder,
                total_steps=steps,
                resume_step=begun or None,
                every=config.log.every,
                progress=config.log.progress,
                tensorboard=config.log.tensorboard,
                wandb_project=config.log.wandb_project,
                wandb_name=config.log.wandb_name,
                config=config.to_dict(),
                active=jax.process_index() == 0,
            ) as log:
                cut = collections.Counter()

                def record(n: int, metrics: dict[str, float]) -> None:
                    check_known(config.checkpoint.best_metric, metrics, n)
                    cut.update({kind: metrics.get(f"tokens/truncated_{kind}", 0) for kind in ("prompts", "responses")})
                    spent = so_far() - before
                    compiled = {"time/compile_seconds": spent.seconds, "time/compilations": float(spent.compiled)}
                    rate = {"learning_rate": float(schedule(n - 1))} if n else {}
                    log.log(n, metrics | compiled | rate)

                rows = {"rows": dataset.fingerprint}
                hooks = Hooks(
                    put=lambda batch: put_batch(batch, mesh, leading=1),
                    step=step,
                    log=record,
                    evaluate=measure,
                    save=lambda n, s, position, m: save_state(checkpoints, n, s, {"data": position, **rows}, m),
                    last_saved=checkpoints.latest_step,
                    where=dataset.where,
                )
                plan = Plan(steps, config.checkpoint.every or steps, config.train.eval_every)
                state, finished = run(state, loader, plan, hooks, stop)
            checkpoints.wait()
    done, spent = int(state.step), so_far() - before
    say(f"compiled {spent.compiled} programs, {spent.cached} more came from the cache: {spent.seconds:.1f} s in all")
    if any(cut.values()):
        lengths = f"{config.data.max_prompt_tokens} and {config.data.max_response_tokens} tokens"
        say(f"cut to {lengths}: {cut['prompts']:.0f} prompts and {cut['responses']:.0f} responses of this run's batches")
    if finished:
        say(f"trained to step {done}; export with: align-jax export {folder} OUT_DIR")
    else:
        say(f"stopped by SIGTERM after step {done} of {steps}; checkpoint saved, the same command resumes")
    return finished


def check_best_metric(config: Config) -> None:
    """UserError where `checkpoint.best_metric` is an evaluation that no checkpoint would have."""
    metric, every = config.checkpoint.best_metric, config.train.eval_every
    if metric is None or not metric.startswith("eval/"):
        return
    if config.data.eval is None or every is None or (config.checkpoint.every or every) % every:
        raise UserError(
            f"checkpoint.best_metric: {metric!r} is measured every train.eval_every={every} steps on data.eval="
            f"{config.data.eval!r}; set both, and checkpoint.every to a multiple of train.eval_every"
        )


def report_context(dataset: GroupDataset, context: int) -> None:
    """Says where texts are longer than the model's context, at whose positions beyond it was never trained."""
    if sum(dataset.limits) < context:
        return
    longest = max(1 + size.prompt + max(unit.size for unit in size.units) for size in dataset.sizes)
    if longest > context:
        say(
            f"data.train: prompts with their responses have up to {longest} tokens, more than the model's context of "
            f"{context}; lower data.max_prompt_tokens and data.max_response_tokens, unless this is meant"
        )


def check_known(best_metric: str | None, metrics: dict[str, float], step: int) -> None:
    """UserError at the first metrics that should hold `checkpoint.best_metric` and do not."""
    if best_metric is None or best_metric in metrics:
        return
    kind = [name for name in metrics if name.startswith("eval/") == best_metric.startswith("eval/")]
    if kind and (step or best_metric.startswith("eval/")):
        raise UserError(f"checkpoint.best_metric: there is no metric {best_metric!r}; there are {', '.join(sorted(kind))}")


def total_steps(config: Config, rows: int) -> int:
    """Optimizer steps of the run: `train.steps`, or those of `train.epochs` passes over the rows."""
    if config.train.steps is not None:
        return config.train.steps
    return max(1, -(-int(config.train.epochs * rows) // config.train.groups_per_step))


def reference_labels(config: Config, start, dataset: GroupDataset, steps: int, scorer, mesh) -> dict:
    """`{"ref_logps": [rows, K]}` for the rows of a run, or nothing for an objective without a reference."""
    if not config.objective.needs_reference:
        return {}
    loader = assemble.loader_of(config, dataset, mesh)
    # The batches of the first epoch are the run's own, so at its first step policy and reference agree exactly.
    once = min(steps, -(-len(dataset) // config.train.groups_per_step))
    batches = assemble.microbatches(itertools.islice(loader, once))
    return reference_table(config, start, dataset, loader.first_rows(once), batches, scorer, mesh)


def resume(
    checkpoints: Checkpointer, start, optimizer, where: TrainState, config: Config, loader, dataset: GroupDataset
) -> TrainState | None:
    """The newest readable checkpoint's state, with the loader moved to where it was; None when there is none.

    Raises:
      UserError: the rows of `data.train` are not those that the run began with, so its place among them means nothing.
    """
    shapes = state_shapes(start.config, optimizer, config.model.param_dtype)
    abstract = jax.tree.map(lambda s, w: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=w), shapes, where)
    found = restore_state(checkpoints, abstract)
    if found is None:
        return None
    state, extra = found
    if extra.get("rows", dataset.fingerprint) != dataset.fingerprint:
        raise UserError(
            f"data.train: {dataset.path} holds other rows than when the run in {config.run.dir} began, or they become other "
            "tokens; put rows and tokenizer back to resume it, or choose another run.dir"
        )
    loader.restore(extra["data"])
    say(f"resumed from the checkpoint of step {int(state.step)}")
    return state
