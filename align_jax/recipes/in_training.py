"""Evaluations during training: all sets of `data.eval`, and the texts of `data.eval_text`."""

from __future__ import annotations

import dataclasses
import functools

from align_jax.errors import UserError
from align_jax.evaluation import Judge, stack
from align_jax.recipes.eval_text import EvalText, eval_text
from align_jax.recipes.evaluation import EvalData, divergence_table, eval_sets, judge_of, speak
from align_jax.recipes.say import say
from align_jax.recipes.setup import Setup


@dataclasses.dataclass(frozen=True)
class InTraining:
    """weights -> `eval/...` metrics; those of one of several sets are called `eval/NAME/...`, those of texts `eval/text/...`.

    Where the reference moves, it takes the weights of that, too: rewards and drift are measured from where it is.

    Attributes:
      sets: of `data.eval`. text: of `data.eval_text`, if there are any.
      samples: for each prompt. judge: of what is sampled.
    """

    setup: Setup
    sets: list[EvalData]
    text: EvalText | None
    samples: int
    judge: Judge | None
    _told: set[str] = dataclasses.field(default_factory=set)

    @property
    def rows(self) -> dict[str, str]:
        """What tells the rows of each set from others."""
        return {data.key: data.dataset.fingerprint for data in self.sets}

    def __call__(self, params: dict, moving: dict | None = None) -> dict[str, float]:
        reference = functools.cache(lambda: self.setup.load(self.setup.reference)[0] if moving is None else moving)
        found: dict[str, float] = {}
        for data in self.sets:
            found |= {data.named(name): value for name, value in self._of_set(data, params, reference, moving).items()}
        if self.text is not None:
            found |= self.text.table(params).means()
        return {f"eval/{name}": float(value) for name, value in found.items()}

    def _of_set(self, data: EvalData, params: dict, reference, moving: dict | None) -> dict[str, float]:
        responses = data.score(params)
        if moving is not None:
            labels = {**responses.labels, "ref_logps": data.score(moving).logps}
            responses = dataclasses.replace(responses, labels=labels)
        if data.key not in self._told:
            data.report_cut(responses)
            self._told.add(data.key)
        tables = [data.table(responses)]
        if self.samples:
            spoken = speak(data, params, self.samples, self.judge if data.has_beliefs else None)
            tables += spoken.tables
            if spoken.policy is not None:
                tables.append(divergence_table(data, spoken, reference()))
            if spoken.problem:
                say(f"evaluate.judge: {spoken.problem}")
        return stack(tables).means()


def in_training_evaluation(setup: Setup, steps: int) -> InTraining | None:
    """What evaluates the weights of a run, or None where there is nothing to evaluate on; `steps` are those of the run."""
    config = setup.config
    if config.data.eval is None and config.data.eval_text is None:
        return None
    passes = 1 + config.train.eval_first + (steps // config.train.eval_every if config.train.eval_every else 0)
    samples = config.evaluate.training_samples
    if samples and config.head == "score":
        raise UserError(f"evaluate.training_samples: {samples}, but a reward model generates nothing; set it to 0")
    moving = setup.live is not None and setup.live.sync_every is not None
    sets = eval_sets(setup, passes * (1 + moving), moving)
    for data in sets if samples else ():
        data.check_room("evaluate.training_samples")
    judge = judge_of(setup, sets) if samples else None
    return InTraining(setup, sets, eval_text(setup, passes), samples, judge)
