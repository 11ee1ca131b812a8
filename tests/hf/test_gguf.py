"""GGUF: weights come back as they were before llama.cpp turned them, with the tokenizer; other models are refused."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from transformers import AutoTokenizer

from align_jax.errors import UserError
from align_jax.hf import load_config
from align_jax.hf.gguf import convert_gguf

gguf = pytest.importorskip("gguf", reason="needs the package gguf: pip install gguf")

WIDTH, HEADS, KV, INNER, TOKENS = 64, 4, 2, 96, 300
SHAPES = {
    "model.embed_tokens.weight": (TOKENS, WIDTH),
    "model.norm.weight": (WIDTH,),
    "model.layers.0.input_layernorm.weight": (WIDTH,),
    "model.layers.0.post_attention_layernorm.weight": (WIDTH,),
    "model.layers.0.self_attn.q_proj.weight": (WIDTH, WIDTH),
    "model.layers.0.self_attn.k_proj.weight": (WIDTH // 2, WIDTH),
    "model.layers.0.self_attn.v_proj.weight": (WIDTH // 2, WIDTH),
    "model.layers.0.self_attn.o_proj.weight": (WIDTH, WIDTH),
    "model.layers.0.mlp.gate_proj.weight": (INNER, WIDTH),
    "model.layers.0.mlp.up_proj.weight": (INNER, WIDTH),
    "model.layers.0.mlp.down_proj.weight": (WIDTH, INNER),
}
TEMPLATE = "{% for m in messages %}<s>{{ m['content'] }}</s>{% endfor %}"


def letters() -> list[str]:
    """The 256 characters that stand for bytes in byte-level BPE."""
    from tokenizers.pre_tokenizers import ByteLevel

    return sorted(ByteLevel.alphabet())


def vocabulary() -> list[str]:
    return (["<u>", "<s>", "</s>", *letters(), "ĊĊ", "Ġa", "Ċ1"] + [f"<extra{i}>" for i in range(99)])[:TOKENS]


def turned(weight: np.ndarray, heads: int) -> np.ndarray:
    """What llama.cpp's convert_hf_to_gguf.py does to the rows of q and k."""
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def write(path, weights, **changed):
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 1)
    writer = gguf.GGUFWriter(path, changed.get("arch", "llama"))
    writer.add_block_count(1)
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV)
    writer.add_rope_freq_base(5000.0)
    writer.add_layer_norm_rms_eps(1e-6)
    if "scaling" in changed:
        writer.add_rope_scaling_type(changed["scaling"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(changed.get("pre", "smollm"))
    writer.add_token_list(vocabulary())
    writer.add_token_types([3, 3, 3, *[1] * (TOKENS - 3)])
    writer.add_token_merges(["Ċ Ċ", "Ġ a", "Ċ 1"])
    for add, i in ((writer.add_unk_token_id, 0), (writer.add_bos_token_id, 1), (writer.add_eos_token_id, 2)):
        add(i)
    writer.add_chat_template(TEMPLATE)
    for name, weight in weights.items():
        for projection, heads in ((".q_proj.", HEADS), (".k_proj.", KV)):
            weight = turned(weight, heads) if projection in name else weight
        theirs = changed.get("name", lambda name: name)(names.get_name(name, (".weight",)))
        if name.endswith("up_proj.weight"):
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(theirs, gguf.quants.quantize(weight, kind), raw_dtype=kind)
        else:
            writer.add_tensor(theirs, weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def weights():
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(shape, np.float32) for name, shape in SHAPES.items()}


def test_weights_are_those_before_the_conversion(tmp_path, weights):
    convert_gguf(write(tmp_path / "m.gguf", weights), tmp_path / "out")
    with safe_open(tmp_path / "out/model.safetensors", "numpy") as opened:
        assert sorted(opened.keys()) == sorted(SHAPES)
        for name, weight in weights.items():
            found = opened.get_tensor(name)
            if "up_proj" in name:  # of 8 bits: a block of 32 has its largest number in 127 steps
                assert np.abs(found.astype(np.float32) - weight).max() < np.abs(weight).max() / 127
            else:
                assert np.array_equal(found, weight.astype(ml_dtypes.bfloat16)), name


def test_shape_and_tokenizer_are_the_models(tmp_path, weights):
    convert_gguf(write(tmp_path / "m.gguf", weights), tmp_path / "out")
    config, _ = load_config(tmp_path / "out")
    assert (config.layers, config.heads, config.kv_heads, config.head_size) == (1, HEADS, KV, WIDTH // HEADS)
    assert (config.rope_theta, config.max_length, config.vocab_size, config.tied_embeddings) == (5000.0, 128, TOKENS, True)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (1, 2, 0)
    ids = tokenizer("x a\n\n1")["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == ["x", "Ġa", "ĊĊ", "1"]  # smollm: a digit is a word of its own
    assert tokenizer.decode(ids) == "x a\n\n1"
    messages = [{"role": "user", "content": "a"}]
    assert tokenizer.apply_chat_template(messages, tokenize=False) == "<s>a</s>"
    assert tokenizer("<s>")["input_ids"] == [1]


def test_of_gpt_2_digits_stay_with_what_is_before_them(tmp_path, weights):
    convert_gguf(write(tmp_path / "m.gguf", weights, pre="gpt-2"), tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.convert_ids_to_tokens(tokenizer("x\n\n1")["input_ids"]) == ["x", "Ċ", "Ċ", "1"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"arch": "gemma3"}, "general.architecture is 'gemma3'; only llama"),
        ({"pre": "qwen2"}, r"its tokenizer \(gpt2, qwen2\) is not converted"),
        ({"scaling": gguf.RopeScalingType.YARN}, r"rotary embedding is scaled \(yarn\)"),
        ({"name": lambda name: name.replace("ffn_up", "ffn_odd")}, "tensor 'blk.0.ffn_odd.weight' is none of a plain LLaMA's"),
    ],
)
def test_another_model_is_refused_and_leaves_nothing(tmp_path, weights, changed, message):
    file = write(tmp_path / "m.gguf", weights, **changed)
    with pytest.raises(UserError, match=message):
        convert_gguf(file, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]
