"""The sampler: equal to whole forward passes and to transformers, independent of mesh, batch and refill."""

from __future__ import annotations

import signal

import jax
import numpy as np
import pytest
from scipy import stats

from align_jax.data import make_groups
from align_jax.errors import UserError
from align_jax.generation import Sampling, StopStrings, generate, stream
from align_jax.generation.engine import _spread
from align_jax.generation.slots import Request
from align_jax.hf import load_model
from align_jax.models import Decoder, weight_shardings
from align_jax.parallel.mesh import make_mesh
from align_jax.parallel.stop import StoppedPass, StopSignal
from align_jax.scoring.logps import response_logps
from tests.generation.reference import filtered_probs, greedy, tiny_model
from tests.hf import models as hf_models

GREEDY = Sampling(temperature=0)


def random_prompts(count: int, longest: int, vocab: int = 61, seed: int = 0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    lengths = rng.permutation(np.linspace(1, longest, count).astype(int))
    return [rng.integers(3, vocab, n).tolist() for n in lengths]


def tokens_of(results) -> list[list[list[int]]]:
    return [[s.tokens.tolist() for s in samples] for samples in results]


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def test_greedy_equals_whole_forward_passes():
    model = tiny_model(kv_heads=4, tied_embeddings=True)
    prompts = random_prompts(6, 30)
    # 8 rows for 6 prompts of 3 samples: rows are refilled, slots hold two prompts, and the ring (32 columns) wraps.
    ours = generate(model, prompts, samples=3, max_new_tokens=25, sampling=GREEDY, eos_ids=[5], rows=4)
    for prompt, samples in zip(prompts, ours, strict=True):
        expected = greedy(model, prompt, 25, eos_ids=[5])
        for sample in samples:
            assert sample.tokens.tolist() == expected
            assert sample.finish_reason == ("eos" if expected[-1] == 5 else "length")


def hf_model(model: Decoder):
    torch = pytest.importorskip("torch")
    import transformers

    c = model.config
    kind = transformers.LlamaConfig if c.sliding_window is None else transformers.MistralConfig
    window = {} if c.sliding_window is None else {"sliding_window": c.sliding_window}
    config = kind(
        vocab_size=c.vocab_size, hidden_size=c.width, intermediate_size=c.mlp_width, num_hidden_layers=c.layers,
        num_attention_heads=c.heads, num_key_value_heads=c.kv_heads, head_dim=c.head_size, rms_norm_eps=c.norm_eps,
        max_position_embeddings=c.max_length, tie_word_embeddings=False, **window,
    )  # fmt: skip
    theirs = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    w = jax.tree.map(np.asarray, model.weights())
    state = {"model.embed_tokens.weight": w["embed"], "model.norm.weight": w["norm"], "lm_head.weight": w["lm_head"].T}
    names = {"attn_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
    names |= {n: f"self_attn.{n}_proj" for n in "qkvo"} | {n: f"mlp.{n}_proj" for n in ("gate", "up", "down")}
    for name, hf_name in names.items():
        for i, x in enumerate(w["layers"][name]):
            x = x.reshape(-1, c.width).T if name == "o" else x.reshape(c.width, -1).T if name in "qkv" else x.T
            state[f"model.layers.{i}.{hf_name}.weight"] = x
    theirs.load_state_dict({k: torch.tensor(np.ascontiguousarray(v)) for k, v in state.items()})
    return torch, theirs


@pytest.mark.slow
@pytest.mark.parametrize("window", [None, 9])
def test_greedy_equals_transformers_on_50_prompts_in_one_batch(window):
    model = tiny_model(sliding_window=window)
    torch, theirs = hf_model(model)
    prompts = random_prompts(50, 40)
    ours = generate(model, prompts, max_new_tokens=20, sampling=GREEDY, eos_ids=[7], rows=64)
    padded = torch.tensor([[0] * (40 - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (40 - len(p)) + [1] * len(p) for p in prompts])
    options = dict(max_new_tokens=20, do_sample=False, eos_token_id=7, pad_token_id=0)
    with torch.no_grad():
        out = theirs.generate(padded, attention_mask=mask, **options)[:, 40:].tolist()
    expected = [row[: row.index(7) + 1] if 7 in row else row for row in out]
    assert [sample.tokens.tolist() for [sample] in ours] == expected
    assert len({tuple(row) for row in expected}) > 40


@pytest.mark.parametrize("variant", hf_models.FAMILIES_WITH_PIECES)
def test_greedy_of_a_family_equals_transformers(tmp_path, variant):
    torch = pytest.importorskip("torch")
    theirs = hf_models.torch_model(variant)
    prompts = random_prompts(5, 12, vocab=64)
    model = load_model(hf_models.save(theirs, tmp_path), dtype="float32")
    ours = generate(model, prompts, max_new_tokens=12, sampling=GREEDY, eos_ids=[], rows=4)
    for prompt, [sample] in zip(prompts, ours, strict=True):
        with torch.no_grad():
            out = theirs.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False, pad_token_id=0, eos_token_id=None)
        assert sample.tokens.tolist() == out[0, len(prompt) :].tolist()


def test_repetition_penalty_equals_transformers():
    model = tiny_model()
    torch, theirs = hf_model(model)
    prompts = random_prompts(4, 30)
    # One row: the next prompt takes the place of the last, whose tokens must be forgotten.
    ours = generate(
        model, prompts, samples=1, max_new_tokens=20, sampling=Sampling(temperature=0, repetition_penalty=1.3), rows=1
    )
    options = dict(max_new_tokens=20, do_sample=False, pad_token_id=0, eos_token_id=None, repetition_penalty=1.3)
    for prompt, [sample] in zip(prompts, ours, strict=True):
        with torch.no_grad():
            out = theirs.generate(torch.tensor([prompt]), **options)
        assert sample.tokens.tolist() == out[0, len(prompt) :].tolist()


def test_sampled_first_and_second_tokens_match_the_softmax():
    model = tiny_model(vocab_size=13, scale=0.08)
    prompt, options = [3, 4, 5], {"temperature": 0.8, "top_k": 8, "top_p": 0.95}
    [samples] = generate(model, [prompt], samples=3000, max_new_tokens=2, sampling=Sampling(**options), rows=1000)
    pairs = np.array([s.tokens for s in samples])
    contexts = np.asarray([[*prompt, t] for t in range(13)])
    logits = np.asarray(model(contexts))
    first = filtered_probs(logits[0, 2], **options)
    joint = first[:, None] * np.stack([filtered_probs(row, **options) for row in logits[:, 3]])
    counts = np.zeros((13, 13))
    np.add.at(counts, (pairs[:, 0], pairs[:, 1]), 1)
    assert (counts[joint == 0] == 0).all()
    common = joint * 3000 >= 5
    assert common.sum() > 10
    observed, expected = [*counts[common]], [*joint[common]]
    if joint[~common].sum() > 0:
        observed, expected = [*observed, counts[~common].sum()], [*expected, joint[~common].sum()]
    assert stats.chisquare(observed, np.asarray(expected) / sum(expected) * 3000).pvalue > 1e-4


@pytest.mark.slow
def test_same_text_on_any_mesh(model):
    prompts = random_prompts(9, 20)
    options = dict(samples=3, max_new_tokens=12, sampling=Sampling(top_p=0.9, repetition_penalty=1.1), eos_ids=[5], seed=3)
    expected = tokens_of(generate(model, prompts, **options))
    mesh = make_mesh(2, 2, 2)
    weights = jax.device_put(model.weights(), weight_shardings(model.config, mesh))
    sharded = Decoder(model.config, weights, dtype=model.dtype)
    assert tokens_of(generate(sharded, prompts, mesh=mesh, rows=16, **options)) == expected


def test_few_prompts_are_spread_over_the_shards(model):
    options = dict(samples=12, max_new_tokens=6)
    expected = tokens_of(generate(model, [[3, 4]], **options))
    mesh = make_mesh(8)
    sharded = Decoder(model.config, jax.device_put(model.weights(), weight_shardings(model.config, mesh)), dtype=model.dtype)
    assert tokens_of(generate(sharded, [[3, 4]], mesh=mesh, **options)) == expected
    parts = _spread([Request(0, [3], 0, tuple(range(12)), 6)], 8)
    assert sorted(n for part in parts for n in part.sample_ids) == list(range(12))
    assert [len(part.sample_ids) for part in parts] == [2, 2, 2, 2, 1, 1, 1, 1]


@pytest.mark.slow
def test_refill_and_batch_change_nothing(model):
    prompts = [prompt[:16] + [9] * (16 - len(prompt)) for prompt in random_prompts(7, 16)]  # few shapes to compile
    options = dict(samples=5, max_new_tokens=40, sampling=Sampling(), eos_ids=[5, 6, 7, 8], seed=1)
    whole = generate(model, prompts, rows=64, **options)
    lengths = {len(s.tokens) for samples in whole for s in samples}
    assert len(lengths) > 5  # texts that end at different steps
    expected = tokens_of(whole)
    assert tokens_of(generate(model, prompts, rows=3, **options)) == expected
    assert tokens_of(generate(model, prompts[4:], prompt_ids=[4, 5, 6], rows=3, **options)) == expected[4:]
    fewer = generate(model, prompts, rows=3, **{**options, "samples": 3})
    assert tokens_of(fewer) == [samples[:3] for samples in expected]


def test_a_long_sample_does_not_hold_the_batch(model):
    prompts = random_prompts(12, 12)
    results = list(stream(model, prompts, samples=2, max_new_tokens=200, eos_ids=range(5, 20), rows=4, seed=2))
    order = [i for i, _ in results]
    lengths = [max(len(sample.tokens) for sample in samples) for _, samples in sorted(results, key=lambda pair: pair[0])]
    assert sorted(order) == list(range(12))
    slow = int(np.argmax(lengths[:4]))
    assert any(later > slow for later in order[: order.index(slow)])


def test_seeds(model):
    prompts = random_prompts(2, 9)
    options = dict(samples=4, max_new_tokens=10)
    first = tokens_of(generate(model, prompts, seed=0, **options))
    assert first == tokens_of(generate(model, prompts, seed=0, **options))
    assert first != tokens_of(generate(model, prompts, seed=1, **options))
    assert len({tuple(t) for samples in first for t in samples}) == 8
    same = generate(model, [prompts[0], prompts[0]], prompt_ids=[5, 5], **options)
    assert tokens_of(same[:1]) == tokens_of(same[1:])


def test_logps_are_those_of_the_model(model):
    prompts = random_prompts(3, 9)
    samples = generate(model, prompts, samples=4, max_new_tokens=10, sampling=Sampling(0.5, top_k=7), eos_ids=[5])
    batch = make_groups(prompts, tokens_of(samples))
    expected = jax.jit(lambda batch: response_logps(model, batch))(batch)
    np.testing.assert_allclose([[s.logp for s in group] for group in samples], expected, rtol=1e-4, atol=1e-4)


class Letters:
    """A tokenizer of one letter a token, without special tokens."""

    def decode(self, tokens, **exactly):
        return "".join(chr(64 + t) for t in tokens)

    def encode(self, text, add_special_tokens=False):
        return [ord(letter) - 64 for letter in text]


class Words(Letters):
    """Letters 1 to 26 begin a word; like sentencepiece's, it drops the space in front of the first."""

    def decode(self, tokens, **exactly):
        return "".join(" " * (t <= 26) + chr(64 + t).lower() for t in tokens).removeprefix(" ")

    def encode(self, text, add_special_tokens=False):
        return [1]


def test_a_stop_string_may_begin_with_the_first_space():
    stops = StopStrings(Words(), [" d"])
    assert stops([4, 27], 2) == 1 and stops([3, 4, 27], 3) == 2
    assert stops([3, 30, 27], 3) is None


def test_tokens_outside_the_vocabulary_are_refused(model):
    for token in (61, -1):
        with pytest.raises(UserError, match=f"prompt 1 has the token {token}, but the model's vocabulary is 0 to 60"):
            generate(model, [[3], [3, token]], max_new_tokens=2)


def test_stop_strings(model):
    prompts = random_prompts(4, 9)
    options = dict(samples=3, max_new_tokens=40, seed=4, rows=5)
    free = generate(model, prompts, **options)
    tokenizer = Letters()
    string = tokenizer.decode(free[1][2].tokens[20:22])
    stops = StopStrings(tokenizer, [string])
    ended = 0
    for samples, whole in zip(generate(model, prompts, stop=stops, **options), free, strict=True):
        for sample, other in zip(samples, whole, strict=True):
            text = tokenizer.decode(other.tokens)
            place = text.find(string)
            keep = len(text) if place < 0 else place + 2
            ended += place >= 0
            assert sample.tokens.tolist() == other.tokens[:keep].tolist()
            assert len(sample.logps) == keep
            assert sample.finish_reason == ("length" if place < 0 else "stop")
            assert stops.cut(tokenizer.decode(sample.tokens)) == text[: place if place >= 0 else None]
    assert ended >= 1


def test_context_bounds_the_text(model):
    full = list(range(3, 53)) * 5  # 250 of 256 tokens
    [[sample], [other]] = generate(model, [full, full[:7]], max_new_tokens=9)
    assert len(sample.tokens) == 6 and sample.finish_reason == "length"
    assert len(other.tokens) == 9
    with pytest.raises(UserError, match="prompt 1 has 256 tokens, which leaves no room .* 256; shorten it to at most 255"):
        generate(model, [[3], (full + full)[:256]], max_new_tokens=9)
    with pytest.raises(UserError, match="prompt 0 is empty"):
        generate(model, [[]], max_new_tokens=9)
    for bad, problem in (({"seed": 2**32}, "seed: 4294967296"), ({"prompt_ids": [2**31]}, "prompt_ids: 2147483648")):
        with pytest.raises(UserError, match=f"{problem} must be from 0 to"):
            generate(model, [[1]], max_new_tokens=4, **bad)
    with pytest.raises(UserError, match="samples must be at least 1, got 0"):
        generate(model, [[3]], max_new_tokens=9, samples=0)


def test_a_stop_is_heard_between_the_tokens_of_a_text(model):
    with pytest.raises(StoppedPass), StopSignal() as stop:
        stop.requested()
        signal.raise_signal(signal.SIGTERM)
        generate(model, [[1, 2]], samples=1, max_new_tokens=8)
