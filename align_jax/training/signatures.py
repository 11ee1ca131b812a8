"""How training fails, as both papers list it: a table of signatures, each a number with a limit; docs/signatures.md."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping

Values = Mapping[str, float]
WINDOW = 10  # steps whose median counts: metrics of a step are those of its few groups
SETTLED = 0.1  # part of the run before which nothing is judged, beside the warm-up


@dataclasses.dataclass(frozen=True)
class Signature:
    """One way in which training fails.

    Attributes:
      name: in the log, in `signatures.jsonl` and in docs/signatures.md.
      metrics: that it is judged by, as a step logs them; of an evaluation they begin with `eval/`.
      number: the metrics -> what is compared with the limit; NaN where nothing can be said.
      words: what the number is. limit: where it is no longer well. above: whether larger numbers are the bad ones.
      means: what it means. remedy: what to try. reason: why the limit is where it is.
      steps, evaluations: whether metrics of steps, or of evaluations, are judged.
      part: of the run that must have passed before it is said.
      pulled: only of objectives that hold the model at a reference: supervised training leaves it, and should.
    """

    name: str
    metrics: tuple[str, ...]
    words: str
    limit: float
    above: bool
    means: str
    remedy: str
    reason: str
    number: Callable[[Values], float] | None = None
    steps: bool = True
    evaluations: bool = True
    part: float = 0.0
    pulled: bool = False

    def value(self, metrics: Values, prefix: str = "") -> float:
        """The number, of metrics whose names begin with `prefix`; NaN where one is absent or nothing can be said."""
        found = {name: metrics.get(prefix + name) for name in self.metrics}
        if any(value is None or not math.isfinite(value) for value in found.values()):
            return math.nan
        return self.number(found) if self.number else found[self.metrics[0]]

    def is_bad(self, value: float) -> bool:
        """Whether a number is beyond the limit."""
        return value > self.limit if self.above else value < self.limit


def _width(m: Values) -> float:
    """Of beliefs that have the mass: of others the renormalised distribution says nothing."""
    there = m["beliefs/mass"] >= 0.5 and m["beliefs/target_entropy"] > 0.1
    return m["beliefs/entropy"] / m["beliefs/target_entropy"] if there else math.nan


def _above_chance(m: Values) -> float:
    chance = m["consistency/chance"]
    return (m["consistency/accuracy"] - chance) / (1 - chance) if chance < 1 else math.nan


def _minority_share(m: Values) -> float:
    majority, minority = (m[f"rewards/margins/{who}"] for who in ("majority", "minority"))
    return minority / majority if majority > 0.3 else math.nan


def _chosen_falls(m: Values) -> float:
    return m["drift/chosen"] if m["rewards/margins"] > 0 else math.nan


SIGNATURES = (
    Signature(
        name="narrow_beliefs",
        metrics=("beliefs/entropy", "beliefs/target_entropy", "beliefs/mass"),
        words="entropy of the predicted beliefs over the group's",
        limit=0.7,
        above=False,
        means="the predicted beliefs are narrower than the group's: minorities vanish",
        remedy="raise objective.calibration_weight, lower the learning rate, or train calibration longer",
        reason="94/2/2/2 predicted where the group is 90/3/3/3; runs on real opinions end near 1",
        number=_width,
    ),
    Signature(
        name="mass_off_beliefs",
        metrics=("beliefs/mass",),
        words="probability that is on the beliefs at all",
        limit=0.9,
        above=False,
        means="the model often begins its answer with something that is no belief",
        remedy="train longer, or raise objective.calibration_weight; keep objective.renormalize off, which does not punish it",
        reason="one answer in ten without a belief; healthy runs end at 0.99, supervised ones at 0.92",
        evaluations=False,
        part=0.9,
    ),
    Signature(
        name="texts_off_belief",
        metrics=("consistency/accuracy", "consistency/chance"),
        words="how far the texts express their belief, from 0 (chance) to 1",
        limit=0.1,
        above=False,
        means="by the judge, texts do not say the belief that they were conditioned on",
        remedy="supervised training first, objective.sft_weight, or a better judge (see its accuracy on held-out texts)",
        reason="a tenth of what there is above chance, which intervals over 100 prompts tell from nothing",
        number=_above_chance,
        steps=False,
    ),
    Signature(
        name="repeated_statements",
        metrics=("consistency/repeats_statement",),
        words="share of texts that repeat a belief statement",
        limit=0.1,
        above=True,
        means="texts go on with belief statements instead of saying something",
        remedy="supervised training first, objective.sft_weight, a lower objective.belief_weight",
        reason="none of 22,000 texts of people do it, and 0.04 of those of a tiny model after gdpo",
        steps=False,
    ),
    Signature(
        name="cancelled_gradients",
        metrics=("gradients/cancelled",),
        words="part of the gradient weights that pairs turned round take back",
        limit=0.2,
        above=True,
        means="the same two texts are preferred either way in one batch, and the pairs cancel",
        remedy="an objective that conditions on beliefs (gdpo), or leave such pairs out",
        reason="a fifth of the training signal; 0 where no two pairs are each other turned round",
        evaluations=False,
    ),
    Signature(
        name="minority_falls",
        metrics=("rewards/margins/majority", "rewards/margins/minority"),
        words="margin of the minority's pairs over the majority's",
        limit=-0.5,
        above=False,
        means="what the majority's pairs gain the minority's lose: their gradients pull against one another",
        remedy="condition on beliefs (gdpo), a smaller objective.beta, or more rows of minorities",
        reason="pairs that only conflict give -1, independent ones 1; on real opinions it is -0.1 to 0.4 (steps have too few "
        "pairs of minorities)",
        number=_minority_share,
        steps=False,
    ),
    Signature(
        name="chosen_falls",
        metrics=("drift/chosen", "rewards/margins"),
        words="nats per token by which chosen responses moved from the reference",
        limit=-0.1,
        above=False,
        means="chosen responses become less likely while margins grow: the mass goes to neither of the two",
        remedy="a likelihood term (objective.sft_weight; nca for infonca), a larger objective.beta, a lower learning rate",
        reason="10 nats on 100 tokens: 20,000 times less likely; in healthy runs it rises",
        number=_chosen_falls,
    ),
    Signature(
        name="loss_varies",
        metrics=("loss/std",),
        words="standard deviation in nats of the loss between the prompts of a step",
        limit=2.0,
        above=True,
        means="a few prompts decide the step, as where scores are not on one scale, or are wrong",
        remedy="look at the scores (align-jax data check), bring them to one scale, or lower objective.alpha",
        reason="seven times in odds; the loss of 8 equal answers is 2.1 at most, healthy runs have 0.1 to 1",
        evaluations=False,
    ),
    Signature(
        name="kl_runs_away",
        metrics=("drift/chosen",),
        words="nats per token, up or down, by which chosen responses moved from the reference",
        limit=0.5,
        above=True,
        means="the model is far from the reference, where implicit rewards mean little",
        remedy="a larger objective.beta, a lower learning rate, fewer steps",
        reason="every token 1.6 times as likely or unlikely; healthy runs of tiny models have 0.2 to 0.35; rejected may fall",
        number=lambda m: abs(m["drift/chosen"]),
        pulled=True,
    ),
    Signature(
        name="sampled_kl_runs_away",
        metrics=("kl/reference_per_token",),
        words="nats per token between the model's own samples and the reference",
        limit=0.5,
        above=True,
        means="what the model says is unlike anything that the reference says",
        remedy="a larger objective.beta, a lower learning rate, fewer steps",
        reason="as kl_runs_away; measured 0.38 to 0.44 after mpo and dpo on a tiny model, 1.2 after supervised training",
        pulled=True,
        steps=False,
    ),
    Signature(
        name="one_answer",
        metrics=("sets/top_accepted",),
        words="share of the accepted set's mass that one answer has",
        limit=0.95,
        above=True,
        means="of several accepted answers the model keeps one, and its variety is lost",
        remedy="a lower learning rate, fewer steps, or scores as soft targets (infonca, nca)",
        reason="1/n of n answers at the reference; MPO is indifferent within the set, and healthy runs have 0.7 to 0.9",
    ),
)
