"""Other functions of a pair's margin than DPO's, and other divergences than its reverse KL.

Throughout, `h = r_c - r_r` with the log-ratios `r = log pi - log pi_ref` of the chosen and the rejected response.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from align_jax.losses.checks import as_floats, check_between, check_label_smoothing, check_positive
from align_jax.losses.ratios import log_ratios, logit

F_DIVERGENCES = ("reverse_kl", "forward_kl", "js", "alpha")
_LARGEST = 80.0  # float32 ends near exp(88)


def exo_pair_loss(
    chosen_logps: ArrayLike,
    rejected_logps: ArrayLike,
    ref_chosen_logps: ArrayLike,
    ref_rejected_logps: ArrayLike,
    *,
    beta: float,
    label_smoothing: float = 1e-3,
) -> jax.Array:
    """Efficient Exact Optimization on pairs: the KL divergence of the policy's preference from the recorded one.

        q = sigmoid(beta h)
        L = q [log q - log(1 - eps)] + (1 - q) [log(1 - q) - log eps]

    Least, 0, where the policy prefers as the smoothed label does, `beta h = log((1 - eps) / eps)`.

    Args:
      chosen_logps, rejected_logps: `[B]`, log-probs summed over the response's tokens.
      ref_chosen_logps, ref_rejected_logps: `[B]`, the same under the reference.
      beta: > 0, strength of the pull to the reference.
      label_smoothing: eps in (0, 0.5), probability that a preference was recorded the wrong way round; 0 has no finite loss.

    Returns:
      float32 `[B]`.

    Raises:
      ValueError: the shapes differ, or a Python number is out of range.

    Example:
      >>> import numpy as np
      >>> from align_jax import losses
      >>> chosen, rejected, ref = np.array([-4.0]), np.array([-6.0]), np.array([-5.0])
      >>> f"{losses.exo_pair_loss(chosen, rejected, ref, ref, beta=0.5)[0]:.4f}"
      '1.2763'

    Source: arXiv 2402.00856, Eq. 16; TRL's `exo_pair`.
    """
    check_between("label_smoothing", label_smoothing, 0, 0.5)
    x = logit(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, beta=beta)
    right = jax.nn.sigmoid(x) * (jax.nn.log_sigmoid(x) - jnp.log1p(-label_smoothing))
    return right + jax.nn.sigmoid(-x) * (jax.nn.log_sigmoid(-x) - jnp.log(label_smoothing))


def discopop_loss(
    chosen_logps: ArrayLike,
    rejected_logps: ArrayLike,
    ref_chosen_logps: ArrayLike,
    ref_rejected_logps: ArrayLike,
    *,
    beta: float,
    tau: float = 0.05,
) -> jax.Array:
    """DiscoPOP: a blend of the logistic and the exponential loss that a language model found.

        x = beta h
        L = [1 - sigmoid(x / tau)] [- log sigmoid(x)] + sigmoid(x / tau) exp(-x)

    The loss is (ln 2 + 1) / 2 at the reference. It is not convex: near h = 0 it has a small hill.

    Args:
      chosen_logps, rejected_logps: `[B]`, log-probs summed over the response's tokens.
      ref_chosen_logps, ref_rejected_logps: `[B]`, the same under the reference.
      beta: > 0, strength of the pull to the reference.
      tau: in (0, 1], width of the blend in logit units.

    Returns:
      float32 `[B]`.

    Raises:
      ValueError: the shapes differ, or a Python number is out of range.

    Example:
      >>> import numpy as np
      >>> from align_jax import losses
      >>> chosen, rejected, ref = np.array([-4.0]), np.array([-6.0]), np.array([-5.0])
      >>> f"{losses.discopop_loss(chosen, rejected, ref, ref, beta=0.5)[0]:.4f}"
      '0.3679'

    Source: arXiv 2406.08414, Eq. 5 (log-ratio modulated loss); TRL's `discopop`.
    """
    check_between("tau", tau, 0, 1, closed_high=True)
    x = logit(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, beta=beta)
    # One exponential of both factors: apart they are 0 times infinity for a large negative margin.
    exponential = jnp.exp(jax.nn.log_sigmoid(x / tau) - x)
    return jax.nn.sigmoid(-x / tau) * jax.nn.softplus(-x) + exponential


def f_dpo_loss(
    chosen_logps: ArrayLike,
    rejected_logps: ArrayLike,
    ref_chosen_logps: ArrayLike,
    ref_rejected_logps: ArrayLike,
    *,
    beta: float,
    divergence: str,
    alpha: float = 0.5,
    label_smoothing: float = 0.0,
) -> jax.Array:
    """f-DPO: DPO whose pull to the reference is another divergence than the reverse KL.

        s(r) = f'(exp r)
        L    = - (1 - eps) log sigmoid(beta [s(r_c) - s(r_r)]) - eps log sigmoid(-beta [s(r_c) - s(r_r)])

    `s` is `f_divergence_score`; with `reverse_kl` this is `dpo_loss`. The loss is ln 2 at the reference.

    Args:
      chosen_logps, rejected_logps: `[B]`, log-probs summed over the response's tokens.
      ref_chosen_logps, ref_rejected_logps: `[B]`, the same under the reference.
      beta: > 0, strength of the pull to the reference.
      divergence: `reverse_kl`, `forward_kl`, `js` (Jensen-Shannon) or `alpha`.
      alpha: a Python number in [0, 1], of the alpha divergence: 1 is the reverse KL, 0 the forward KL; the paper's alpha is 1
        minus it.
      label_smoothing: eps in [0, 0.5), probability that a preference was recorded the wrong way round.

    Returns:
      float32 `[B]`.

    Raises:
      ValueError: the shapes differ, or a Python number is out of range.

    Example:
      >>> import numpy as np
      >>> from align_jax import losses
      >>> chosen, rejected, ref = np.array([-4.0]), np.array([-6.0]), np.array([-5.0])
      >>> f"{losses.f_dpo_loss(chosen, rejected, ref, ref, beta=0.5, divergence='js')[0]:.4f}"
      '0.4741'

    Source: arXiv 2309.16240; TRL's `f_divergence_type`.
    """
    check_label_smoothing(label_smoothing)
    check_positive("beta", beta)
    chosen, rejected = log_ratios(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps)
    how = {"divergence": divergence, "alpha": alpha}
    x = beta * (f_divergence_score(chosen, **how) - f_divergence_score(rejected, **how))
    return (1 - label_smoothing) * jax.nn.softplus(-x) + label_smoothing * jax.nn.softplus(x)


def f_divergence_score(log_ratios: ArrayLike, *, divergence: str, alpha: float = 0.5) -> jax.Array:
    """The derivative of a divergence's f at the ratio of policy to reference: what takes the log-ratio's place in f-DPO.

        reverse_kl: r      forward_kl: 1 - exp(-r)      js: ln 2 + log sigmoid(r)      alpha: (exp((a - 1) r) - 1) / (a - 1)

    Args:
      log_ratios: `log pi - log pi_ref`, any shape; 0 has the score 0.
      divergence: one of those above. alpha: a, a Python number in [0, 1]; 1 is `reverse_kl`, 0 is `forward_kl`.

    Returns:
      float32; exponents are cut at 80, where the gradient becomes 0.

    Raises:
      ValueError: an unknown divergence, or alpha out of range.

    Example:
      >>> import numpy as np
      >>> from align_jax import losses
      >>> [f"{losses.f_divergence_score(-1.0, divergence=d):.4f}" for d in ("reverse_kl", "forward_kl", "js", "alpha")]
      ['-1.0000', '-1.7183', '-0.6201', '-1.2974']

    Source: arXiv 2309.16240, the table of divergences; alpha as in TRL.
    """
    if divergence not in F_DIVERGENCES:
        raise ValueError(f"divergence must be one of {', '.join(F_DIVERGENCES)}, got {divergence!r}")
    check_between("alpha", alpha, 0, 1, closed_low=True, closed_high=True)
    (ratios,) = as_floats(log_ratios=log_ratios)
    if divergence == "js":
        return jnp.log(2.0) + jax.nn.log_sigmoid(ratios)
    power = {"reverse_kl": 0.0, "forward_kl": -1.0}.get(divergence, alpha - 1)
    # The limit of the quotient: below it, float32 has no digits for the difference.
    if abs(power) < 1e-6:
        return ratios
    return jnp.expm1(jnp.minimum(power * ratios, _LARGEST)) / power
