"""Cases of the pairwise losses beside DPO's nearest family: what `cases._case` takes, positional and by name."""

from __future__ import annotations

import numpy as np

from align_jax import losses
from tests.losses import pair_reference as slow

EVERY = (0, 1, 2, 3)
LENGTHS = tuple(np.random.default_rng(5).integers(1, 60, (2, 8)).astype(np.float32))


def _numbers(function):
    """Of rows of arrays: the reference takes Python numbers."""
    return lambda *row, **options: function(*(float(x) if np.ndim(x) == 0 else x for x in row), **options)


def _summed(loss):
    """Over the batch, the last axis, along which the quantiles are taken."""
    return lambda *arrays, **options: loss(*arrays[:4], mask=arrays[4], **options).sum(-1)


def _wpo(chosen, rejected, ref_chosen, ref_rejected, chosen_mean, rejected_mean, **options):
    four = (chosen, rejected, ref_chosen, ref_rejected)
    return losses.wpo_weights(chosen_mean, rejected_mean) * losses.dpo_loss(*four, **options)


def _f_dpo(pairs):
    for name, options in (
        ("f_dpo", {"divergence": "js"}),
        ("f_dpo_reverse_kl", {"divergence": "reverse_kl"}),
        ("f_dpo_forward_kl", {"divergence": "forward_kl", "label_smoothing": 0.1}),
        ("f_dpo_alpha", {"divergence": "alpha", "alpha": 0.3}),
        ("f_dpo_alpha_1", {"divergence": "alpha", "alpha": 1.0}),
        ("f_dpo_alpha_0", {"divergence": "alpha", "alpha": 0.0}),
    ):
        # exp of a log-ratio: small ones, so that float32 has digits for it.
        yield (name, losses.f_dpo_loss, _numbers(slow.f_dpo), [p / 10 for p in pairs], EVERY), {"beta": 0.3, **options}


def _batches() -> tuple[np.ndarray, ...]:
    """Four arrays `[8, 6]` and a mask; a batch of one pair and an empty one are among them."""
    arrays = np.random.default_rng(6).normal(-20, 4, (4, 8, 6)).astype(np.float32)
    mask = np.arange(6) < np.array([6, 5, 1, 0, 6, 3, 2, 4])[:, None]
    mask[0, 1] = mask[4, 5] = False
    return *arrays, mask


def pair_cases(pairs):
    """(positional, options) of every case; pairs: four arrays `[8]`."""
    small, parts = [p / 10 for p in pairs], [np.stack([p, p[::-1] / 2], axis=-1) for p in pairs]
    means = small[:2]
    plain = {
        "apo_zero": {},
        "apo_down": {},
        "bco_pair": {},
        "sppo_hard": {},
        "nca_pair": {},
        "exo_pair": {"label_smoothing": 0.01},
        "discopop": {},
        "dpo_positive": {"penalty": 5.0},
    }
    for name, options in plain.items():
        arrays = small if name == "discopop" else pairs  # exp(-beta h)
        yield (name, getattr(losses, f"{name}_loss"), _numbers(getattr(slow, name)), arrays, EVERY), {"beta": 0.3, **options}
    yield ("bco_pair_delta", losses.bco_pair_loss, _numbers(slow.bco_pair), pairs, EVERY), {"beta": 0.3, "delta": 0.7}
    yield ("discopop_wide", losses.discopop_loss, _numbers(slow.discopop), small, EVERY), {"beta": 0.3, "tau": 0.5}
    yield from _f_dpo(pairs)
    lengthy = (*pairs, *LENGTHS)
    yield ("dpo_norm", losses.dpo_norm_loss, _numbers(slow.dpo_norm), lengthy, EVERY), {"beta": 2.0}
    yield ("r_dpo", losses.r_dpo_loss, _numbers(slow.r_dpo), lengthy, EVERY), {"beta": 0.3, "alpha": 0.05}
    yield ("ld_dpo", losses.ld_dpo_loss, slow.ld_dpo, parts, EVERY), {"beta": 0.3, "alpha": 0.4}
    yield ("cpo", losses.cpo_loss, _numbers(slow.cpo), (*pairs[:2], means[0]), (0, 1, 2)), {"beta": 0.3, "sft_weight": 0.5}
    yield (
        ("cpo_smoothed", losses.cpo_loss, _numbers(slow.cpo), (*pairs[:2], means[0]), (0, 1, 2)),
        {"beta": 0.3, "label_smoothing": 0.1},
    )
    yield ("orpo", losses.orpo_loss, _numbers(slow.orpo), [m / 2 for m in means], (0, 1)), {"beta": 0.3}
    yield ("orpo_near_1", losses.orpo_loss, _numbers(slow.orpo), [m / 40 for m in means], (0, 1)), {"beta": 0.3}
    yield ("wpo_weights", _wpo, _numbers(slow.wpo), (*pairs, *means), (0, 1, 4, 5), (4, 5)), {"beta": 0.3}
    yield (
        ("simpo_smoothed", losses.simpo_loss, _numbers(slow.simpo), means, (0, 1)),
        {"beta": 2.0, "gamma": 0.5, "label_smoothing": 0.1},
    )
    for name in ("aot", "aot_unpaired"):
        loss, reference = _summed(getattr(losses, f"{name}_loss")), getattr(slow, name)
        yield (name, loss, reference, _batches(), EVERY), {"beta": 0.3}
        yield (f"{name}_smoothed", loss, reference, _batches(), EVERY), {"beta": 0.3, "label_smoothing": 0.1}
