"""The pairwise losses of `pair_cases` once more, slowly: numbers in, a number out, the formula as it is printed."""

from __future__ import annotations

import math

import numpy as np


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > -700 else 0.0


def log_sigmoid(x: float) -> float:
    return -float(np.logaddexp(0.0, -x))


def _logistic(x: float, eps: float = 0.0) -> float:
    return -(1 - eps) * log_sigmoid(x) - eps * log_sigmoid(-x)


def apo_zero(chosen, rejected, ref_chosen, ref_rejected, *, beta):
    return 1 - sigmoid(beta * (chosen - ref_chosen)) + sigmoid(beta * (rejected - ref_rejected))


def apo_down(chosen, rejected, ref_chosen, ref_rejected, *, beta):
    h = (chosen - ref_chosen) - (rejected - ref_rejected)
    return sigmoid(beta * (chosen - ref_chosen)) + 1 - sigmoid(beta * h)


def bco_pair(chosen, rejected, ref_chosen, ref_rejected, *, beta, delta=0.0):
    first, second = beta * (chosen - ref_chosen) - delta, beta * (rejected - ref_rejected) - delta
    return -log_sigmoid(first) - log_sigmoid(-second)


def sppo_hard(chosen, rejected, ref_chosen, ref_rejected, *, beta):
    return (chosen - ref_chosen - 1 / (2 * beta)) ** 2 + (rejected - ref_rejected + 1 / (2 * beta)) ** 2


def nca_pair(chosen, rejected, ref_chosen, ref_rejected, *, beta):
    first, second = beta * (chosen - ref_chosen), beta * (rejected - ref_rejected)
    return -log_sigmoid(first) - 0.5 * log_sigmoid(-first) - 0.5 * log_sigmoid(-second)


def exo_pair(chosen, rejected, ref_chosen, ref_rejected, *, beta, label_smoothing):
    q = sigmoid(beta * (chosen - ref_chosen - rejected + ref_rejected))
    return q * (math.log(q) - math.log(1 - label_smoothing)) + (1 - q) * (math.log(1 - q) - math.log(label_smoothing))


def discopop(chosen, rejected, ref_chosen, ref_rejected, *, beta, tau=0.05):
    x = beta * (chosen - ref_chosen - rejected + ref_rejected)
    return (1 - sigmoid(x / tau)) * _logistic(x) + sigmoid(x / tau) * math.exp(-x)


def f_dpo(chosen, rejected, ref_chosen, ref_rejected, *, beta, divergence, alpha=0.5, label_smoothing=0.0):
    """f'(t) of t = pi / pi_ref, as each is printed."""
    derivative = {
        "reverse_kl": lambda t: math.log(t),
        "forward_kl": lambda t: 1 - 1 / t,
        "js": lambda t: math.log(2 * t / (1 + t)),
        "alpha": lambda t: (t ** (alpha - 1) - 1) / (alpha - 1) if alpha < 1 else math.log(t),
    }[divergence]
    x = beta * (derivative(math.exp(chosen - ref_chosen)) - derivative(math.exp(rejected - ref_rejected)))
    return _logistic(x, label_smoothing)


def dpo_norm(chosen, rejected, ref_chosen, ref_rejected, chosen_length, rejected_length, *, beta):
    return _logistic(beta * ((chosen - ref_chosen) / chosen_length - (rejected - ref_rejected) / rejected_length))


def r_dpo(chosen, rejected, ref_chosen, ref_rejected, chosen_length, rejected_length, *, beta, alpha):
    h = (chosen - ref_chosen) - (rejected - ref_rejected)
    return _logistic(beta * h + alpha * (chosen_length - rejected_length))


def ld_dpo(chosen, rejected, ref_chosen, ref_rejected, *, beta, alpha):
    whole = [shared + alpha * others for shared, others in (chosen, rejected, ref_chosen, ref_rejected)]
    return _logistic(beta * (whole[0] - whole[1] - whole[2] + whole[3]))


def dpo_positive(chosen, rejected, ref_chosen, ref_rejected, *, beta, penalty):
    h = (chosen - ref_chosen) - (rejected - ref_rejected)
    return _logistic(beta * (h - penalty * max(0.0, ref_chosen - chosen)))


def cpo(chosen, rejected, chosen_mean, *, beta, label_smoothing=0.0, sft_weight=1.0):
    return _logistic(beta * (chosen - rejected), label_smoothing) - sft_weight * chosen_mean


def orpo(chosen_mean, rejected_mean, *, beta, sft_weight=1.0):
    odds = [math.exp(mean) / (1 - math.exp(mean)) for mean in (chosen_mean, rejected_mean)]
    return -sft_weight * chosen_mean - beta * log_sigmoid(math.log(odds[0] / odds[1]))


def wpo(chosen, rejected, ref_chosen, ref_rejected, chosen_mean, rejected_mean, *, beta):
    h = (chosen - ref_chosen) - (rejected - ref_rejected)
    return math.exp(chosen_mean) * math.exp(rejected_mean) * _logistic(beta * h)


def _quantile_by_quantile(values, others, beta, eps) -> float:
    """The sum over the pairs of a batch."""
    return sum(_logistic(beta * (a - b), eps) for a, b in zip(sorted(values), sorted(others), strict=True))


def aot(chosen, rejected, ref_chosen, ref_rejected, mask, *, beta, label_smoothing=0.0):
    chosen, rejected, ref_chosen, ref_rejected = (a[mask] for a in (chosen, rejected, ref_chosen, ref_rejected))
    return _quantile_by_quantile(chosen - rejected, ref_chosen - ref_rejected, beta, label_smoothing)


def aot_unpaired(chosen, rejected, ref_chosen, ref_rejected, mask, *, beta, label_smoothing=0.0):
    chosen, rejected, ref_chosen, ref_rejected = (a[mask] for a in (chosen, rejected, ref_chosen, ref_rejected))
    return _quantile_by_quantile(chosen - ref_chosen, rejected - ref_rejected, beta, label_smoothing)


def simpo(chosen_mean, rejected_mean, *, beta, gamma, label_smoothing=0.0):
    return _logistic(beta * (chosen_mean - rejected_mean) - gamma, label_smoothing)
