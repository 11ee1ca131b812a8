"""Scores of sampled responses, to JSONL as they are computed, such that an interrupted run loses nothing that it had."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path

from jax.sharding import Mesh

from align_jax import hf
from align_jax.cli.run_folder import say
from align_jax.config import ModelSection
from align_jax.data.formats import as_text
from align_jax.errors import UserError
from align_jax.generate.files import ResultsFile
from align_jax.reference import fingerprint_files

CHUNK = 32  # prompts scored between two writes


def score_file(
    samples: Path, scored: Path, reward_model: str, mesh: Mesh, numbers: ModelSection, stop: Callable[[], bool]
) -> bool:
    """Adds `scores` to the rows of a file of samples; goes on where an earlier call was.

    Args:
      samples: JSONL with `prompt` and `responses`. scored: what is written: the same rows with `scores`.
      reward_model: a sequence classifier's folder or hub id; it is loaded only where something is left to do.
      numbers: `dtype` and `param_dtype` that it computes in.
      stop: asked after every chunk; when it says so, the rest is left for the next time.

    Returns:
      Whether all rows have scores.

    Raises:
      UserError: a score that is not finite, with its place.
    """
    content = samples.read_bytes()
    rows = [json.loads(line) for line in content.splitlines()]
    folder = hf.resolve_folder(reward_model)
    settings = {
        "reward_model": fingerprint_files(Path(folder).glob("*.safetensors")),
        "samples": hashlib.sha256(content).hexdigest(),
        "dtype": [numbers.dtype, numbers.param_dtype],
    }
    with ResultsFile(scored, settings, len(rows)) as results:
        todo = [i for i in range(len(rows)) if i not in results.done]
        model = load_reward_model(reward_model, mesh, numbers) if todo else None
        for chunk in (todo[at : at + CHUNK] for at in range(0, len(todo), CHUNK)):
            if stop():
                say(f"{len(results.done)} of {len(rows)} prompts are scored in {scored}")
                return False
            texts = [as_text(rows[i]["prompt"], "prompt") for i in chunk]
            for i, scores in zip(chunk, model.score(texts, [rows[i]["responses"] for i in chunk]), strict=True):
                scores = [float(score) for score in scores]
                if not all(map(math.isfinite, scores)):
                    raise UserError(f"{samples}:{i + 1}: the reward model {reward_model} gives {scores}; scores must be finite")
                results.write(i, {**rows[i], "scores": scores})
    return True


def load_reward_model(path: str, mesh: Mesh, numbers: ModelSection):
    """The reward model: `score(prompts, responses) -> scores`."""
    from align_jax.reward_model import RewardModel

    return RewardModel.load(path, mesh=mesh, dtype=numbers.dtype, param_dtype=numbers.param_dtype)
