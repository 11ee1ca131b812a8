"""A LLaMA in one GGUF file (llama.cpp's format, often of 4 bits) as a Hugging Face folder, without PyTorch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from align_jax.errors import UserError, optional
from align_jax.hf.files import SINGLE
from align_jax.hf.folder import written_whole
from align_jax.hf.writer import write_json, write_safetensors

# llama.cpp's names -> Hugging Face's.
_WHOLE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_IN_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_DIGITS = {"smollm": True, "gpt-2": False, "default": False}  # tokenizer.ggml.pre -> whether each digit is a word of its own
_CONTROL, _USER_DEFINED = 3, 4  # tokenizer.ggml.token_type


def convert_gguf(file: Path, out: Path) -> None:
    """Writes a Hugging Face folder: config.json, bfloat16 safetensors, tokenizer and chat template.

    Quantized weights are multiplied out, so they stay what the few bits made of them. The rows of the query and key
    projections come back into the order of Hugging Face's rotary embedding: llama.cpp keeps those two numbers beside each
    other that are rotated together, Hugging Face half a head apart.

    Args:
      file: a `llama` with a byte-level BPE tokenizer. out: a folder, replaced where it is there.

    Raises:
      MissingPackage: the package gguf is not installed.
      UserError: another kind of model or tokenizer; names what is not supported.
    """
    gguf = optional("gguf", "smollm2", f"reading {file.name}")
    reader = gguf.GGUFReader(file)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    config = _config(fields, {tensor.name for tensor in reader.tensors}, file)
    tokenizer = _tokenizer(fields, file)
    listed = [(_name(tensor.name, file), tuple(int(n) for n in reversed(tensor.shape))) for tensor in reader.tensors]
    bfloat16 = np.dtype(ml_dtypes.bfloat16)

    def arrays() -> Iterator[np.ndarray]:
        for tensor, (name, shape) in zip(reader.tensors, listed, strict=True):
            values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(shape)
            for projection, heads in (("q_proj", "num_attention_heads"), ("k_proj", "num_key_value_heads")):
                if f".{projection}." in name:
                    values = _halves_apart(values, config[heads])
            yield values.astype(bfloat16)

    with written_whole(out) as folder:
        write_json(folder / "config.json", config)
        ids = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if key in config}
        write_json(folder / "generation_config.json", ids)
        tokenizer.save_pretrained(folder)
        write_safetensors(folder / SINGLE, listed, bfloat16, arrays())


def _config(fields: dict[str, Any], tensors: set[str], file: Path) -> dict[str, Any]:
    kind = fields.get("general.architecture")
    if kind != "llama":
        raise UserError(f"{file}: general.architecture is {kind!r}; only llama is converted")
    if (scaling := fields.get("llama.rope.scaling.type", "none")) != "none" or "rope_freqs.weight" in tensors:
        raise UserError(f"{file}: its rotary embedding is scaled ({scaling}), which is not converted")
    take = lambda key: fields[f"llama.{key}"]  # noqa: E731
    heads, width = take("attention.head_count"), take("embedding_length")
    special = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}
    ids = {ours: fields.get(f"tokenizer.ggml.{theirs}_token_id") for ours, theirs in special.items()}
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "vocab_size": len(fields["tokenizer.ggml.tokens"]),
        "hidden_size": width,
        "intermediate_size": take("feed_forward_length"),
        "num_hidden_layers": take("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": fields.get("llama.attention.head_count_kv", heads),
        "head_dim": fields.get("llama.attention.key_length", width // heads),
        "max_position_embeddings": take("context_length"),
        "rms_norm_eps": take("attention.layer_norm_rms_epsilon"),
        "rope_theta": fields.get("llama.rope.freq_base", 10000.0),
        "hidden_act": "silu",
        "tie_word_embeddings": "output.weight" not in tensors,
        **{name: value for name, value in ids.items() if value is not None},
    }


def _name(tensor: str, file: Path) -> str:
    """`blk.3.attn_q.weight` -> `model.layers.3.self_attn.q_proj.weight`."""
    stem, _, kind = tensor.rpartition(".")
    if kind == "weight" and stem in _WHOLE:
        return f"{_WHOLE[stem]}.weight"
    block, _, rest = stem.partition(".")
    layer, _, part = rest.partition(".")
    if kind != "weight" or block != "blk" or part not in _IN_LAYER:
        raise UserError(f"{file}: tensor {tensor!r} is none of a plain LLaMA's")
    return f"model.layers.{layer}.{_IN_LAYER[part]}.weight"


def _halves_apart(values: np.ndarray, heads: int) -> np.ndarray:
    """Rows of each head from pairs (0 and 1 are rotated together) to halves (0 and head_dim / 2 are)."""
    rows, columns = values.shape
    return values.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def _tokenizer(fields: dict[str, Any], file: Path) -> Any:
    """The transformers tokenizer, as the model's own `tokenizer.json` would make it."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    kind, before = fields.get("tokenizer.ggml.model"), fields.get("tokenizer.ggml.pre", "default")
    if kind != "gpt2" or before not in _DIGITS or fields.get("tokenizer.ggml.add_bos_token"):
        raise UserError(
            f"{file}: its tokenizer ({kind}, {before}) is not converted; byte-level BPE without a BOS is ({', '.join(_DIGITS)})"
        )
    tokens, kinds = fields["tokenizer.ggml.tokens"], fields.get("tokenizer.ggml.token_type", [])
    merges = [tuple(merge.split(" ", 1)) for merge in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    words = [pre_tokenizers.ByteLevel(add_prefix_space=False)]
    digits = [pre_tokenizers.Split(Regex(r"\p{N}"), "isolated")] if _DIGITS[before] else []
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*digits, *words])
    tokenizer.decoder = decoders.ByteLevel()
    added = [(token, kind) for token, kind in zip(tokens, kinds, strict=False) if kind in (_CONTROL, _USER_DEFINED)]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token, k in added if k == _CONTROL])
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token, k in added if k == _USER_DEFINED])
    names = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    ids = {name: fields.get(f"tokenizer.ggml.{theirs}_token_id") for name, theirs in names.items()}
    special = {name: tokens[i] for name, i in ids.items() if i is not None}
    template = fields.get("tokenizer.chat_template")
    options = special | ({} if template is None else {"chat_template": template})
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **options)
