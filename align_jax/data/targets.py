"""What is known of a prompt's belief distribution p* from counted answers: a Dirichlet posterior, shrunk where that pays."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy import special

STRENGTHS = np.geomspace(0.1, 10_000, 51)  # that `choose_strength` chooses among, in answers


@dataclasses.dataclass(frozen=True)
class BeliefPosterior:
    """A Dirichlet posterior of a belief distribution.

    Attributes:
      alpha: float64 `[..., N]`, its parameters: answers of each belief, those that the prior counts for included.
    """

    alpha: np.ndarray

    @property
    def mean(self) -> np.ndarray:
        """`alpha_b / sum alpha`, `[..., N]`."""
        return self.alpha / self.alpha.sum(axis=-1, keepdims=True)

    def interval(self, coverage: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
        """The equal-tailed interval of each belief's probability, which is `Beta(alpha_b, sum alpha - alpha_b)`.

        Args:
          coverage: of each interval by itself.

        Returns:
          low, high: `[..., N]`; both 0 for a belief with `alpha_b = 0`, both 1 where all others have that.
        """
        rest = self.alpha.sum(axis=-1, keepdims=True) - self.alpha
        inner = (self.alpha > 0) & (rest > 0)
        a, b = np.where(inner, self.alpha, 1.0), np.where(inner, rest, 1.0)
        tail = (1 - coverage) / 2
        sure = (self.alpha > 0).astype(np.float64)
        return tuple(np.where(inner, special.betaincinv(a, b, q), sure) for q in (tail, 1 - tail))

    def draws(self, count: int, seed: int = 0) -> np.ndarray:
        """Distributions drawn from the posterior, `[count, N]`; of one posterior, not of several."""
        drawn = np.zeros((count, len(self.alpha)))
        some = self.alpha > 0
        drawn[:, some] = np.random.default_rng(seed).dirichlet(self.alpha[some], count)
        return drawn


def posterior(counts: np.ndarray, prior: np.ndarray | float) -> BeliefPosterior:
    """The posterior of a belief distribution: answers of each belief are added to what the prior counts for.

        p* ~ Dirichlet(prior),  n ~ Multinomial(p*)   =>   p* | n ~ Dirichlet(prior + n)

    Args:
      counts: `[..., N]`, answers of each belief; they need not be whole. prior: pseudo-counts, `[..., N]` or one for all.

    Raises:
      ValueError: a negative count or prior, or a prompt without either.

    Example:
      >>> import numpy as np
      >>> known = posterior(np.array([3, 1, 0]), 1.0)
      >>> [f"{x:.3f}" for x in known.mean], [f"{x:.3f}" for x in known.interval()[1]]
      (['0.571', '0.286', '0.143'], ['0.882', '0.641', '0.459'])

    Source: Gelman et al., Bayesian Data Analysis, 3rd edition, section 3.4.
    """
    counts, prior = np.asarray(counts, np.float64), np.asarray(prior, np.float64)
    if (counts < 0).any() or (prior < 0).any():
        raise ValueError("counts and prior must be 0 or more")
    alpha = counts + prior
    if not (alpha.sum(axis=-1) > 0).all():
        raise ValueError("a prompt has neither answers nor a prior")
    return BeliefPosterior(alpha)


@dataclasses.dataclass(frozen=True)
class Strength:
    """How strongly prompts are shrunk towards their mean.

    Attributes:
      value: answers that the mean counts for. gain: how much more likely an answer that was left out is, in nats an answer,
        than with the smallest strength of the grid. at_end: it is the largest of the grid: all prompts seem to be alike.
    """

    value: float
    gain: float
    at_end: bool


def mean_distribution(counts: np.ndarray, base: float = 1.0) -> np.ndarray:
    """The distribution of all answers of several prompts, `(sum_p n_pb + base) / sum_b (...)`: `[P, N]` to `[N]`."""
    total = np.asarray(counts, np.float64).sum(axis=0) + base
    return total / total.sum()


def held_out_likelihood(counts: np.ndarray, strengths: np.ndarray, base: float = 1.0) -> np.ndarray:
    """The log-likelihood of every answer, each predicted from all others (leave one out), by strength.

        sum_{p,b} n_pb log [ (n_pb - 1 + s m_b) / (n_p - 1 + s) ]

    where `m` is the mean distribution of all prompts, without the answer that is left out: the predictive distribution of a
    Dirichlet-multinomial with the prior `s m`.

    Args:
      counts: `[P, N]`, answers of each belief to each prompt. strengths: s, `[S]`. base: pseudo-count of each belief in `m`.

    Returns:
      float64 `[S]`. Answers that nothing else speaks for, with `base` 0, are left out.
    """
    counts = np.asarray(counts, np.float64)
    prompt, belief = np.nonzero(counts)
    own, of_prompt, times = counts[prompt, belief], counts.sum(axis=1)[prompt], counts[prompt, belief]
    total = counts.sum(axis=0) + base
    # A count below 1 (answers that belong to several beliefs in part) is left out whole.
    less = np.minimum(own, 1.0)
    mean = (total[belief] - less) / (total.sum() - less)
    s = np.asarray(strengths, np.float64)[:, None]
    predicted = (own - less + s * mean) / (of_prompt - less + s)
    known = (own - less > 0) | (mean > 0)
    return np.sum(times * np.log(np.where(known, predicted, 1.0)), axis=1)


def choose_strength(pools: Sequence[np.ndarray], base: float = 1.0, strengths: np.ndarray = STRENGTHS) -> Strength:
    """The strength under which answers that are left out are the most likely, one for all pools.

    Args:
      pools: each `[P, N]`, the prompts that share a mean; N may differ. base: see `held_out_likelihood`.

    Raises:
      ValueError: no answers.

    Example:
      >>> import numpy as np
      >>> alike, apart = np.array([[30, 70]] * 9), np.array([[100, 0], [0, 100]] * 5)
      >>> choose_strength([alike]).value > 1000, choose_strength([apart]).value < 1
      (True, True)
    """
    pools = [np.asarray(pool, np.float64) for pool in pools]
    answers = sum(pool.sum() for pool in pools)
    if not answers:
        raise ValueError("there are no answers to choose a strength by")
    likelihood = sum(held_out_likelihood(pool, strengths, base) for pool in pools)
    # Of strengths that are as good (no prompt has two answers) the largest: then only the mean is known.
    best = int(np.flatnonzero(likelihood >= likelihood.max() - 1e-9 * answers)[-1])
    return Strength(float(strengths[best]), float((likelihood[best] - likelihood[0]) / answers), best == len(strengths) - 1)
