"""Every attention backend against a slow float64 one, in values and gradients; without a TPU and a GPU, Pallas kernels are
interpreted and cuDNN's are replaced by plain products of the same signature."""

import dataclasses
import re
import warnings
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align_jax import private
from align_jax.data import RowLayout, Segment, TokenGroup, pack_groups
from align_jax.errors import UserError
from align_jax.models import Decoder, ModelConfig, init_weights
from align_jax.models.attention import (
    BACKENDS,
    Masks,
    Tokens,
    attend,
    backends,
    choose_backend,
    cudnn_kernels,
    pallas,
    resolve_backend,
    runs,
    splash,
    takes_packed,
    triton,
    visibility,
    visibility_by_kind,
    xla,
)
from align_jax.models.kinds import kinds_of
from align_jax.parallel.mesh import make_mesh
from align_jax.scoring.logps import response_logps
from tests.models import emulated_kernels, reference


@pytest.fixture
def portable_kernels(monkeypatch):
    """The kernels of splash, of our own and of cuDNN on any platform, and in any type."""
    monkeypatch.setattr(pallas, "call", partial(pallas.call, interpret=True))
    monkeypatch.setattr(triton, "call", partial(triton.call, interpret=True))
    monkeypatch.setattr(runs, "_BLOCK", 8)
    interpreted = partial(splash.kernels.make_splash_mha, interpret=True)
    monkeypatch.setattr(splash.kernels, "make_splash_mha", interpreted)
    monkeypatch.setattr(cudnn_kernels, "forward", emulated_kernels.forward)
    monkeypatch.setattr(cudnn_kernels, "backward", emulated_kernels.backward)
    monkeypatch.setattr(backends, "_TYPES", {})
    monkeypatch.setattr(backends, "_no_kernel", lambda config, longest: None)
    monkeypatch.setattr(backends, "_odd_heads", lambda config: None)


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
    cap: float | None = None

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
        return jnp.where(segments[..., None, None] > 0, attend(q, k, v, seen, pk, pv, cap=self.cap), 0)

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
                result[d, n, r, h] = reference.attention(q[d, n, r, h], keys, values, self.cap)
        return result


CASES = {
    "grouped-query": Case(),
    "multi-head": Case(Hk=4, D=1),
    "gathered": Case(uniform=False),
    "window": Case(window=3),
    "window-gathered": Case(window=4, uniform=False),
    "soft cap": Case(window=3, cap=0.7),
    "blocks": Case(D=1, M=1, C=2, P=150, R=140, H=2, Hk=1, E=8),
}
# Of triton's kernels, slow to interpret: test_triton_attention.py.
RUNS = [(b, n) for n, c in CASES.items() for b in BACKENDS if b != "triton" and not (c.window and b == "cudnn")]


@pytest.mark.parametrize("backend, name", RUNS)
@portable
def test_values_equal_the_reference(backend, name):
    case = CASES[name]
    arrays = case.arrays()
    np.testing.assert_allclose(case.out(backend, arrays), case.expected(arrays), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend, name", [(b, n) for b, n in RUNS if n in ("grouped-query", "gathered", "window", "soft cap")])
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
@pytest.mark.parametrize("name", ["grouped-query", "gathered", "window", "soft cap"])
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


@pytest.mark.parametrize("backend", ["pallas", "splash", "cudnn"])
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
    with pytest.raises(UserError, match="no kernel for a sliding window of 3 tokens"):
        scored(batch, "cudnn", config)


@portable
def test_windows_in_some_layers_alone():
    """Layers of both kinds are one scanned body; a window that nothing leaves makes them of one kind."""
    config = dataclasses.replace(MODEL, sliding_window=3, layer_windows=(False, True))
    batch = pack_groups(groups(), shards=1, groups_per_shard=3, layout=RowLayout(pack=False))
    expected, result = scored(batch, "xla", config), scored(batch, "splash", config)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), result, expected)
    windowed, whole = (scored(batch, "xla", dataclasses.replace(MODEL, sliding_window=w))[0] for w in (3, None))
    assert not np.allclose(expected[0], windowed) and not np.allclose(expected[0], whole)
    wide = dataclasses.replace(config, sliding_window=1000)
    segments = np.ones((1, 2, 4), np.int32)
    seen = visibility_by_kind(kinds_of(wide).windows, "xla", Tokens(np.arange(4) * segments, segments))
    assert isinstance(seen, Masks) and len(kinds_of(wide).kinds) == 2
    np.testing.assert_allclose(scored(batch, "cudnn", wide)[0], whole, rtol=1e-4, atol=1e-4)


@portable
def test_packed_batches_need_a_backend_that_takes_them():
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


@pytest.fixture
def cudnn(monkeypatch):
    """A GPU's cuDNN as far as the choice of a backend sees it: `cudnn(version, capability)`; None is none."""

    def there(version=91002, capability=9.0):
        monkeypatch.setattr(backends.cudnn_kernels, "installed", lambda: version)
        monkeypatch.setattr(backends, "_capability", lambda: capability)

    there()
    return there


@pytest.mark.parametrize(
    "platform, dtype, backend",
    [
        ("cpu", "float32", "xla"),
        ("tpu", "bfloat16", "splash"),
        ("tpu", "float16", "xla"),
        ("cuda", "bfloat16", "cudnn"),
        ("gpu", "float16", "cudnn"),
        ("gpu", "float32", "xla"),
        ("rocm", "bfloat16", "xla"),
    ],
)
def test_auto_follows_the_platform(platform, dtype, backend, cudnn):
    assert resolve_backend("auto", dtype, platform) == backend


@pytest.mark.parametrize(
    "platform, dtype, backend",
    [("cpu", "float32", "xla"), ("tpu", "bfloat16", "pallas"), ("tpu", "float16", "xla"), ("cuda", "bfloat16", "xla")],
)
def test_auto_for_packed_rows_takes_what_takes_them(platform, dtype, backend, cudnn):
    choice = choose_backend("auto", dtype, platform, HEADS_OF_64, packed=True)
    assert choice.backend == backend and takes_packed(backend)
    assert (choice.reason is None) == ((platform, dtype) != ("tpu", "float16"))
    assert not takes_packed("splash") and not takes_packed("cudnn")
    # What was asked for stays: such rows are not packed then.
    assert platform != "tpu" or resolve_backend("splash", "bfloat16", platform, HEADS_OF_64, packed=True) == "splash"


def test_heads_of_odd_sizes_are_left_to_xla():
    config = dataclasses.replace(MODEL, head_size=12)
    choice = choose_backend("auto", "bfloat16", "tpu", config, packed=True)
    assert choice == ("xla", "its kernels take head sizes that are multiples of 8, this model has 12")
    with pytest.raises(UserError, match="'pallas' cannot be used: its kernels take head sizes that are multiples of 8"):
        resolve_backend("pallas", "bfloat16", "tpu", config)


HEADS_OF_64 = dataclasses.replace(MODEL, head_size=64)
WINDOW = dataclasses.replace(HEADS_OF_64, sliding_window=100)
CAPPED = dataclasses.replace(HEADS_OF_64, attention_softcap=50.0)
LACKS = {
    "missing": (dict(version=None), HEADS_OF_64, None, "cuDNN is not installed where JAX looks for it"),
    "old": (dict(version=80907), HEADS_OF_64, None, r"cuDNN 8\.9\.7 is older than 9\.0\.0"),
    "old for its GPU": (dict(version=91002, capability=10.3), HEADS_OF_64, None, r"cuDNN 9\.10\.2 is older than 9\.11\.0"),
    "an old GPU": (dict(capability=7.5), HEADS_OF_64, None, r"compute capability 8\.0 or later, and this GPU has 7\.5"),
    "odd heads": (dict(), dataclasses.replace(MODEL, head_size=20), None, "multiples of 8 up to 256, this model has 20"),
    "large heads": (
        dict(capability=8.6), dataclasses.replace(MODEL, head_size=192), None, "multiples of 8 up to 128, this model has 192"
    ),
    "a soft cap": (dict(), CAPPED, None, r"no kernel with a soft cap of logits \(50"),
    "a window": (dict(), WINDOW, 101, r"no kernel for a sliding window \(100 tokens\) over a shared prompt"),
}  # fmt: skip


@pytest.mark.parametrize("name", LACKS)
def test_auto_takes_xla_where_cudnn_cannot_and_says_why(name, cudnn):
    machine, config, longest, why = LACKS[name]
    cudnn(**machine)
    choice = choose_backend("auto", "bfloat16", "cuda", config, longest)
    assert choice.backend == "xla" and re.search(why, choice.reason)
    with pytest.raises(UserError, match=f"model.attention: 'cudnn' cannot be used: .*{why}.*; set model.attention: auto"):
        resolve_backend("cudnn", "bfloat16", "cuda", config, longest)


def _later_backward(query, key, another_mask):
    """A rule of some later JAX."""


@pytest.mark.parametrize(
    "place, why",
    [
        (private.Private("cudnn.fused_attention_stablehlo", "moved", "x"), "moved: it is not there any more"),
        (
            _later_backward,
            r"_bwd_rule: it takes no .*dropout_rate.* any more; install a version",
        ),
    ],
)
def test_auto_does_without_rules_of_jax_that_have_changed(place, why, cudnn, monkeypatch):
    assert cudnn_kernels.changed() is None
    if isinstance(place, private.Private):
        monkeypatch.setitem(private.ENTRIES, "cudnn backward", place)
    else:
        real = private.private
        monkeypatch.setattr(private, "private", lambda entry: place if entry == "cudnn backward" else real(entry))
    choice = choose_backend("auto", "bfloat16", "cuda", HEADS_OF_64)
    assert choice.backend == "xla" and re.search(why, choice.reason)
    with pytest.raises(UserError, match="'cudnn' cannot be used: jax "):
        resolve_backend("cudnn", "bfloat16", "cuda", HEADS_OF_64)


def test_a_model_of_ones_own_warns_where_auto_falls_back(cudnn, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    weights = init_weights(HEADS_OF_64, jax.random.key(0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Decoder(HEADS_OF_64, weights).backend == "cudnn"
    cudnn(version=None)
    with pytest.warns(UserWarning, match="attention: auto takes xla here, which is slower: cuDNN is not installed"):
        assert Decoder(HEADS_OF_64, weights).backend == "xla"


def test_a_window_that_nothing_leaves_is_none(cudnn):
    assert choose_backend("auto", "bfloat16", "cuda", WINDOW, 100) == ("cudnn", None)
    assert resolve_backend("auto", "bfloat16", "cuda", WINDOW) == "xla"  # of any lengths
    assert resolve_backend("cudnn", "bfloat16", "cuda", WINDOW) == "cudnn"  # which the batch decides


def test_the_best_backend_has_no_reason(cudnn):
    assert choose_backend("auto", "bfloat16", "cuda", dataclasses.replace(MODEL, head_size=256)) == ("cudnn", None)
    assert choose_backend("auto", "float32", "cpu", MODEL) == ("xla", None)
    half = choose_backend("auto", "float16", "tpu", MODEL)
    assert half == ("xla", "its kernels take model.dtype bfloat16 or float32, got float16")


def test_what_is_not_there_is_named():
    with pytest.raises(UserError, match="'flash' is unknown; choose one of auto, xla, pallas, splash, cudnn, triton$"):
        resolve_backend("flash", "float32")
    for only_in_tests in ("splash-interpret", "cudnn-emulate"):
        with pytest.raises(UserError, match=f"'{only_in_tests}' is unknown; choose one of auto, xla, "):
            resolve_backend(only_in_tests, "float32")
    with pytest.raises(UserError, match="'splash' runs on tpu, but the devices are cpu"):
        resolve_backend("splash", "float32", "cpu")
    with pytest.raises(UserError, match="'cudnn' cannot be used: its kernels take model.dtype bfloat16 or float16, got float"):
        resolve_backend("cudnn", "float32", "gpu")


def test_kernels_without_cudnn_say_so():
    with pytest.raises(UserError, match="'cudnn' cannot be used: cuDNN is not installed .*; set model.attention: xla"):
        cudnn_kernels.version()


def test_rows_beyond_what_splash_counts_are_refused():
    with pytest.raises(UserError, match="'splash' takes rows of fewer than 65536 tokens, got 65536; lower data"):
        splash.computed_pairs(1, 65536, 0)
