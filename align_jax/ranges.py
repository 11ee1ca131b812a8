"""How large each number of a config may be: nonsense is refused, and what is far beyond what anyone uses is warned of.

What a number may be beside others, and lower bounds that need a reason, are checked where its dataclass is defined.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
from typing import Any

_FAR = 1000  # a number beyond this many times what anyone uses is warned of
_INT32 = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class Range:
    """What a number may be.

    Attributes:
      low, high: the smallest (above 0, which is off) and the largest that anyone uses.
      most: a larger one is refused. least: a smaller one is.
    """

    low: float
    high: float
    most: float
    least: float = -math.inf

    def refusal(self, value: float) -> str | None:
        """Why a number cannot be meant; None where it can."""
        if not math.isfinite(value):
            return f"{value!r} must be a finite number"
        if value > self.most:
            return f"{_spelled(value)} is more than {_spelled(self.most)}, the most that it may be"
        if value < self.least:
            return f"{_spelled(value)} is less than {_spelled(self.least)}, the least that it may be"
        return None

    def doubt(self, value: float) -> str | None:
        """Why a number that is taken may not be meant; None where nothing is strange about it."""
        size = abs(value)
        if size > _FAR * self.high:
            return f"{_spelled(value)} is {_FAR:,} times more than anyone uses (up to {_spelled(self.high)}); is it meant?"
        if 0 < size < self.low / _FAR:
            return f"{_spelled(value)} is {_FAR:,} times less than anyone uses (from {_spelled(self.low)} on); is it meant?"
        return None


_STEPS = Range(1, 1e6, _INT32)
_LENGTH = Range(1, 1e6, _INT32)
_COUNT = Range(1, 1e4, 1e8)
_ROWS = Range(1, 1e9, 1e13)
_WEIGHT = Range(1e-4, 1e3, 1e9, least=0)
_SHARE = Range(1e-9, 1, 1)
_DEVICES = Range(1, 1e5, 1e6)
_SCALE = Range(1e-4, 1e4, 1e9)
_SIZE = Range(1, 1e6, 1e8, least=1)  # of a model, beside the memory that it takes
RANGES: dict[str, Range] = {
    "run.seed": Range(0, 2**32 - 1, 2**32 - 1),
    "run.wait_s": Range(1, 1e5, 1e6),
    "run.stopped_status": Range(1, 255, 255),
    "model.config.vocab_size": _SIZE,
    "model.config.width": _SIZE,
    "model.config.mlp_width": _SIZE,
    "model.config.layers": Range(1, 1e3, 1e4, least=1),
    "model.config.heads": Range(1, 1e3, 1e5, least=1),
    "model.config.kv_heads": Range(1, 1e3, 1e5, least=1),
    "model.config.experts": Range(1, 1e3, 1e5, least=1),
    "model.config.active_experts": Range(1, 1e2, 1e5, least=1),
    "model.config.head_size": Range(1, 1e3, 1e5, least=1),
    "model.config.norm_eps": Range(1e-8, 0.1, 1, least=1e-30),
    "model.config.rope_theta": Range(100, 1e9, 1e15, least=1e-3),
    "model.config.local_rope_theta": Range(100, 1e9, 1e15, least=1e-3),
    "model.config.rope_scaling.factor": Range(0.1, 1e3, 1e6, least=1e-6),
    "model.config.rope_scaling.low_freq_factor": Range(0.1, 1e3, 1e6, least=1e-6),
    "model.config.rope_scaling.high_freq_factor": Range(0.1, 1e3, 1e6, least=1e-6),
    "model.config.rope_scaling.original_length": Range(1, 1e7, _INT32, least=1),
    "model.config.rope_scaling.attention_factor": Range(0.1, 1e3, 1e6, least=1e-6),
    "model.config.rope_scaling.beta_fast": Range(0.1, 1e3, 1e6, least=1e-6),
    "model.config.rope_scaling.beta_slow": Range(0.01, 1e3, 1e6, least=1e-6),
    "model.config.rope_scaling.short_factors": Range(0.1, 1e4, 1e9, least=1e-6),
    "model.config.rope_scaling.long_factors": Range(0.1, 1e4, 1e9, least=1e-6),
    "model.config.sliding_window": Range(1, 1e7, _INT32, least=1),
    "model.config.max_length": Range(1, 1e7, _INT32, least=1),
    "model.config.rotary_size": Range(1, 1e3, 1e5, least=0),
    "model.config.rope_length": Range(1, 1e7, _INT32, least=1),
    "model.config.norm_offset": Range(1e-3, 1, 1e3, least=-1e3),
    "model.config.embed_scale": Range(1e-3, 1e3, 1e6, least=1e-6),
    "model.config.residual_scale": Range(1e-3, 1e2, 1e6, least=1e-6),
    "model.config.attention_scale": Range(1e-4, 1e2, 1e6, least=1e-9),
    "model.config.attention_softcap": Range(1, 1e3, 1e9, least=1e-3),
    "model.config.logit_softcap": Range(1, 1e3, 1e9, least=1e-3),
    "model.config.logit_divisor": Range(1e-2, 1e3, 1e6, least=1e-6),
    "model.rows_per_chunk": _COUNT,
    "model.router_aux_weight": _WEIGHT,
    "model.head_chunk": _LENGTH,
    "lora.rank": Range(1, 4096, 4096),
    "lora.alpha": Range(0.1, 1e4, 1e9),
    "lora.dropout": _SHARE,
    "reference.sync_every": _STEPS,
    "reference.mix": _SHARE,
    "data.train.limit": _ROWS,
    "data.train.weight": Range(1e-6, 1e6, 1e12),
    "data.max_rows": _ROWS,
    "data.max_prompt_tokens": _LENGTH,
    "data.max_response_tokens": _LENGTH,
    "data.max_responses": _COUNT,
    "data.belief_prior": Range(1e-3, 1e3, 1e9),
    "data.workers": Range(1, 256, 1024),
    "data.prefetch": Range(1, 64, 4096),
    "objective.beta": Range(1e-4, 1e2, 1e6),
    "objective.sft_weight": _WEIGHT,
    "objective.label_smoothing": _SHARE,
    "objective.divergence_alpha": Range(1e-3, 1, 1e3),
    "objective.temperature": Range(1e-3, 1e2, 1e6),
    "objective.tau": Range(1e-4, 1e2, 1e6),
    "objective.penalty": Range(1e-3, 1e3, 1e6),
    "objective.alpha": Range(1e-4, 1e2, 1e6),
    "objective.desirable_weight": _WEIGHT,
    "objective.undesirable_weight": _WEIGHT,
    "objective.calibration_weight": _WEIGHT,
    "objective.belief_weight": _WEIGHT,
    "objective.preference_weight": _WEIGHT,
    "objective.power": Range(0.1, 4, 16),
    "objective.levels": Range(1, 100, 1e4),
    "objective.thresholds": Range(1e-3, 1e4, 1e12, least=-1e12),
    "objective.center": Range(1e-4, 1e2, 1e6),
    "objective.gamma": Range(1e-3, 1e2, 1e6, least=-1e6),
    "objective.N.weight": _WEIGHT,
    "optimizer.learning_rate": Range(1e-9, 1e-2, 1e3),
    "optimizer.warmup_steps": _STEPS,
    "optimizer.warmup_ratio": _SHARE,
    "optimizer.final_ratio": _SHARE,
    "optimizer.schedule_steps": _STEPS,
    "optimizer.clip_norm": Range(1e-3, 1e3, 1e12),
    "optimizer.weight_decay": Range(1e-6, 1, 1e3),
    "optimizer.eps": Range(1e-30, 1e-3, 1),
    "optimizer.b1": _SHARE,
    "optimizer.b2": _SHARE,
    "optimizer.decay": _SHARE,
    "optimizer.momentum": _SHARE,
    "optimizer.update_clip": Range(1e-3, 1e3, 1e12),
    "optimizer.newton_schulz_steps": Range(1, 20, 100),
    "optimizer.rms": Range(1e-4, 1e2, 1e6),
    "optimizer.weight_power": Range(0.1, 10, 100),
    "mesh.data": _DEVICES,
    "mesh.fsdp": _DEVICES,
    "mesh.expert": _DEVICES,
    "mesh.tensor": _DEVICES,
    "mesh.sequence": _DEVICES,
    "mesh.memory_gib": Range(1e-3, 1e3, 1e6),
    "train.steps": _STEPS,
    "train.epochs": Range(1e-3, 1e3, 1e6),
    "train.groups_per_step": Range(1, 1e4, 1e8),
    "train.accumulation_steps": _COUNT,
    "train.eval_every": _STEPS,
    "train.max_skipped": _STEPS,
    "train.patience": _STEPS,
    "checkpoint.every": _STEPS,
    "checkpoint.minutes": Range(1e-2, 1e4, 1e7),
    "checkpoint.keep": _STEPS,
    "checkpoint.keep_every": _STEPS,
    "checkpoint.max_age_s": Range(1, 1e6, 1e9),
    "generate.samples": Range(1, 1e4, 1e7),
    "generate.temperature": Range(1e-2, 10, 1e4),
    "generate.top_k": Range(1, 1e6, _INT32),
    "generate.top_p": _SHARE,
    "generate.min_p": _SHARE,
    "generate.repetition_penalty": Range(0.1, 10, 1e3),
    "generate.max_new_tokens": _LENGTH,
    "generate.belief_temperature": Range(1e-2, 10, 1e4),
    "generate.rows": Range(1, 1e5, 1e7),
    "score.batch_rows": Range(1, 1e5, 1e7),
    "bench.prompt_tokens": _LENGTH,
    "bench.response_tokens": _LENGTH,
    "bench.responses": _COUNT,
    "bench.groups": Range(1, 1e4, 1e8),
    "bench.steps": _STEPS,
    "bench.peak_flops": Range(1e9, 1e16, 1e21),
    "bench.memory_bytes": Range(1e6, 1e12, 1e18),
    "evaluate.samples": Range(1, 1e4, 1e7),
    "evaluate.training_samples": Range(1, 1e4, 1e7),
    "evaluate.sampled_prompts": _ROWS,
    "evaluate.max_new_tokens": _LENGTH,
    "evaluate.resamples": Range(1, 1e5, 1e7),
    "evaluate.judge_max_tokens": _LENGTH,
    "evaluate.judge_timeout": Range(1e-1, 1e4, 1e7),
    "evaluate.judge_concurrency": Range(1, 256, 4096),
    "rounds.number": Range(1, 1e3, 1e6),
    "rounds.samples_per_prompt": Range(1, 1e3, 1e6),
    "rounds.prompts_per_round": _ROWS,
    "rounds.eval_prompts": _ROWS,
    "rounds.eval_samples": Range(1, 1e3, 1e6),
    "rounds.kl_stop": Range(1e-3, 1e4, 1e9),
    "rounds.beliefs_per_prompt": Range(1, 1e3, 1e6),
    "log.every": _STEPS,
    "log.samples_every": _STEPS,
    "log.samples_prompts": Range(1, 1e3, 1e6),
    "log.samples_tokens": _LENGTH,
}


def range_of(place: str) -> Range | None:
    """The range of the key at a place, such as `objective.0.beta` or `data.eval.safety.limit`; None of what is no number."""
    if re.fullmatch(r"objective\.\d+\.weight", place):
        return RANGES["objective.N.weight"]
    key = re.sub(r"^objective\.\d+\.", "objective.", place)
    key = re.sub(r"^data\.(train|eval|eval_text)\.(.+\.)?(limit|weight)$", r"data.train.\3", key)
    return RANGES.get(key)


def refusal(place: str, value: Any) -> str | None:
    """Why the number, or a number of the list, at a place of a config cannot be meant; None where it can."""
    found = range_of(place)
    said = (found.refusal(number) for number in _numbers(value)) if found is not None else ()
    return next((why for why in said if why is not None), None)


def doubt(place: str, value: Any) -> str | None:
    """The same of what is taken, and may not be meant."""
    found = range_of(place)
    if found is None:
        return None
    if place == "data.workers" and isinstance(value, int) and value > 8 * (cores := os.cpu_count() or 1) and value > 16:
        return f"{value} threads share {cores} cores here; more than a few for each make nothing faster"
    return next((why for why in map(found.doubt, _numbers(value)) if why is not None), None)


def spelled(key: str) -> str:
    """The largest number of a key, for people: `at most 1,024`; empty where it goes without saying."""
    found = RANGES.get(key)
    return f"at most {_spelled(found.most)}" if found is not None and 1 < found.most < 1e8 else ""


def _numbers(value: Any) -> list[float]:
    """The numbers that a value is or has; one that no float holds is infinite."""
    found = []
    for each in value if isinstance(value, list | tuple) else [value]:
        if isinstance(each, int | float) and not isinstance(each, bool):
            try:
                found.append(float(each) if isinstance(each, float) or abs(each) > 2**53 else each)
            except OverflowError:
                found.append(math.inf)
    return found


def _spelled(number: float) -> str:
    whole = number == int(number) and abs(number) <= 1e10 if math.isfinite(number) else False
    return f"{int(number):,}" if whole else f"{number:g}"
