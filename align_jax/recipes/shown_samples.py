"""What a run's model says as it is trained: samples of a few prompts every so many steps, in the log and in `samples.jsonl`."""

from __future__ import annotations

import json
import os
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tabulate import tabulate

from align_jax.data import GroupDataset
from align_jax.errors import UserError
from align_jax.evaluation.samples import distinct
from align_jax.generation import absent_ids, end_ids, generate, sample_text
from align_jax.models import Decoder
from align_jax.recipes.generate import sampling_of
from align_jax.recipes.say import say_plainly, watching
from align_jax.recipes.setup import Setup
from align_jax.terminal import plural
from align_jax.training.callbacks import Callback
from align_jax.training.loop import Loop

FILE = "samples.jsonl"
_SHOWN = 300  # signs of a text in the log; the file has all
_COLUMN = 56
Row = dict[str, Any]


class ShownSamples:
    """weights -> a response to each of a few prompts, always the same ones, with the same random numbers at every step.

    Args:
      dataset: whose prompts are taken, evenly spaced among the different ones.

    Raises:
      UserError: a reward model, which says nothing; a prompt as long as the model's context.
    """

    def __init__(self, setup: Setup, dataset: GroupDataset):
        self._setup, log = setup, setup.config.log
        if setup.config.head == "score":
            raise UserError(f"log.samples_every: {log.samples_every}, but a reward model generates nothing; leave it out")
        self._units = distinct(dataset.unit_ids.tolist(), log.samples_prompts)
        self._prompts = [dataset[int(i)].prompt.tolist() for i in self._units]
        context = setup.source.shape.max_length
        if full := sum(len(prompt) >= context for prompt in self._prompts):
            raise UserError(
                f"log.samples_every: nothing can be sampled for {plural(full, 'prompt')} of {dataset.path} as long as the "
                f"model's context, {context} tokens; lower data.max_prompt_tokens ({setup.config.data.max_prompt_tokens})"
            )

    def __call__(self, params: dict) -> list[Row]:
        setup, config = self._setup, self._setup.config
        tokenizer = setup.encoder.tokenizer
        found = generate(
            Decoder(setup.source.shape, params, dtype=config.model.dtype),
            self._prompts,
            max_new_tokens=config.log.samples_tokens,
            sampling=sampling_of(config.generate),
            eos_ids=(*setup.encoder.end_ids, *end_ids(tokenizer, config.generate.stop_tokens, setup.source.generation_config)),
            never=absent_ids(tokenizer, setup.source.shape.vocab_size),
            seed=config.run.seed,
            prompt_ids=self._units.tolist(),
            mesh=setup.mesh,
            rows=config.generate.rows,
            progress=watching,
        )
        return [
            {
                "prompt": tokenizer.decode(prompt, skip_special_tokens=True),
                "response": sample_text(tokenizer, prompt, sample),
                "tokens": len(sample.tokens),
                "finish_reason": sample.finish_reason,
            }
            for prompt, (sample,) in zip(self._prompts, found, strict=True)
        ]


class WriteSamples(Callback):
    """Samples before the first step, every so many steps and after the last one; shows and keeps them.

    Args:
      sample: weights -> rows. every: steps between them. folder: where `samples.jsonl` is; what a run writes there again after
        it was resumed takes the place of what there was of later steps.
      tell: (step, rows) -> None, further places that they go to.
    """

    def __init__(
        self, sample: Callable[[dict], list[Row]], every: int, folder: Path, tell: Callable[[int, Sequence[Row]], None]
    ):
        self._sample, self._every, self._file, self._tell = sample, every, folder / FILE, tell

    def begin(self, loop: Loop) -> None:
        """Drops what no checkpoint stands behind, and samples from the weights that a run starts from."""
        self._drop_after(loop.step)
        if loop.step == 0:
            self._write(loop)

    def after_step(self, loop: Loop) -> None:
        """Samples where it is time to, once the step is known to be good."""
        if loop.step == loop.steps or loop.step % self._every == 0:
            loop.metrics()
            self._write(loop)

    def _drop_after(self, step: int) -> None:
        if jax.process_index() != 0 or not self._file.exists():
            return
        lines = [line for line in self._file.read_text(encoding="utf-8").splitlines() if _step_of(line) <= step]
        temporary = self._file.with_suffix(".jsonl.tmp")
        temporary.write_text("".join(f"{line}\n" for line in lines if step), encoding="utf-8")
        os.replace(temporary, self._file)

    def _write(self, loop: Loop) -> None:
        rows = self._sample(loop.state.weights)
        if jax.process_index() == 0:
            with self._file.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps({"step": loop.step, **row}, ensure_ascii=False) + "\n" for row in rows)
        say_plainly(samples_table(loop.step, rows))
        self._tell(loop.step, rows)


def samples_table(step: int, rows: Sequence[Row]) -> str:
    """Prompts and responses beside one another, long ones shortened."""
    cells = [[_cell(row["prompt"], end=True), _cell(row["response"])] for row in rows]
    headers = ["prompt", f"response at step {step}" if step else "response before training"]
    return tabulate(cells, headers=headers, tablefmt="grid", disable_numparse=True)


def _cell(text: str, end: bool = False) -> str:
    """A text in lines of a column; of a long one its beginning, or its `end`."""
    text = text if len(text) <= _SHOWN else f"... {text[-_SHOWN:]}" if end else f"{text[:_SHOWN]} ..."
    lines = [part for line in text.splitlines() for part in textwrap.wrap(line, _COLUMN) or [""]]
    return "\n".join(lines)


def _step_of(line: str) -> float:
    """The step of a line; infinite where a kill cut it short."""
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return np.inf
