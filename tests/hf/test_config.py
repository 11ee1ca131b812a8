"""config.json to ModelConfig and back, and what is refused."""

from __future__ import annotations

import dataclasses

import pytest

from align_jax.config.sections import ModelSection
from align_jax.errors import UserError
from align_jax.hf import hf_config_from_model, model_config_from_hf
from align_jax.models import ModelConfig, RopeScaling
from align_jax.models.known import known_model

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "rms_norm_eps": 1e-6,
}
# mistralai/Mistral-7B-v0.1
MISTRAL = {
    "architectures": ["MistralForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "model_type": "mistral",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "vocab_size": 32000,
}
LLAMA3_ROPE = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def _read(base, **changes):
    return model_config_from_hf({k: v for k, v in {**base, **changes}.items() if v is not ...}, "config.json")


def test_llama_1_with_what_its_config_leaves_out():
    expected = ModelConfig(32000, 4096, 11008, 32, 32, 32, 128, norm_eps=1e-6, rope_theta=10000.0, max_length=2048)
    assert _read(LLAMA) == expected
    assert _read(LLAMA, num_key_value_heads=None, head_dim=None, rope_scaling=None, architectures=None) == expected


def test_mistral_and_its_window():
    config = _read(MISTRAL)
    assert (config.sliding_window, config.kv_heads, config.head_size, config.max_length) == (4096, 8, 128, 32768)
    assert _read(MISTRAL, sliding_window=None).sliding_window is None
    # transformers' own reading of an absent field
    assert _read(MISTRAL, sliding_window=...).sliding_window == 4096
    assert _read(LLAMA, sliding_window=4096).sliding_window is None


def test_rope_parameters_and_head_size():
    scaling = RopeScaling("llama3", 8.0, 1.0, 4.0, 8192)
    new = _read(LLAMA, rope_parameters={"rope_type": "llama3", "rope_theta": 5e5, **LLAMA3_ROPE})
    old = _read(LLAMA, rope_theta=5e5, rope_scaling={"rope_type": "llama3", **LLAMA3_ROPE})
    assert new == old and (new.rope_theta, new.rope_scaling) == (5e5, scaling)
    linear = _read(LLAMA, rope_scaling={"type": "linear", "factor": 2})
    assert (linear.rope_scaling, linear.rope_theta) == (RopeScaling("linear", 2.0), 10000.0)
    assert _read(LLAMA, rope_parameters={"rope_type": "default"}, rope_theta=7.0).rope_theta == 7.0
    assert _read(LLAMA, head_dim=96).head_size == 96


_QWEN2 = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "sliding_window": 4096, "num_key_value_heads": 4}
_QWEN3 = {**_QWEN2, "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"}


def test_a_qwen_has_its_pieces_and_uses_no_window_that_it_does_not_use():
    two, three = _read(LLAMA, **_QWEN2), _read(LLAMA, **_QWEN3)
    assert (two.qkv_bias, two.qk_norm, two.sliding_window, two.head_size) == (True, False, None, 128)
    assert (three.qkv_bias, three.qk_norm, three.head_size) == (False, True, 128)
    assert _read(LLAMA, **_QWEN3, hidden_size=2048).head_size == 128  # not 2048 / 32: transformers' default
    used = {"use_sliding_window": True}
    assert _read(LLAMA, **_QWEN2, **used, max_window_layers=0).sliding_window == 4096
    assert _read(LLAMA, **_QWEN2, **used, max_window_layers=32).sliding_window is None
    mixed = _read(LLAMA, **_QWEN2, **used, max_window_layers=12)
    assert mixed.sliding_window == 4096 and mixed.layer_windows == (False,) * 12 + (True,) * 20
    for kind, window in (("sliding_attention", 4096), ("full_attention", None)):  # what is said of each layer wins
        assert _read(LLAMA, **_QWEN2, **used, max_window_layers=12, layer_types=[kind] * 32).sliding_window == window


@pytest.mark.parametrize("fields", [_QWEN2, _QWEN3], ids=["qwen2", "qwen3"])
def test_a_fresh_qwen_is_exported_as_one(fields):
    config = dataclasses.replace(_read(LLAMA, **fields), sliding_window=64)
    written = hf_config_from_model(config)
    assert written["architectures"] == fields["architectures"] and not written.get("attention_bias")
    assert model_config_from_hf(written, "written") == config
    with pytest.raises(UserError, match=r"base_config is of model_type 'llama', which cannot hold this model's qk\w+ \(True\)"):
        hf_config_from_model(dataclasses.replace(config, sliding_window=None), LLAMA)
    with pytest.raises(UserError, match="no architecture of Hugging Face has sliding_window and qkv_bias and qk_norm"):
        hf_config_from_model(dataclasses.replace(config, qkv_bias=True, qk_norm=True))


def test_a_seed_oss_may_have_biases_on_queries_keys_and_values_alone():
    seed = {"architectures": ["SeedOssForCausalLM"], "model_type": "seed_oss"}
    config = _read(LLAMA, **seed, num_key_value_heads=...)
    assert (config.qkv_bias, config.kv_heads, config.head_size) == (True, 8, 128)
    assert not _read(LLAMA, **seed, attention_bias=False).qkv_bias
    for biased in ("attention_out_bias", "mlp_bias"):
        with pytest.raises(UserError, match=f"{biased} is True; only False is supported"):
            _read(LLAMA, **seed, **{biased: True})


# What google/gemma-3-*, allenai/Olmo-3-* and HuggingFaceTB/SmolLM3-* leave to transformers.
_SPARSE = {"vocab_size": 64, "hidden_size": 640, "intermediate_size": 128, "num_hidden_layers": 12, "num_attention_heads": 4}


def test_a_sparse_gemma_3_is_what_transformers_takes_it_for():
    config = _read({"model_type": "gemma3_text", **_SPARSE})
    assert config.layer_windows == ((True,) * 5 + (False,)) * 2 and config.sliding_window == 4096
    assert (config.head_size, config.kv_heads, config.norm_eps, config.max_length) == (256, 4, 1e-6, 131072)
    assert (config.rope_theta, config.local_rope_theta, config.tied_embeddings) == (1e6, 1e4, True)
    assert config.attention_scale is None and config.embed_scale == 640**0.5 and config.logit_softcap is None
    rope = {"rope_local_base_freq": 5e3, "rope_scaling": {"rope_type": "linear", "factor": 8}}
    old = _read({"model_type": "gemma3_text", **_SPARSE, **rope})
    assert (old.local_rope_theta, old.rope_scaling.factor) == (5e3, 8.0)


def test_patterns_of_other_families():
    olmo = _read({"model_type": "olmo3", **_SPARSE, "rope_theta": 123456.0})
    assert olmo.layer_windows == ((True,) * 3 + (False,)) * 3 and olmo.qk_norm_whole and olmo.norms == "after"
    assert (olmo.rope_theta, olmo.local_rope_theta) == (123456.0, 5e5)  # which is what transformers does with it
    smol = _read({"model_type": "smollm3", **_SPARSE})
    assert smol.layer_ropes == ((True,) * 3 + (False,)) * 3 and smol.rope_theta == 2e6 and smol.tied_embeddings
    gemma2 = _read({"model_type": "gemma2", **_SPARSE})
    assert gemma2.layer_windows == (True, False) * 6 and (gemma2.attention_softcap, gemma2.logit_softcap) == (50.0, 30.0)
    assert _read({"model_type": "gemma2", **_SPARSE, "attn_logit_softcapping": None}).attention_softcap is None
    granite = {"model_type": "granite", **_SPARSE, "rms_norm_eps": 1e-6}
    assert _read(granite).attention_scale == 1.0  # and not 1 / sqrt(head_dim)
    with pytest.raises(UserError, match="transformers has no sequence classifier of model_type 'granite'"):
        hf_config_from_model(dataclasses.replace(_read(granite), head="score", tied_embeddings=False), granite)
    with pytest.raises(UserError, match="use_bidirectional_attention is true"):
        _read({"model_type": "gemma2", **_SPARSE, "use_bidirectional_attention": True})
    with pytest.raises(UserError, match="layer_types names 'chunked_attention'"):
        _read({"model_type": "gemma2", **_SPARSE, "layer_types": ["chunked_attention"] * 12})


@pytest.mark.parametrize("name", ["qwen2.5-0.5b", "qwen3-8b", "gemma-2-27b", "gemma-3-270m", "gemma-3-27b", "gpt-oss-20b"])
def test_known_shapes_are_of_their_families(name):
    config = known_model(name)
    written = hf_config_from_model(config)
    kinds = {"qwen2.5": "qwen2", "qwen3": "qwen3", "gemma-2": "gemma2", "gemma-3": "gemma3_text", "gpt-oss": "gpt_oss"}
    assert written["model_type"] == kinds[name.rpartition("-")[0]]
    assert model_config_from_hf(written, "written") == config
    assert ModelSection(config=_fields(config)).fresh_config() == config


def test_a_gpt_oss_says_what_transformers_takes_it_for():
    fields = {**_SPARSE, "num_attention_heads": 8, "num_local_experts": 32}
    config = _read({"model_type": "gpt_oss", **fields})
    assert config.layer_windows == (True, False) * 6 and config.sliding_window == 128 and config.head_size == 64
    assert (config.experts, config.active_experts, config.kv_heads, config.rope_theta) == (32, 4, 8, 150000.0)
    rope = config.rope_scaling
    assert (rope.kind, rope.factor, rope.original_length, rope.truncate) == ("yarn", 32.0, 4096, False)
    assert rope.attention_factor == pytest.approx(1.3465735)
    packed = {"model_type": "gpt_oss", **fields, "quantization_config": {"quant_method": "mxfp4"}}
    assert _read(packed) == config
    assert "quantization_config" not in hf_config_from_model(config, packed)
    for change, what in ({"swiglu_limit": 5.0}, "swiglu_limit"), ({"attention_bias": False}, "attention_bias"):
        with pytest.raises(UserError, match=f"{what} is {change[what]}; only"):
            _read(packed | change)
    with pytest.raises(UserError, match="quant_method 'gptq'"):
        _read(packed | {"quantization_config": {"quant_method": "gptq"}})
    with pytest.raises(UserError, match="quant_method 'mxfp4'"):
        _read(LLAMA, quantization_config={"quant_method": "mxfp4"})


def _fields(config):
    return {name: value for name, value in dataclasses.asdict(config).items() if name != "head"}


_REFUSED = {
    "architecture": ({"architectures": ["GPT2LMHeadModel"]}, "GPT2LMHeadModel"),
    "classifier": ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification"),
    "model_type": ({"architectures": ..., "model_type": "gpt2"}, "'gpt2'"),
    "contradiction": ({"model_type": "mistral"}, "'mistral' contradicts"),
    "rope type": ({"rope_scaling": {"rope_type": "mrope", "factor": 4.0}}, "rope_scaling: rope type 'mrope'"),
    "dynamic": ({"rope_scaling": {"type": "dynamic"}}, "rope_scaling: field 'factor' is missing"),
    "longrope": ({"rope_parameters": {"rope_type": "longrope"}}, "rope_parameters: field 'short_factor' is missing"),
    "short longrope": ({"rope_scaling": {"type": "su", "short_factor": [1.0] * 3}}, "a list of 64 numbers"),
    "rope by layer": ({"rope_parameters": {"full_attention": {}}}, "rope_parameters differs by layer type"),
    "two ropes": (
        {"rope_scaling": {"type": "linear", "factor": 4.0}, "rope_parameters": {"rope_type": "default"}},
        "contradicts",
    ),
    "rope without factor": ({"rope_scaling": {"type": "linear"}}, "rope_scaling: field 'factor' is missing"),
    "rope text": ({"rope_scaling": "linear"}, "'linear'"),
    "attention_bias": ({"attention_bias": True}, "attention_bias is True"),
    "mlp_bias": ({"mlp_bias": True}, "mlp_bias is True"),
    "activation": ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
    "partial": ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
    "partial rope": ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "factor is 0.5"),
    "quantized": ({"quantization_config": {"quant_method": "gptq"}}, "'gptq'"),
    "layer_types": ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding_attention"),
    "missing": ({"hidden_size": ...}, "field 'hidden_size' is missing"),
    "missing eps": ({"rms_norm_eps": ...}, "field 'rms_norm_eps' is missing"),
    "text": ({"num_hidden_layers": "32"}, "num_hidden_layers is '32'"),
    "negative": ({"vocab_size": -1}, "vocab_size is -1"),
    "truth": ({"tie_word_embeddings": 1}, "tie_word_embeddings is 1"),
    "eps": ({"rms_norm_eps": "1e-5"}, "rms_norm_eps is '1e-5'"),
    "heads": ({"num_attention_heads": 30}, "hidden_size 4096 is no multiple of 30"),
    "kv_heads": ({"num_key_value_heads": 5}, r"heads \(32\) must be a multiple of kv_heads \(5\)"),
}


@pytest.mark.parametrize("case", _REFUSED)
def test_refused(case):
    changes, message = _REFUSED[case]
    with pytest.raises(UserError, match=message) as error:
        _read(LLAMA, **changes)
    assert str(error.value).startswith("config.json: ")


def test_mistral_refusals():
    with pytest.raises(UserError, match="'num_key_value_heads' is missing"):
        _read(MISTRAL, num_key_value_heads=...)
    with pytest.raises(UserError, match="sliding_window is 0"):
        _read(MISTRAL, sliding_window=0)


@pytest.mark.parametrize("base", [LLAMA, MISTRAL], ids=["llama", "mistral"])
def test_there_and_back(base):
    config = _read(base, rope_theta=5e5, rope_scaling={"rope_type": "llama3", **LLAMA3_ROPE}, head_dim=96)
    for kept in (None, base):
        out = hf_config_from_model(config, kept, "bfloat16")
        assert model_config_from_hf(out, "exported") == config
        assert out["torch_dtype"] == "bfloat16"
        assert out["architectures"] == base["architectures"]
    plain = _read(base, sliding_window=None)
    assert model_config_from_hf(hf_config_from_model(plain, base), "exported") == plain
    assert hf_config_from_model(plain, MISTRAL)["eos_token_id"] == 2


def test_llama_base_cannot_hold_a_window():
    with pytest.raises(UserError, match="4096"):
        hf_config_from_model(_read(MISTRAL), LLAMA)
