"""Pairwise losses against TRL's own code, where it is installed: DPOTrainer's loss, CPOTrainer's and ORPOTrainer's."""

from __future__ import annotations

import collections
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align_jax import losses
from align_jax.batch import GroupLabels
from align_jax.objectives import OBJECTIVES

BETA, EPS, ALPHA = 0.1, 0.1, 0.3
RNG = np.random.default_rng(7)
LENGTHS = RNG.integers(2, 9, (2, 6))  # of chosen and rejected
TOKENS = 9


def token_logps():
    """Per-token log-probs `[12, 9]`, chosen ones first, 0 behind the ends, of policy and reference."""
    there = np.arange(TOKENS) < LENGTHS.reshape(-1, 1)
    return tuple(np.where(there, -RNG.exponential(1.0, (12, TOKENS)), 0.0).astype(np.float32) for _ in range(2))


POLICY, REF = token_logps()
LOG_SUM_SQUARES = np.where(POLICY < 0, -RNG.exponential(0.5, POLICY.shape), 0.0).astype(np.float32)


def parts(tokens):
    """Chosen and rejected `[6, 2]`: what counts whole in LD-DPO, and what is behind it."""
    shared = np.arange(TOKENS) < np.tile(LENGTHS.min(0), 2)[:, None]
    both = jnp.stack([jnp.sum(jnp.where(shared, tokens, 0), -1), jnp.sum(jnp.where(shared, 0, tokens), -1)], -1)
    return both[:6], both[6:]


def four(tokens):
    sums = [jnp.sum(a, axis=-1) for a in (tokens, jnp.asarray(REF))]
    return sums[0][:6], sums[0][6:], sums[1][:6], sums[1][6:]


def aligned_means(tokens):
    means = jnp.sum(tokens - LOG_SUM_SQUARES, axis=-1) / LENGTHS.reshape(-1)
    return means[:6], means[6:]


def of_four(loss, **options):
    return lambda tokens: loss(*four(tokens), beta=BETA, **options)


def lengthy(loss, **options):
    return lambda tokens: loss(*four(tokens), *LENGTHS.astype(np.float32), beta=BETA, **options)


def divergence(name, **options):
    return of_four(losses.f_dpo_loss, divergence=name, **options)


def js(name, **options):
    """An objective with the Jensen-Shannon divergence, of the sums of tokens."""
    objective = OBJECTIVES[name](beta=BETA, divergence="js", **options)
    labels = GroupLabels(jnp.ones((6, 2), bool), LENGTHS.T, {})

    def loss(tokens):
        sums = [jnp.sum(jnp.asarray(a), axis=-1).reshape(2, 6).T for a in (tokens, REF)]
        return objective.loss(*objective.inputs(*sums, labels))

    return loss


# ours, a function of the policy's tokens; TRL's loss type; attributes of its trainer
CASES = {
    "sigmoid": (of_four(losses.dpo_loss), "sigmoid", {}),
    "hinge": (of_four(losses.hinge_loss), "hinge", {}),
    "robust": (of_four(losses.robust_dpo_loss, label_smoothing=EPS), "robust", {}),
    "exo_pair": (of_four(losses.exo_pair_loss, label_smoothing=EPS), "exo_pair", {}),
    "nca_pair": (of_four(losses.nca_pair_loss), "nca_pair", {}),
    "bco_pair": (of_four(losses.bco_pair_loss), "bco_pair", {}),
    "sppo_hard": (of_four(losses.sppo_hard_loss), "sppo_hard", {}),
    "aot": (of_four(losses.aot_loss, label_smoothing=EPS), "aot", {}),
    "aot_unpaired": (of_four(losses.aot_unpaired_loss, label_smoothing=EPS), "aot_unpaired", {}),
    "apo_zero": (of_four(losses.apo_zero_loss), "apo_zero", {}),
    "apo_down": (of_four(losses.apo_down_loss), "apo_down", {}),
    "discopop": (of_four(losses.discopop_loss, tau=0.05), "discopop", {}),
    "sigmoid_norm": (lengthy(losses.dpo_norm_loss), "sigmoid_norm", {}),
    "forward_kl": (divergence("forward_kl"), "sigmoid", {"f_divergence_type": "forward_kl"}),
    "js": (divergence("js"), "sigmoid", {"f_divergence_type": "js_divergence"}),
    "alpha": (divergence("alpha", alpha=ALPHA), "sigmoid", {"f_divergence_type": "alpha_divergence"}),
    **{
        f"js of {name}": (js(name, **own), of_trl, {"f_divergence_type": "js_divergence"})
        for name, of_trl, own in (
            ("hinge", "hinge", {}),
            ("ipo", "ipo", {"average_tokens": True}),
            ("robust_dpo", "robust", {"label_smoothing": EPS}),
            ("exo_pair", "exo_pair", {"label_smoothing": EPS}),
            ("discopop", "discopop", {}),
            ("dpo_norm", "sigmoid_norm", {}),
        )
    },
    "ld": (
        lambda tokens: losses.ld_dpo_loss(*parts(tokens), *parts(REF), beta=BETA, alpha=ALPHA),
        "sigmoid",
        {"ld_alpha": ALPHA},
    ),
    "wpo": (
        lambda tokens: losses.wpo_weights(*aligned_means(tokens)) * losses.dpo_loss(*four(tokens), beta=BETA),
        "sigmoid",
        {"use_weighting": True},
    ),
}


@pytest.fixture(scope="module")
def trl():
    pytest.importorskip("torch")
    return pytest.importorskip("trl", exc_type=ImportError)


def of_trl(trl, loss_type, options):
    """Loss and gradient `[12, 9]` of DPOTrainer's code, on tokens that no model made."""
    import torch

    tokens = torch.tensor(POLICY, requires_grad=True)
    mask = torch.tensor(np.concatenate([np.zeros((12, 1)), np.arange(TOKENS) < LENGTHS.reshape(-1, 1)], axis=1)).long()
    ref = torch.tensor(np.asarray(parts(REF))) if "ld_alpha" in options else torch.tensor(REF.sum(-1).reshape(2, 6))
    ref = ref[..., 0] + ALPHA * ref[..., 1] if "ld_alpha" in options else ref
    zeros = torch.zeros_like(tokens)
    outputs = SimpleNamespace(log_probs=tokens, log_sum_sq_probs=torch.tensor(LOG_SUM_SQUARES), entropy=zeros)
    outputs.mean_logits, outputs.is_top1 = zeros, zeros.bool()
    same = SimpleNamespace(device="cpu", gather_for_metrics=lambda x: x, gather=lambda x: x)
    trainer = SimpleNamespace(
        accelerator=same,
        model=SimpleNamespace(training=True),
        aux_loss_enabled=False,
        precompute_ref_logps=True,
        loss_types=[loss_type],
        loss_weights=[1.0],
        beta=BETA,
        label_smoothing=EPS,
        f_alpha_divergence_coef=ALPHA,
        args=SimpleNamespace(discopop_tau=0.05),
        _metrics={"train": collections.defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
        **{"ld_alpha": None, "f_divergence_type": "reverse_kl", "use_weighting": False, **options},
    )
    inputs = {"input_ids": mask, "attention_mask": mask, "completion_mask": mask}
    inputs |= {"ref_chosen_logps": ref[0], "ref_rejected_logps": ref[1]}
    loss = trl.DPOTrainer._compute_loss(trainer, lambda **_: outputs, inputs, False)
    loss.backward()
    return loss.item(), tokens.grad.numpy()


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_value_and_gradient_are_those_of_dpo_trainer(trl, name):
    ours, loss_type, options = CASES[name]
    value, gradient = jax.value_and_grad(lambda tokens: jnp.mean(ours(tokens)))(jnp.asarray(POLICY))
    wanted, by_token = of_trl(trl, loss_type, options)
    assert abs(wanted) > 1e-3
    np.testing.assert_allclose(value, wanted, rtol=1e-5, atol=1e-5)
    there = POLICY < 0
    np.testing.assert_allclose(np.where(there, gradient, 0), np.where(there, by_token, 0), rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_cpo_simpo_and_orpo_are_those_of_their_trainers(trl):
    torch = pytest.importorskip("torch")
    cpo = pytest.importorskip("trl.experimental.cpo").CPOTrainer
    orpo = pytest.importorskip("trl.experimental.orpo").ORPOTrainer
    chosen, rejected = (torch.tensor(np.asarray(x)) for x in four(POLICY)[:2])
    device = SimpleNamespace(device="cpu")
    trainer = SimpleNamespace(
        alpha=0.0, accelerator=device, beta=BETA, label_smoothing=EPS, loss_type="sigmoid", simpo_gamma=0.5
    )
    wanted = cpo.cpo_loss(trainer, chosen, rejected)[0]
    ours = losses.cpo_loss(*four(POLICY)[:2], np.zeros(6), beta=BETA, label_smoothing=EPS)
    np.testing.assert_allclose(ours, wanted, rtol=1e-5, atol=1e-6)
    trainer.loss_type, means = "simpo", [s / n for s, n in zip(four(POLICY)[:2], LENGTHS, strict=True)]
    wanted = cpo.cpo_loss(trainer, *(torch.tensor(np.asarray(m)) for m in means))[0]
    ours = losses.simpo_loss(*means, beta=BETA, gamma=0.5, label_smoothing=EPS)
    np.testing.assert_allclose(ours, wanted, rtol=1e-5, atol=1e-6)
    wanted = -orpo.odds_ratio_loss(trainer, *(torch.tensor(np.asarray(m)) for m in means))[0] - np.asarray(means[0])
    np.testing.assert_allclose(losses.orpo_loss(*means, beta=BETA), wanted, rtol=1e-5, atol=1e-6)
