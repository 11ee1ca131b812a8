"""A weighted mixture of objectives over the same responses, by one forward pass."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math

import jax
import jax.numpy as jnp

from align_jax import registry
from align_jax.batch import GroupLabels
from align_jax.data.arrange import Arrangement, Beliefs, Group, Pair, Sft, SplitPair, Unpaired
from align_jax.errors import UserError
from align_jax.objectives.base import Metrics, Objective, weighted
from align_jax.objectives.signature_metrics import SQUARED, loss_square
from align_jax.objectives.views import can_see, seen_as


@dataclasses.dataclass(frozen=True)
class Mixture(Objective):
    """The weighted sum of the losses that several objectives would have alone, `L = sum_i w_i L_i`.

    Each `L_i` is the mean that objective i takes by itself (`sft` over tokens, `mpo` over groups with contrast), over the whole
    step, however it is cut into microbatches. Terms read the same responses: where one takes pairs and another the whole set,
    the pair is the best and the worst of the set; `sft` takes the best, or of single responses the desirable ones.

    Metrics: `loss` is the sum; `NAME/loss` and whatever begins with `loss` is that of a term; every other metric stands under
    its usual name for the first term that reports it, and under `NAME/...` for the others, but for those of log-probs alone
    (`logps/...`, `drift/...`) that would be the same number again.

    Attributes:
      terms: the objectives. weights: w, one for each, 0 or larger; a term of weight 0 is measured only.
    """

    terms: tuple[Objective, ...]
    weights: tuple[float, ...]

    def __post_init__(self):
        if not self.terms or len(self.terms) != len(self.weights):
            raise UserError(f"objective: {len(self.terms)} terms and {len(self.weights)} weights; give each term a weight")
        if any(isinstance(term, Mixture) for term in self.terms):
            raise UserError("objective: a term is a mixture itself; give the terms of that, with their weights multiplied")
        for i, weight in enumerate(self.weights):
            if not (math.isfinite(weight) and weight >= 0):
                raise UserError(f"objective.{i}.weight: {weight!r} must be a finite number, 0 or larger")
        if not any(self.weights):
            raise UserError("objective.0.weight: nothing is learned where all weights are 0; raise one")
        _check_heads(self.names, self.terms)
        _ = self.arrangement

    @property
    def name(self) -> str:
        """The terms, such as `dpo+sft`."""
        return "+".join(self.names)

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        """What the terms are called in metrics: their names, `dpo_2` for a second `dpo`."""
        plain = [registry.spelled(term, __package__).rpartition(":")[2] for term in self.terms]
        found: list[str] = []
        for name in plain:
            numbered = (f"{name}_{n}" for n in itertools.count(2))
            found.append(name if name not in found else next(n for n in numbered if n not in (*found, *plain)))
        return tuple(found)

    @functools.cached_property
    def arrangement(self) -> Arrangement:
        """That of the term whose responses all others can read; UserError where there is none."""
        wanted = [term.arrangement for term in self.terms]
        for have in wanted:
            if all(can_see(want, have) for want in wanted):
                return have
        pairs = itertools.combinations(zip(self.names, wanted, strict=True), 2)
        apart = lambda a, b: not can_see(a[1], b[1]) and not can_see(b[1], a[1])  # noqa: E731
        (first, one), (second, other) = next(pair for pair in pairs if apart(*pair))
        hint = "; objective.sft_weight of gdpo adds the likelihood of its texts" if "gdpo" in (first, second) else ""
        raise UserError(
            f"objective: {first} and {second} cannot be mixed: {first} learns from {_data_of(one)}, {second} from "
            f"{_data_of(other)}, and a mixture scores the same responses once for all its terms{hint}"
        )

    @property
    def head(self) -> str:
        return self.terms[0].head

    @property
    def learning_rate(self) -> float:
        """The smallest of the terms'."""
        return min(term.learning_rate for term in self.terms)

    @property
    def beta(self) -> float:
        """That of the first term that has one, for implicit rewards; AttributeError where none has."""
        for term in self.terms:
            if hasattr(term, "beta"):
                return term.beta
        raise AttributeError(f"no term of {self.name} has a beta")

    @property
    def needs_reference(self) -> bool:
        return any(term.needs_reference for term in self.terms)

    @property
    def needs_contrast(self) -> bool:
        return all(term.needs_contrast for term, weight in zip(self.terms, self.weights, strict=True) if weight)

    @property
    def needs_collisions(self) -> bool:
        return any(term.needs_collisions for term in self.terms)

    def statistics(self, logps: jax.Array, batch: GroupLabels) -> tuple[jax.Array, jax.Array]:
        """`[2 n]` each: the terms' own statistics, and how much their losses weigh for each group of the batch."""
        sums, counts, sizes = [], [], []
        for i, term in enumerate(self.terms):
            seen = self._seen(i, logps, batch)
            own = term.statistics(*seen)
            total, count = (jnp.zeros(()), jnp.ones(())) if own is None else own
            sums.append(total)
            counts.append(count)
            sizes.append(jnp.sum(term(*seen, None if own is None else jnp.zeros(()))["loss"][1]))
        groups = jnp.sum(jnp.any(jnp.asarray(batch.mask), axis=-1).astype(jnp.float32))
        both = jnp.stack([*sums, *sizes]), jnp.stack([*counts, *(groups for _ in sizes)])
        return tuple(jax.lax.stop_gradient(x.astype(jnp.float32)) for x in both)

    def __call__(self, logps: jax.Array, batch: GroupLabels, statistic: jax.Array | None = None) -> Metrics:
        if statistic is None:
            total, count = self.statistics(logps, batch)
            statistic = total / jnp.maximum(count, 1)
        own, sizes = jnp.split(statistic, 2)
        metrics: Metrics = {}
        first: dict[str, int] = {}  # which term reports a metric under its usual name
        loss = jnp.zeros(len(logps))
        for i, (name, term, weight) in enumerate(zip(self.names, self.terms, self.weights, strict=True)):
            seen = self._seen(i, logps, batch)
            found = term(*seen, None if term.statistics(*seen) is None else own[i])
            if weight:
                # The batch's mean is over groups, that of the term over whatever it counts.
                loss = loss + weight * found["loss"][0] / jnp.where(sizes[i] > 0, sizes[i], 1)
            for key, entry in found.items():
                usual = first.setdefault(key, i) == i and not key.startswith("loss")
                if key != SQUARED and (usual or not self._repeats(key, first[key], i)):
                    metrics[key if usual else f"{name}/{key}"] = entry
        exists = jnp.any(jnp.asarray(batch.mask), axis=-1)
        return {"loss": weighted(loss, exists), **metrics, **loss_square(loss, exists)}

    def _seen(self, i: int, logps: jax.Array, batch: GroupLabels) -> tuple[jax.Array, GroupLabels]:
        return seen_as(self.terms[i].arrangement, self.arrangement, logps, batch)

    def _repeats(self, key: str, first: int, i: int) -> bool:
        """Whether a metric of term i is what the term that reported it first has reported."""
        return key.startswith(("logps/", "drift/")) and self.terms[first].arrangement == self.terms[i].arrangement


def _check_heads(names: tuple[str, ...], terms: tuple[Objective, ...]) -> None:
    for name, term in zip(names[1:], terms[1:], strict=True):
        if term.head != terms[0].head:
            first, other = ({"score": "a reward model"}.get(one.head, "a language model") for one in (terms[0], term))
            raise UserError(f"objective: {names[0]} and {name} cannot be mixed: {names[0]} trains {first}, {name} {other}")


def _data_of(arrangement: Arrangement) -> str:
    """What an arrangement is of, for users."""
    words = {
        Pair: "pairs",
        SplitPair: "pairs cut where the shorter response ends",
        Group: "sets of scored responses",
        Unpaired: "single responses that are desirable or not",
        Sft: "good responses alone",
    }
    if isinstance(arrangement, Beliefs):
        return f"beliefs and texts (preference {arrangement.preference})"
    return words.get(type(arrangement), f"what {type(arrangement).__name__} arranges")
