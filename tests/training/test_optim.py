"""Optimizers against PyTorch's, schedules against their formula, and what must not be decayed."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from align_jax.errors import UserError
from align_jax.training import optim

PARAMS = {
    "embed": np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3),
    "layers": {"attn_norm": np.ones((2, 3), np.float32), "q": np.linspace(0.1, 2, 12, dtype=np.float32).reshape(2, 3, 2, 1)},
    "norm": np.full(3, 1.5, np.float32),
}


def _gradients(step: int):
    rng = np.random.default_rng(step)
    return jax.tree.map(lambda p: rng.normal(size=p.shape).astype(np.float32), PARAMS)


def _run(spec, steps: int = 6, params=PARAMS, total: int | None = None):
    transform = optim.make_optimizer(spec, total or steps)
    params = jax.tree.map(jnp.asarray, params)
    state = transform.init(params)
    for step in range(steps):
        grads = jax.tree.map(lambda g, p: jnp.asarray(g, p.dtype), _gradients(step), params)
        updates, state = transform.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def _torch_run(make, steps: int = 6, clip: float | None = None):
    import torch

    leaves, treedef = jax.tree.flatten(PARAMS)
    tensors = [torch.tensor(leaf, requires_grad=True) for leaf in leaves]
    norms = [not keep for keep in jax.tree.leaves(optim.decay_mask(PARAMS, "embeddings"))]
    optimizer = make(
        [t for t, norm in zip(tensors, norms, strict=True) if not norm],
        [t for t, norm in zip(tensors, norms, strict=True) if norm],
    )
    for step in range(steps):
        for tensor, grad in zip(tensors, jax.tree.leaves(_gradients(step)), strict=True):
            tensor.grad = torch.tensor(grad)
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(tensors, clip)
        optimizer.step()
    return jax.tree.unflatten(treedef, [t.detach().numpy() for t in tensors])


def _assert_close(ours, theirs, atol=1e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol, rtol=1e-5), ours, theirs)


def test_adamw_with_clipping_is_torchs():
    import torch

    spec = optim.AdamW(learning_rate=0.01, schedule="constant", b2=0.95, weight_decay=0.1, decayed="embeddings", clip_norm=0.7)
    theirs = _torch_run(
        lambda decayed, norms: torch.optim.AdamW(
            [{"params": decayed, "weight_decay": 0.1}, {"params": norms, "weight_decay": 0.0}],
            lr=0.01,
            betas=(0.9, 0.95),
        ),
        clip=0.7,
    )
    _assert_close(_run(spec)[0], theirs, atol=3e-6)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_rmsprop_is_torchs(momentum):
    import torch

    spec = optim.RMSprop(learning_rate=0.01, schedule="constant", momentum=momentum, clip_norm=None)
    theirs = _torch_run(lambda a, b: torch.optim.RMSprop([*a, *b], lr=0.01, momentum=momentum))
    _assert_close(_run(spec)[0], theirs)


def test_lion_follows_its_paper():
    spec = optim.Lion(learning_rate=0.01, schedule="constant", weight_decay=0.5, decayed="all", clip_norm=None)
    param, moment = PARAMS["embed"].astype(np.float64), 0.0
    for step in range(6):
        grad = _gradients(step)["embed"]
        param = param - 0.01 * (np.sign(0.9 * moment + 0.1 * grad) + 0.5 * param)
        moment = 0.99 * moment + 0.01 * grad
    np.testing.assert_allclose(_run(spec)[0]["embed"], param, atol=1e-6)


def test_adafactor_unfactored_follows_its_paper():
    """Weights below 128 are not factored: v = b v + (1 - b)(g^2 + eps), b_t = 1 - t^-decay, then clipping by RMS."""
    spec = optim.Adafactor(
        learning_rate=0.01, schedule="constant", momentum=0.5, weight_decay=0.2, decayed="embeddings", clip_norm=None
    )
    param, second, ema = PARAMS["embed"].astype(np.float64), 0.0, 0.0
    for step in range(6):
        grad = _gradients(step)["embed"].astype(np.float64)
        b = 1 - (step + 1.0) ** -0.8
        second = b * second + (1 - b) * (grad**2 + 1e-30)
        update = grad / np.sqrt(second)
        update = update / max(1.0, np.sqrt(np.mean(update**2)))
        ema = 0.5 * ema + 0.5 * update
        param = param - 0.01 * (ema + 0.2 * param)
    np.testing.assert_allclose(_run(spec)[0]["embed"], param, atol=1e-5)


def test_adafactor_factors_large_weights():
    state = optim.make_optimizer(optim.Adafactor(), 1).init({"up": jnp.ones((2, 128, 256))})
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) < 2 * (128 + 256) + 10


@pytest.mark.parametrize("name", ["adamw", "lion", "adafactor", "schedule_free"])
@pytest.mark.parametrize(
    "decayed, names",
    [(None, {"q"}), ("matrices", {"q"}), ("embeddings", {"q", "embed"}), ("all", {"q", "embed", "norm", "attn_norm"})],
)
def test_weight_decay_pulls_matrices_and_what_is_asked_for(name, decayed, names):
    def moved(**options):
        return _run(optim.OPTIMIZERS[name](learning_rate=0.1, schedule="constant", **options), steps=1)[0]

    now, without = moved(weight_decay=0.5, decayed=decayed), moved()
    for each in ("q", "embed", "norm", "attn_norm"):
        of = lambda tree, each=each: {**tree, **tree["layers"]}[each]  # noqa: E731
        if each in names:
            np.testing.assert_allclose(of(now), of(without) - 0.05 * of(PARAMS), atol=1e-6)
        else:
            np.testing.assert_array_equal(of(now), of(without))


def test_a_choice_of_what_decays_without_decay_is_refused():
    with pytest.raises(UserError, match="optimizer.decayed: all has no effect with optimizer.weight_decay: 0"):
        optim.AdamW(decayed="all")


def test_biases_and_embeddings_of_a_tree_that_is_no_model_are_told_by_name():
    tree = {"Dense_0": {"kernel": 1.0, "bias": 1.0}, "tok_embeddings": 1.0, "LayerNorm_0_norm": {"scale": 1.0}}
    assert optim.decay_mask(tree) == {
        "Dense_0": {"kernel": True, "bias": False}, "tok_embeddings": False, "LayerNorm_0_norm": {"scale": False}
    }  # fmt: skip


def test_nnx_state_trains_as_a_dict_does():
    class Model(nnx.Module):
        def __init__(self):
            self.embed, self.norm = nnx.Param(jnp.asarray(PARAMS["embed"])), nnx.Param(jnp.asarray(PARAMS["norm"]))

    spec = optim.AdamW(learning_rate=0.1, schedule="constant", weight_decay=0.5)
    transform = optim.make_optimizer(spec, 1)
    _, state = nnx.split(Model())
    updates, _ = transform.update(jax.tree.map(jnp.ones_like, state), transform.init(state), state)
    plain = {"embed": jnp.asarray(PARAMS["embed"]), "norm": jnp.asarray(PARAMS["norm"])}
    expected, _ = transform.update(jax.tree.map(jnp.ones_like, plain), transform.init(plain), plain)
    assert jax.tree.leaves(optim.decay_mask(state, "embeddings")) == [True, False]
    _assert_close(jax.tree.leaves(updates), jax.tree.leaves(expected))


@pytest.mark.parametrize("name", sorted(optim.OPTIMIZERS))
def test_state_is_float32_over_bfloat16_parameters(name):
    params = jax.tree.map(lambda p: jnp.asarray(p, jnp.bfloat16), PARAMS)
    new, state = _run(optim.OPTIMIZERS[name](learning_rate=0.01), params=params)
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(state) if jnp.issubdtype(leaf.dtype, jnp.floating)}
    assert dtypes == {jnp.dtype("float32")}
    assert {leaf.dtype for leaf in jax.tree.leaves(new)} == {jnp.dtype("bfloat16")}


@pytest.mark.parametrize("name", ["adamw", "lion"])
def test_moment_dtype_is_used(name):
    state = optim.make_optimizer(optim.OPTIMIZERS[name](moment_dtype="bfloat16"), 3).init(PARAMS)
    moments = [leaf.dtype for leaf in jax.tree.leaves(state) if leaf.dtype == jnp.bfloat16]
    assert len(moments) == len(jax.tree.leaves(PARAMS))


def _expected(kind: str, t: int, warmup: int, total: int, final: float) -> float:
    if t < warmup:
        return (t + 1) / warmup
    p = min((t - warmup) / (total - warmup), 1.0)
    cosine = final + (1 - final) * (1 + math.cos(math.pi * p)) / 2
    return {"constant": 1.0, "linear": 1 - (1 - final) * p, "cosine": cosine}[kind]


@pytest.mark.parametrize("kind", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("warmup", [{}, {"warmup_steps": 4}, {"warmup_ratio": 0.2}])
def test_schedule_formula(kind, warmup):
    final = None if kind == "constant" else 0.1
    schedule = optim.make_schedule(optim.AdamW(learning_rate=3.0, schedule=kind, final_ratio=final, **warmup), 20)
    want = [3.0 * _expected(kind, t, 4 if warmup else 0, 20, final or 0.0) for t in range(25)]
    np.testing.assert_allclose([float(schedule(t)) for t in range(25)], want, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(jax.jit(schedule)(jnp.int32(7)), want[7], rtol=1e-6)


@pytest.mark.parametrize("kind", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("warmup", [{"warmup_steps": 4}, {"warmup_ratio": 0.2}, {"warmup_steps": 30}])
@pytest.mark.parametrize("total", [12, 20, 50])
def test_a_schedule_of_its_own_length_is_that_of_a_run_of_this_length(kind, warmup, total):
    options = {"learning_rate": 3.0, "schedule": kind, "final_ratio": None if kind == "constant" else 0.1, **warmup}
    spec = optim.AdamW(**options, schedule_steps=20)
    schedule, whole = (optim.make_schedule(s, n) for s, n in ((spec, total), (optim.AdamW(**options), 20)))
    rates = [float(schedule(t)) for t in range(60)]
    assert rates == [float(whole(t)) for t in range(60)]
    assert rates[20:] == [pytest.approx(3.0 if kind == "constant" else 0.3)] * 40  # beyond its end
    ours, theirs = optim.Horizon.of(spec, total), optim.Horizon.of(optim.AdamW(**options), 20)
    assert ours == theirs


def test_the_schedules_own_length_reaches_the_updates_with_and_without_a_horizon():
    spec = optim.Lion(learning_rate=1.0, schedule="linear", clip_norm=None, b1=0.0, b2=0.0, schedule_steps=2)
    moved = sum(lr * np.sign(_gradients(step)["norm"]) for step, lr in enumerate([1.0, 0.5, 0.0]))
    np.testing.assert_allclose(_run(spec, steps=3, total=9)[0]["norm"], PARAMS["norm"] - moved, atol=1e-6)
    transform, params = optim.make_optimizer(spec, 9), jax.tree.map(jnp.asarray, PARAMS)
    state, horizon = transform.init(params), optim.Horizon.of(spec, 7)
    for step in range(3):
        updates, state = transform.update(_gradients(step), state, params, horizon=horizon)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(params["norm"], PARAMS["norm"] - moved, atol=1e-6)


def test_a_length_that_has_no_effect_is_refused():
    with pytest.raises(UserError, match="optimizer.schedule_steps: the constant schedule without warm-up does not use it"):
        optim.AdamW(schedule="constant", schedule_steps=5)
    assert optim.AdamW(schedule="constant", schedule_steps=5, warmup_ratio=0.1).schedule_steps == 5


def test_the_schedule_reaches_the_updates():
    spec = optim.Lion(learning_rate=1.0, schedule="linear", clip_norm=None, b1=0.0, b2=0.0)
    params, _ = _run(spec, steps=3, total=4)
    moved = sum(lr * np.sign(_gradients(step)["norm"]) for step, lr in enumerate([1.0, 0.75, 0.5]))
    np.testing.assert_allclose(params["norm"], PARAMS["norm"] - moved, atol=1e-6)


def test_zero_gradients_stay_finite():
    for cls in optim.OPTIMIZERS.values():
        transform = optim.make_optimizer(cls(), 2)
        updates, _ = transform.update(jax.tree.map(np.zeros_like, PARAMS), transform.init(PARAMS), PARAMS)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(updates)), cls


@pytest.mark.parametrize(
    "cls, options, key",
    [
        (optim.AdamW, {"learning_rate": 0.0}, "learning_rate: 0.0"),
        (optim.AdamW, {"b2": 1.0}, "b2: 1.0"),
        (optim.AdamW, {"schedule_steps": 0}, "schedule_steps: 0"),
        (optim.AdamW, {"weight_decay": -0.1}, "weight_decay: -0.1"),
        (optim.Lion, {"b1": -1.0}, "b1: -1.0"),
        (optim.RMSprop, {"momentum": 1.5}, "momentum: 1.5"),
        (optim.Adafactor, {"decay": 0.0}, "decay: 0.0"),
        (optim.AdamW, {"clip_norm": 0.0}, "clip_norm: 0.0"),
        (optim.AdamW, {"schedule": "step"}, "schedule: 'step'"),
        (optim.AdamW, {"warmup_steps": 1, "warmup_ratio": 0.1}, "not both"),
        (optim.AdamW, {"schedule": "constant", "final_ratio": 0.1}, "constant schedule does not use"),
    ],
)
def test_bad_options_are_named(cls, options, key):
    with pytest.raises(UserError, match=key):
        cls(**options)


@pytest.mark.parametrize("asked, total, given", [(30, 20, 2), (10, 4, 1), (20, 20, 20), (None, 20, 0), (5, 1, 1)])
def test_a_warmup_longer_than_the_run_is_cut_to_a_tenth_of_it(asked, total, given):
    spec = optim.AdamW(learning_rate=1.0, warmup_steps=asked)
    assert optim.warmup_of(spec, total) == given
    rates = [float(optim.make_schedule(spec, total)(t)) for t in range(total)]
    assert rates[max(given - 1, 0)] == pytest.approx(1.0) == max(rates)


@pytest.mark.parametrize(
    "name, kind",
    [
        (name, kind)
        for name in sorted(optim.OPTIMIZERS)
        for kind in ("constant", "linear", "cosine")
        if name != "schedule_free" or kind == "constant"  # it has no other
    ],
)
def test_a_run_length_that_is_traced_gives_the_same_bits_as_a_constant_one(name, kind):
    """Before, at and after the end of the warm-up, and beyond the end of the run."""
    params = jax.tree.map(jnp.asarray, PARAMS)
    other = optim.make_optimizer(optim.OPTIMIZERS[name](schedule=kind, warmup_ratio=0.13), 1000)
    traces = []

    @jax.jit
    def traced(grads, state, horizon):
        traces.append(horizon)
        return other.update(grads, state, params, horizon=horizon)[0]

    for total in (7, 60, 113):
        spec = optim.OPTIMIZERS[name](schedule=kind, warmup_ratio=0.13)
        fixed, state = jax.jit(optim.make_optimizer(spec, total).update), other.init(params)
        for step in (0, 1, 8, total // 2, total - 1, total + 5):
            at = jax.tree.map(lambda x, step=step: x + step if x.dtype == jnp.int32 else x, state)
            ours = traced(_gradients(step), at, optim.Horizon.of(spec, total))
            jax.tree.map(np.testing.assert_array_equal, ours, fixed(_gradients(step), at, params)[0])
    assert len(traces) == 1  # JAX's own count loses entries in a process that has compiled thousands of functions


def test_float32_parameters_take_their_updates_as_optax_adds_them():
    updates = _gradients(0)
    ours = jax.jit(optim.apply_updates, static_argnums=2)(PARAMS, updates, 0, jnp.int32(1))
    jax.tree.map(np.testing.assert_array_equal, ours, optax.apply_updates(PARAMS, updates))


@pytest.mark.parametrize("at", [1.25, -1.25, 0.02, -300.0])
def test_small_updates_of_bfloat16_parameters_arrive_on_average(at):
    params = {"w": jnp.full(20000, at, jnp.bfloat16), "frozen": jnp.full(3, at, jnp.bfloat16)}
    at = float(params["w"][0])
    gap = 2.0 ** (math.floor(math.log2(abs(at))) - 7)
    updates = {"w": jnp.full(20000, gap / 20), "frozen": jnp.zeros(3)}
    assert bool(jnp.all(optax.apply_updates(params, updates)["w"] == params["w"]))  # to the nearest, nothing ever arrives
    step, start = jax.jit(optim.apply_updates, static_argnums=2), params
    for n in range(30):
        params = step(params, updates, 0, jnp.int32(n))
    assert params["w"].dtype == jnp.bfloat16 and bool(jnp.all(params["frozen"] == start["frozen"]))
    moved = (np.asarray(params["w"], np.float64) - at) / gap
    # 30 draws of probability 1/20: mean 1.5, standard error sqrt(30 * 0.05 * 0.95 / 20000) = 0.0084
    assert moved.mean() == pytest.approx(1.5, abs=0.05) and moved.std() == pytest.approx(math.sqrt(30 * 0.05 * 0.95), rel=0.05)


def test_rounding_follows_seed_and_step_and_keeps_what_is_not_finite():
    params, step = {"w": jnp.ones(1000, jnp.bfloat16)}, jax.jit(optim.apply_updates, static_argnums=2)
    of = lambda seed, n: np.asarray(step(params, {"w": jnp.full(1000, 1e-3)}, seed, jnp.int32(n))["w"], np.float32)  # noqa: E731
    np.testing.assert_array_equal(of(0, 1), of(0, 1))
    assert (of(0, 1) != of(0, 2)).any() and (of(0, 1) != of(1, 1)).any()
    bad = jnp.asarray([np.inf, -np.inf, np.nan], jnp.float32)
    out = step({"w": jnp.zeros(3, jnp.bfloat16)}, {"w": bad}, 0, jnp.int32(0))["w"]
    np.testing.assert_array_equal(np.asarray(out, np.float32), bad)


def test_rounding_does_not_depend_on_the_mesh():
    values = jnp.asarray(np.random.default_rng(0).normal(size=(64, 48)), jnp.bfloat16)
    sharding = NamedSharding(jax.make_mesh((4, 2), ("a", "b")), PartitionSpec("a", "b"))
    step = jax.jit(optim.apply_updates, static_argnums=2)
    one, eight = (
        step({"w": jax.device_put(values, where)}, {"w": jnp.full((64, 48), 1e-4)}, 0, jnp.int32(3))["w"]
        for where in (jax.devices()[0], sharding)
    )
    np.testing.assert_array_equal(np.asarray(one, np.float32), np.asarray(eight, np.float32))
