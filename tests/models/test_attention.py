"""Every attention backend against a slow float64 one, in values and gradients; without a TPU and a GPU, splash's kernels are
interpreted and cuDNN's are replaced by plain products of the same signature."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align_jax.data import RowLayout, Segment, TokenGroup, pack_groups
from align_jax.errors import UserError
from align_jax.models import Decoder, ModelConfig, init_weights
from align_jax.models.attention import (
    BACKENDS,
    Tokens,
    attend,
    backends,
    cudnn_kernels,
    resolve_backend,
    splash,
    visibility,
    xla,
)
from align_jax.parallel.mesh import make_mesh
from align_jax.scoring.logps import response_logps
from tests.models import emulated_kernels, reference


@pytest.fixture
def portable_kernels(monkeypatch):
    """The kernels of splash and cuDNN on any platform, and in any type."""
    interpreted = partial(splash.kernels.make_splash_mha, interpret=True)
    monkeypatch.setattr(splash.kernels, "make_splash_mha", interpreted)
    monkeypatch.setattr(cudnn_kernels, "forward", emulated_kernels.forward)
    monkeypatch.setattr(cudnn_kernels, "backward", emulated_kernels.backward)
    monkeypatch.setattr(backends, "_HALF_ONLY", set())


portable = pytest.mark.usefixtures("portable_kernels")


@dataclasses.dataclass(frozen=True)
class Case:
    """A batch: D shards of M prompts of up to P tokens, each with C rows of up to R; prompts at one end of their rows."""

    D: int = 2
    M: int = 2
    C: int = 3
    P: int = 5
    R: int = 4
    H: int = 4
    Hk: int = 2
    E: int = 6
    window: int | None = None
    uniform: bool = True
    seed: int = 0

    def lengths(self):
        """Tokens of each prompt `[D, M]` (the first has none) and of each row `[D, N]`, and each row's prompt."""
        rng, n = np.random.default_rng(self.seed), self.M * self.C
        prompts, rows = rng.integers(1, self.P + 1, (self.D, self.M)), rng.integers(1, self.R + 1, (self.D, n))
        prompts[0, 0] = 0
        of = np.repeat(np.arange(self.M), self.C)[None].repeat(self.D, 0)
        return prompts, rows, of if self.uniform else rng.permuted(of, axis=1)

    def arrays(self):
        """q, k, v, prompt k, prompt v; what padding holds must not matter, so it is large."""
        rng, n = np.random.default_rng(self.seed + 1), self.M * self.C
        shapes = [(n, self.R, self.H), *[(n, self.R, self.Hk)] * 2, *[(self.M, self.P, self.Hk)] * 2]
        return [rng.normal(size=(self.D, *shape, self.E)).astype(np.float32) for shape in shapes]

    def visible(self, backend):
        prompts, rows, of = self.lengths()
        index = np.arange(self.P)
        start = np.zeros_like(prompts) if backend == "cudnn" else self.P - prompts
        real = (index >= start[..., None]) & (index < (start + prompts)[..., None])
        prompt = Tokens(np.maximum(index - start[..., None], 0).astype(np.int32), real.astype(np.int32))
        segments = (np.arange(self.R) < rows[..., None]).astype(np.int32)
        positions = np.take_along_axis(prompts, of, 1)[..., None] + np.arange(self.R)
        tokens = Tokens(positions.astype(np.int32), segments, None, segments)
        return visibility(backend, tokens, self.window, prompt, of.astype(np.int32), self.uniform), real, segments

    def out(self, backend, arrays):
        """The backend's output, 0 at padding."""
        seen, real, segments = self.visible(backend)
        q, k, v, pk, pv = (jnp.asarray(x) for x in arrays)
        if backend == "cudnn":  # which wants prompts at the start of their rows
            order = np.argsort(~self.visible("xla")[1], axis=-1, kind="stable")[..., None, None]
            pk, pv = (jnp.take_along_axis(x, order, axis=2) for x in (pk, pv))
        return jnp.where(segments[..., None, None] > 0, attend(q, k, v, seen, pk, pv), 0)

    def expected(self, arrays):
        """float64, one query and one head at a time."""
        q, k, v, pk, pv = (np.asarray(x, np.float64) for x in arrays)
        prompts, rows, of = self.lengths()
        result = np.zeros_like(q)
        for d, n in np.ndindex(rows.shape):
            m, window = of[d, n], self.window or 10**9
            first = self.P - prompts[d, m]
            for r, h in np.ndindex(rows[d, n], self.H):
                g = h // (self.H // self.Hk)
                keys, values = (
                    np.concatenate([a[d, m, first:, g], b[d, n, : r + 1, g]])[-window:] for a, b in ((pk, k), (pv, v))
                )
                result[d, n, r, h] = reference.attention(q[d, n, r, h], keys, values)
        return result


CASES = {
    "grouped-query": Case(),
    "multi-head": Case(Hk=4, D=1),
    "gathered": Case(uniform=False),
    "window": Case(window=3),
    "window-gathered": Case(window=4, uniform=False),
    "blocks": Case(D=1, M=1, C=2, P=150, R=140, H=2, Hk=1, E=8),
}
RUNS = [(b, n) for n, c in CASES.items() for b in BACKENDS if not (c.window and b == "cudnn")]


@pytest.mark.parametrize("backend, name", RUNS)
@portable
def test_values_equal_the_reference(backend, name):
    case = CASES[name]
    arrays = case.arrays()
    np.testing.assert_allclose(case.out(backend, arrays), case.expected(arrays), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend, name", [(b, n) for b, n in RUNS if n in ("grouped-query", "gathered", "window")])
@portable
def test_gradients_equal_differences_of_the_reference(backend, name):
    case = CASES[name]
    arrays, rng = case.arrays(), np.random.default_rng(7)
    weights = rng.normal(size=arrays[0].shape)
    grads = jax.jit(jax.grad(lambda xs: jnp.sum(case.out(backend, xs) * weights)))(arrays)
    for i, grad in enumerate(grads):
        step = rng.normal(size=arrays[i].shape) * 1e-5
        moved = [[x + sign * step if j == i else x for j, x in enumerate(arrays)] for sign in (1, -1)]
        up, down = (np.sum(case.expected(x) * weights) for x in moved)
        np.testing.assert_allclose(np.sum(np.asarray(grad, np.float64) * step), (up - down) / 2, rtol=1e-3, atol=1e-8)


@pytest.mark.parametrize("block_bytes", [1 << 20, 1])  # all at once; a row at a time, its prompt repeated for each
@pytest.mark.parametrize("name", ["grouped-query", "gathered", "window"])
def test_chunks_of_queries_and_blocks_of_rows_change_nothing(name, block_bytes, monkeypatch):
    case = CASES[name]
    arrays, weights = case.arrays(), np.random.default_rng(7).normal(size=case.arrays()[0].shape)

    def run():
        def loss(xs):
            out = case.out("xla", xs)
            return jnp.sum(out * weights), out

        return jax.jit(jax.grad(loss, has_aux=True))(arrays)

    monkeypatch.setattr(xla, "_CHUNK", 100)  # no chunks: what the reference above was compared with
    expected = run()
    monkeypatch.setattr(xla, "_CHUNK", 2)
    monkeypatch.setattr(xla, "_block_bytes", lambda: block_bytes)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), run(), expected)


@portable
def test_many_rows_are_cut_into_calls(monkeypatch):
    monkeypatch.setattr(splash, "_LONGEST", 8)
    case = Case(C=6, R=4)  # 24 queries: calls of two rows
    arrays = case.arrays()
    assert splash._rows_per_call(6, 4) == 2
    np.testing.assert_allclose(case.out("splash", arrays), case.expected(arrays), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", ["splash", "cudnn"])
@pytest.mark.parametrize("sizes", [(2, 1, 4), (1, 2, 2)])  # 4 devices share 2 key heads; or one each
@portable
def test_kernels_run_on_a_mesh(backend, sizes):
    case = Case()
    arrays = case.arrays()

    def loss(xs):
        out = case.out(backend, xs)
        return jnp.sum(jnp.sin(out)), out

    expected = jax.jit(jax.value_and_grad(loss, has_aux=True))(arrays)
    with jax.set_mesh(make_mesh(*sizes)):
        program = jax.jit(jax.value_and_grad(loss, has_aux=True))
        result = program(arrays)
        assert "shard_map" in str(jax.make_jaxpr(loss)(arrays))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), result, expected)


MODEL = ModelConfig(vocab_size=29, width=16, mlp_width=24, layers=2, heads=4, kv_heads=2, head_size=4)


def groups(sizes=((5, (3, 1)), (1, (4, 2)), (7, (2, 6)))):
    rng = np.random.default_rng(3)
    some = lambda n: rng.integers(0, MODEL.vocab_size, n).astype(np.int32)  # noqa: E731
    return [
        TokenGroup(i, some(m), tuple(Segment(some(n), k, -1) for k, n in enumerate(rows)), len(rows), {})
        for i, (m, rows) in enumerate(sizes)
    ]


def scored(batch, backend, config=MODEL, **chunks):
    """Log-probs and the gradient of their weighted sum."""
    weights = jax.tree.map(lambda x: 8 * x if x.ndim > 2 else x, init_weights(config, jax.random.key(0)))
    signs = np.cos(1.0 + np.arange(batch.mask.size)).reshape(batch.mask.shape)

    def loss(w):
        logps = response_logps(Decoder(config, w, dtype="float32", attention=backend), batch, **chunks)
        return jnp.sum(logps * signs), logps

    return jax.jit(jax.grad(loss, has_aux=True))(weights)[::-1]


@pytest.mark.slow
@pytest.mark.parametrize(
    "backend, align, chunks",
    [
        ("splash", "left", {}),
        ("splash", "right", {"rows_per_chunk": 2}),
        ("cudnn", "right", {"rows_per_chunk": 2}),
    ],
)
@portable
def test_log_probs_do_not_depend_on_the_backend(backend, align, chunks):
    batch = pack_groups(groups(), shards=1, groups_per_shard=3, layout=RowLayout(pack=False, align=align))
    expected, result = scored(batch, "xla"), scored(batch, backend, **chunks)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), result, expected)


@portable
def test_a_window_shorter_than_the_conversation():
    config = dataclasses.replace(MODEL, sliding_window=3)
    batch = pack_groups(groups(), shards=1, groups_per_shard=3, layout=RowLayout(pack=False))
    expected, result = scored(batch, "xla", config), scored(batch, "splash", config)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), result, expected)
    with pytest.raises(UserError, match="no kernel for a window of 3"):
        scored(batch, "cudnn", config)


@portable
def test_packed_batches_need_xla():
    packed = pack_groups(groups(), shards=1, groups_per_shard=3, layout=RowLayout(pack=True))
    with pytest.raises(UserError, match="'splash' takes one response per row"):
        scored(packed, "splash")


@portable
def test_the_decoder_alone():
    weights = init_weights(MODEL, jax.random.key(1))
    tokens = np.random.default_rng(5).integers(0, MODEL.vocab_size, (2, 9))
    expected, *others = (Decoder(MODEL, weights, dtype="float32", attention=b)(tokens) for b in BACKENDS)
    for other in others:
        np.testing.assert_allclose(other, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "platform, dtype, backend",
    [("cpu", "float32", "xla"), ("tpu", "bfloat16", "splash"), ("cuda", "bfloat16", "cudnn"), ("gpu", "float32", "xla")],
)
def test_auto_follows_the_platform(platform, dtype, backend):
    assert resolve_backend("auto", dtype, platform) == backend


def test_what_is_not_there_is_named():
    with pytest.raises(UserError, match="'flash' is unknown; choose one of auto, xla, splash, cudnn$"):
        resolve_backend("flash", "float32")
    for only_in_tests in ("splash-interpret", "cudnn-emulate"):
        with pytest.raises(UserError, match=f"'{only_in_tests}' is unknown; choose one of auto, xla, splash, cudnn$"):
            resolve_backend(only_in_tests, "float32")
    with pytest.raises(UserError, match="'splash' runs on tpu, but the devices are cpu"):
        resolve_backend("splash", "float32", "cpu")
    with pytest.raises(UserError, match="'cudnn' needs model.dtype bfloat16 or float16, got float32"):
        resolve_backend("cudnn", "float32", "gpu")


def test_the_rules_behind_cudnn_are_where_they_were(monkeypatch):
    """Shapes only: the kernels themselves need a GPU."""
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(cudnn, "check_compute_capability", lambda _: True)
    monkeypatch.setattr(cudnn, "is_cuda_compute_capability_equal", lambda _: False)
    shape = lambda *s, dtype="bfloat16": jax.ShapeDtypeStruct(s, dtype)  # noqa: E731
    q, k, n = shape(3, 16, 4, 64), shape(3, 24, 2, 64), shape(3, dtype="int32")
    out, top = jax.eval_shape(partial(cudnn_kernels.forward, causal=False), q, k, k, n, n)
    assert (out.shape, out.dtype, top.shape, top.dtype) == (q.shape, q.dtype, (3, 16, 4), jnp.float32)
    grads = jax.eval_shape(partial(cudnn_kernels.backward, causal=True, window=4), q, k, k, n, n, out, top, out)
    assert [g.shape for g in grads] == [q.shape, k.shape, k.shape]
