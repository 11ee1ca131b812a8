"""A training step beside PyTorch's: the same weights, batches, losses and optimizer, taking turns in one run.

    python tools/compare_torch.py configs/bench-cpu.yaml [--steps 5] [--json] [--section.key value ...]

Sides: align_jax; plain PyTorch + transformers (the whole conversation of every response in one padded batch, attention by
`scaled_dot_product_attention`, the head on response positions only; on a GPU where `flash_attn` is installed and the type is
bfloat16 or float16, FlashAttention over all conversations one after the other, without padding); and, for objective dpo
where `trl` is installed, TRL's DPOTrainer (its own collator and training step, its reference log-probs computed before). Each
step of each side is followed by one of the next, and who begins changes; the first is not counted. "ours / theirs" is how many
times as fast ours is: the median of the steps' ratios, with its 95% interval by order statistics (6 steps or more), and that
of all seconds. With `bench.prompt_tokens` the batch is random tokens of one length, with `bench.lengths` random tokens of real
lengths, else it is `data.train`: every side then tokenizes and batches inside its time.

The run fails where losses differ by more than `--tolerance`, relative to 1 + their size.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch needs some of the card too

import jax
import numpy as np
import torch
from scipy.stats import quantile_test
from tabulate import tabulate
from transformers import AutoModelForCausalLM
from transformers.utils import is_flash_attn_2_available

import align_jax
from align_jax.batch import GroupBatch, useful_tokens
from align_jax.config import Config, load_config, parse_overrides
from align_jax.cost import benchmark
from align_jax.data import BatchLoader, ahead
from align_jax.models import Decoder, init_weights, weight_shardings
from align_jax.parallel.distributed import prepare_process
from align_jax.parallel.mesh import put_batch
from align_jax.recipes.bench import REQUIRED, data_of, random_batch, with_data
from align_jax.recipes.setup import Setup
from align_jax.training import optim
from align_jax.training.state import create_state, state_shardings
from align_jax.training.step import compile_step


@dataclasses.dataclass(frozen=True)
class Group:
    """One prompt: its tokens, those of its responses, their scores and reference log-probs."""

    prompt: list[int]
    responses: list[list[int]]
    scores: np.ndarray
    ref_logps: np.ndarray


@dataclasses.dataclass
class Job:
    """What all sides do: the setup, the starting model as a folder, and the groups of every step.

    `groups(step)` does the work of a data loader, `batch_of(step)` gives our own batch of the same groups.
    """

    setup: Setup
    folder: Path
    groups: Callable[[int], list[Group]]
    loader: Callable[[], Any]
    learning_rate: Callable[[int], float]
    device: str

    @property
    def config(self) -> Config:
        return self.setup.config

    @property
    def mesh(self) -> jax.sharding.Mesh:
        return self.setup.mesh


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("--steps", type=int, default=5, help="of each side that are counted")
    parser.add_argument("--tolerance", type=float, default=1e-3)
    parser.add_argument("--threads", type=int, help="of PyTorch; all cores by default")
    parser.add_argument("--json", action="store_true")
    options, rest = parser.parse_known_args()
    prepare_process()
    torch.set_num_threads(options.threads or os.cpu_count())
    config = load_config(options.config, parse_overrides(rest), require=REQUIRED)
    with tempfile.TemporaryDirectory() as folder:
        job = prepare(config, Path(folder), options.steps + 1)
        with jax.set_mesh(job.mesh):
            sides = {"align_jax": ours(job), "PyTorch + transformers": theirs(job)}
            if config.objective.name == "dpo":
                with contextlib.suppress(ImportError):
                    sides["TRL DPOTrainer"] = trl(job)
            results = take_turns(job, sides, options.steps + 1)
    print(json.dumps(summary(results)) if options.json else table(summary(results)))
    worst = max(results["losses_differ"].values())
    if worst > options.tolerance:
        print(f"FAILED: losses differ by {worst:.2e}, more than {options.tolerance:g}", file=sys.stderr)
        return 1
    return 0


def prepare(config: Config, folder: Path, steps: int) -> Job:
    """Fresh weights from `run.seed`, or those of `model.path`, saved for PyTorch; reference log-probs of all steps."""
    config = dataclasses.replace(with_data(config), run=dataclasses.replace(config.run, dir=str(folder)))
    setup = Setup.of(config)
    device = "cuda" if setup.mesh.devices.flat[0].platform in ("gpu", "cuda") else "cpu"
    schedule = optim.make_schedule(config.optimizer, config.train.steps or 1000)

    def rate(step: int) -> float:
        return float(schedule(step))

    weights = weights_of(setup)
    align_jax.save_model(Decoder(setup.source.shape, weights, dtype=config.model.dtype), folder / "model")
    score = setup.under(weights).batch
    if config.bench.prompt_tokens is not None:
        batch = random_batch(setup)
        flat = jax.tree.map(lambda x: x[0], batch)
        batch = batch.with_labels(ref_logps=np.asarray(score(flat))[None])
        groups = groups_of(jax.tree.map(lambda x: x[0], batch))
        return Job(setup, folder, lambda _: groups, lambda: benchmark.Repeated(batch), rate, device)
    dataset = data_of(setup)
    plain = setup.loader(dataset)
    rows = plain.first_rows(steps).reshape(steps, -1)
    table = np.zeros((len(dataset), dataset.slots), np.float32)
    for batch in plain.preview(steps):
        batch = jax.tree.map(lambda x: x[0], batch)
        logps = np.asarray(score(batch))
        table[batch.rows, : logps.shape[1]] = logps

    def make() -> BatchLoader:
        loader = setup.loader(dataset)
        loader.join({"ref_logps": table})
        return loader

    def groups(step: int) -> list[Group]:
        made = [dataset[int(row)] for row in rows[step]]
        return [
            Group(
                g.prompt.tolist(),
                [s.tokens.tolist() for s in g.segments],
                g.labels["scores"],
                table[g.row, : len(g.segments)],
            )
            for g in made
        ]

    return Job(setup, folder, groups, make, rate, device)


def weights_of(setup: Setup) -> dict:
    if setup.config.model.path is not None:
        return setup.weights()
    shape, dtype = setup.source.shape, setup.config.model.param_dtype
    make = partial(init_weights, shape, param_dtype=dtype)
    return jax.jit(make, out_shardings=weight_shardings(shape, setup.mesh))(jax.random.key(setup.config.run.seed))


def groups_of(batch: GroupBatch) -> list[Group]:
    """The groups of an unpacked batch: what the rows hold, read back."""
    groups, count = [], batch.mask.shape[1]
    prompts = batch.prompt_tokens.reshape(-1, batch.prompt_tokens.shape[-1])
    real = batch.prompt_segments.reshape(prompts.shape) > 0
    rows, targets = (x.reshape(-1, count, x.shape[-1]) for x in (batch.tokens, batch.targets))
    for g in range(len(prompts)):
        prompt = [*prompts[g][real[g]].tolist(), int(rows[g, 0, 0])]
        responses = [targets[g, k, : batch.lengths[g, k]].tolist() for k in range(count)]
        groups.append(Group(prompt, responses, batch.labels["scores"][g], batch.labels["ref_logps"][g]))
    return groups


# A side is step -> (loss, useful tokens); its time is that of the call.
Side = Callable[[int], tuple[float, int]]


def ours(job: Job) -> Side:
    config, mesh, shape = job.config, job.mesh, job.setup.source.shape
    optimizer = optim.make_optimizer(config.optimizer, config.train.steps or 1000)
    where = state_shardings(shape, optimizer, mesh, config.model.param_dtype)
    state = create_state(shape, weights_of(job.setup), optimizer, mesh, config.model.param_dtype)
    step = compile_step(mesh, where, job.setup.scorer, config.objective, optimizer)
    put = partial(put_batch, mesh=mesh, leading=1)
    # Every shape is compiled first, as a second start of the run would find it.
    loader = job.loader()
    for batch in benchmark.distinct(next(loader) for _ in range(config.bench.steps + 1)).values():
        step.lower(state, put(batch)).compile()
        jax.block_until_ready(step(jax.tree.map(lambda x: x.copy(), state), put(batch)))
    batches, held = ahead(job.loader(), put), [state]

    def run(_: int) -> tuple[float, int]:
        batch, host, _ = next(batches)
        held[0], metrics = step(held[0], batch)
        return float(metrics["loss"]), useful_tokens(host)

    return run


def useful(groups: list[Group]) -> int:
    """Tokens of every response with its prompt."""
    return sum(len(g.prompt) + len(r) for g in groups for r in g.responses)


def torch_optimizer(config: Config, model: torch.nn.Module) -> torch.optim.Optimizer:
    o = config.optimizer
    if o.name != "adamw":
        raise SystemExit(f"optimizer.name: {o.name!r}; the comparison is with PyTorch's AdamW")
    decay = {"betas": (o.b1, o.b2), "eps": o.eps, "weight_decay": o.weight_decay}
    return torch.optim.AdamW(model.parameters(), lr=o.learning_rate, fused=True, **decay)


def update(job: Job, model: torch.nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    for group in optimizer.param_groups:
        group["lr"] = job.learning_rate(step)
    if job.config.optimizer.clip_norm is not None:
        torch.nn.utils.clip_grad_norm_(model.parameters(), job.config.optimizer.clip_norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def mixed(job: Job) -> bool:
    """Whether products are computed in another type than the weights have."""
    return job.config.model.dtype != job.config.model.param_dtype


def attention_of(job: Job) -> str:
    """FlashAttention where this card and type have it, else PyTorch's own."""
    flash = job.device == "cuda" and job.config.model.dtype in ("bfloat16", "float16") and is_flash_attn_2_available()
    return "flash_attention_2" if flash else "sdpa"


def load(job: Job, attention: str) -> torch.nn.Module:
    dtype = getattr(torch, job.config.model.param_dtype)
    model = AutoModelForCausalLM.from_pretrained(job.folder / "model", dtype=dtype, attn_implementation=attention)
    return model.to(job.device).train()


def theirs(job: Job) -> Side:
    attention = attention_of(job)
    print(f"PyTorch's attention: {attention}", file=sys.stderr)
    model = load(job, attention)
    optimizer = torch_optimizer(job.config, model)
    loss_of = TORCH_LOSSES[job.config.objective.name]
    compute = torch.autocast(job.device, getattr(torch, job.config.model.dtype), enabled=mixed(job))
    logps_of = torch_logps if attention == "sdpa" else torch_logps_in_one_row

    def run(step: int) -> tuple[float, int]:
        groups = job.groups(step)
        with compute:
            logps = logps_of(model, groups, job.device)
        losses = []
        for g, own in zip(groups, logps.split([len(g.responses) for g in groups]), strict=True):
            given = (torch.from_numpy(np.ascontiguousarray(x)).to(job.device) for x in (g.ref_logps, g.scores))
            losses.append(loss_of(job.config.objective, own, *given))
        loss = torch.stack([x for x in losses if x is not None]).mean()
        loss.backward()
        update(job, model, optimizer, step)
        return loss.item(), useful(groups)

    return run


def torch_logps(model: torch.nn.Module, groups: list[Group], device: str) -> torch.Tensor:
    """Sums of response log-probs, one per response: rows padded to the longest, the head on response positions only."""
    rows = [(g.prompt, r) for g in groups for r in g.responses]
    longest = max(len(p) + len(r) for p, r in rows)
    tokens = torch.zeros(len(rows), longest, dtype=torch.long)
    mask, scored = torch.zeros_like(tokens), torch.zeros(len(rows), longest, dtype=torch.bool)
    for i, (p, r) in enumerate(rows):
        tokens[i, : len(p) + len(r)] = torch.tensor(p + r)
        mask[i, : len(p) + len(r)] = 1
        scored[i, len(p) - 1 : len(p) + len(r) - 1] = True
    targets = torch.cat([torch.tensor(r) for _, r in rows]).to(device)
    full = bool(mask.all())  # without padding the causal kernel needs no mask
    hidden = model.model(tokens.to(device), attention_mask=None if full else mask.to(device), use_cache=False)
    logits = model.lm_head(hidden.last_hidden_state[scored.to(device)]).float()
    logps = -torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    which = torch.repeat_interleave(torch.arange(len(rows)), torch.tensor([len(r) for _, r in rows])).to(device)
    return torch.zeros(len(rows), device=device).index_add(0, which, logps)


def torch_logps_in_one_row(model: torch.nn.Module, groups: list[Group], device: str) -> torch.Tensor:
    """The same without padding: one row of all conversations, whose attention ends where positions begin anew."""
    rows = [(g.prompt, r) for g in groups for r in g.responses]
    tokens = torch.tensor([[x for p, r in rows for x in (*p, *r)]], device=device)
    positions = torch.cat([torch.arange(len(p) + len(r)) for p, r in rows])[None].to(device)
    ends = np.cumsum([len(p) + len(r) for p, r in rows])
    scored = np.concatenate([np.arange(end - len(r) - 1, end - 1) for end, (_, r) in zip(ends, rows, strict=True)])
    targets = torch.tensor([x for _, r in rows for x in r], device=device)
    hidden = model.model(tokens, position_ids=positions, use_cache=False).last_hidden_state[0]
    logits = model.lm_head(hidden[torch.from_numpy(scored).to(device)]).float()
    logps = -torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    which = torch.repeat_interleave(torch.arange(len(rows)), torch.tensor([len(r) for _, r in rows])).to(device)
    return torch.zeros(len(rows), device=device).index_add(0, which, logps)


def torch_mpo(objective: Any, logps: torch.Tensor, refs: torch.Tensor, scores: torch.Tensor) -> torch.Tensor | None:
    deviation = scores - scores.mean()
    accepted = deviation > 0
    if not bool(accepted.any()):
        return None
    z = objective.beta * (logps - refs) + objective.alpha * deviation.abs() ** objective.power
    return torch.logsumexp(z, 0) - torch.logsumexp(z[accepted], 0)


def torch_dpo(objective: Any, logps: torch.Tensor, refs: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    ratio = logps - refs
    return -torch.nn.functional.logsigmoid(objective.beta * (ratio[0] - ratio[1]))


TORCH_LOSSES = {"mpo": torch_mpo, "dpo": torch_dpo}


def trl(job: Job) -> Side:
    """TRL's own collator, model wrapper, loss and `training_step`; without checkpointing, logging and callbacks."""
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast
    from trl import DPOConfig, DPOTrainer

    class Tokenized(DPOTrainer):
        """The rows are tokens already."""

        def _prepare_dataset(self, dataset, *_, **__):
            return dataset

    def rows_of(groups: list[Group]) -> list[dict]:
        return [{"prompt_ids": g.prompt, "chosen_ids": g.responses[0], "rejected_ids": g.responses[1]} for g in groups]

    first = job.groups(0)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"<pad>": 0}, unk_token="<pad>")))
    tokenizer.pad_token = tokenizer.eos_token = "<pad>"
    arguments = DPOConfig(
        output_dir=str(job.folder / "trl"),
        per_device_train_batch_size=len(first),
        beta=job.config.objective.beta,
        precompute_ref_log_probs=True,
        gradient_checkpointing=False,
        max_length=None,
        bf16=mixed(job) and job.config.model.dtype == "bfloat16",
        report_to=[],
        use_cpu=job.device == "cpu",
    )
    model = load(job, attention_of(job))
    trainer = Tokenized(model, args=arguments, train_dataset=Dataset.from_list(rows_of(first)), processing_class=tokenizer)
    optimizer = torch_optimizer(job.config, model)
    trainer.current_gradient_accumulation_steps = 1

    def run(step: int) -> tuple[float, int]:
        groups = job.groups(step)
        refs = [{"ref_chosen_logps": float(g.ref_logps[0]), "ref_rejected_logps": float(g.ref_logps[1])} for g in groups]
        batch = trainer.data_collator([row | ref for row, ref in zip(rows_of(groups), refs, strict=True)])
        loss = trainer.training_step(model, batch)
        update(job, model, optimizer, step)
        return loss.item(), useful(groups)

    return run


def take_turns(job: Job, sides: dict[str, Side], steps: int) -> dict[str, Any]:
    """Step by step, one side after the other; the first step is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    names = list(sides)
    losses: dict[str, list[float]] = {name: [] for name in sides}
    tokens: list[int] = []
    for step in range(steps):
        for name in names[step % len(names) :] + names[: step % len(names)]:  # who begins changes
            began = time.perf_counter()
            loss, useful = sides[name](step)
            if job.device == "cuda":
                torch.cuda.synchronize()
            taken = time.perf_counter() - began
            losses[name].append(loss)
            if step:
                seconds[name].append(taken)
                tokens += [useful] if name == "align_jax" else []
        line = ", ".join(f"{name} {losses[name][-1]:.5f}" for name in sides)
        print(f"step {step}: loss {line}", file=sys.stderr, flush=True)
    differ = {
        name: max(abs(a - b) / (1 + abs(b)) for a, b in zip(losses["align_jax"], other, strict=True))
        for name, other in losses.items()
        if name != "align_jax"
    }
    return {"seconds": seconds, "tokens": tokens, "losses": losses, "losses_differ": differ}


def summary(results: dict[str, Any]) -> dict[str, Any]:
    """Tokens a second over all counted steps, the median step, and how many times as fast ours is, step by step."""
    total, ours = sum(results["tokens"]), results["seconds"]["align_jax"]
    values = {}
    for name, times in results["seconds"].items():
        ratios = [theirs / mine for theirs, mine in zip(times, ours, strict=True)]
        interval = quantile_test(ratios, q=1.0, p=0.5).confidence_interval(0.95)
        values[name] = {
            "step_seconds": statistics.median(times),
            "useful_tokens_per_second": total / sum(times),
            "ratio": statistics.median(ratios),
            "ratio_low": None if math.isnan(interval.low) else float(interval.low),
            "ratio_high": None if math.isnan(interval.high) else float(interval.high),
            "ratio_of_totals": sum(times) / sum(ours),
            "losses_differ": results["losses_differ"].get(name, 0.0),
        }
    return values


def table(values: dict[str, Any]) -> str:
    rows = [
        (
            name,
            f"{v['step_seconds']:.3f}",
            f"{v['useful_tokens_per_second']:.0f}",
            f"{v['ratio']:.2f}" + ("" if v["ratio_low"] is None else f" ({v['ratio_low']:.2f} to {v['ratio_high']:.2f})"),
            f"{v['ratio_of_totals']:.2f}",
            f"{v['losses_differ']:.1e}",
        )
        for name, v in values.items()
    ]
    headers = ("", "s a step (median)", "useful tokens/s", "ours / theirs, of steps", "of totals", "losses differ")
    return tabulate(rows, headers=headers, disable_numparse=True)


if __name__ == "__main__":
    sys.exit(main())
