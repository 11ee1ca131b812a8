"""Checkpoints: headers, indexes, configs, adapters, tokenizers, chat templates."""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from align_jax import hf
from align_jax.data import DataConfig, Encoder
from align_jax.data.formats import Example
from align_jax.data.sources import RowError
from align_jax.errors import UserError
from align_jax.hf.files import Checkpoint
from align_jax.models import weight_shapes
from align_jax.recipes.fits import check_weights_fit
from align_jax.recipes.tokenizer import load_tokenizer, read_template
from tests.data.toys import CHAT, char_tokenizer
from tests.hostile.given import TEXTS, changed, damaged, nested, safetensors_of, spelled
from tests.hostile.guards import few, folder, harmless

HEADER = {
    "__metadata__": {"format": "pt"},
    "a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]},
    "b": {"dtype": "BF16", "shape": [4], "data_offsets": [16, 24]},
}
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 64,
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 4,
    "hidden_act": "silu",
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "rope_scaling": {"rope_type": "linear", "factor": 2.0},
    "tie_word_embeddings": True,
}
GEMMA = {
    **CONFIG,
    "architectures": ["Gemma3ForCausalLM"],
    "model_type": "gemma3_text",
    "hidden_activation": "gelu_pytorch_tanh",
    "sliding_window": 8,
    "layer_types": ["sliding_attention", "full_attention"],
    "rope_scaling": None,
    "rope_parameters": {
        "full_attention": {"rope_type": "default", "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    },
}
YARN = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 8, "mscale": 1.0, "mscale_all_dim": 0.5}
PHI = {**CONFIG, "architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "original_max_position_embeddings": 16}
PHI["rope_scaling"] = {"type": "longrope", "short_factor": [1.0, 1.0], "long_factor": [2.0, 2.0]}
ADAPTER = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "base_model_name_or_path": "x"}


def opened(name: str, size: int, here: Path) -> None:
    with harmless(name, size, here):
        checkpoint = Checkpoint(here)
        for tensor, shape in checkpoint.shapes.items():
            checkpoint.dtype(tensor)
            assert checkpoint.read(tensor, tuple(slice(None) for _ in shape)).shape == shape


@few(60)
@given(st.one_of(changed(HEADER), TEXTS), st.sampled_from([None, None, 0, 1, 10**6, 2**40, 2**63, 2**64 - 1]))
@example("[" * 10_000, None)
@example({**HEADER, "b": {**HEADER["b"], "data_offsets": [8, 16]}}, None)
@example({**HEADER, "b": {**HEADER["b"], "data_offsets": [16, 2**60]}}, None)
@example({"a": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 24]}}, None)
@example({f"t{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(20_000)}, None)
def test_headers_are_taken_or_refused(header, length):
    with folder() as here:
        data = safetensors_of(header, bytes(24), length)
        Path("model.safetensors").write_bytes(data)
        opened("headers", len(data), here)


@few()
@given(damaged(safetensors_of(HEADER, bytes(24))))
def test_bytes_are_a_checkpoint_or_refused(data):
    with folder() as here:
        Path("model.safetensors").write_bytes(data)
        opened("bytes of checkpoints", len(data), here)


INDEX = {"metadata": {"total_size": 24}, "weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}


@few()
@given(st.one_of(changed(INDEX), TEXTS.map(lambda text: {"weight_map": {"a": text, "b": "model-2.safetensors"}})))
@example({"weight_map": {"a": "../outside.safetensors", "b": "model-2.safetensors"}})
@example({"weight_map": {"a": "..", "b": "model-2.safetensors"}})
@example({"weight_map": {"a": "", "b": "model-2.safetensors"}})
@example({"weight_map": {"a": "a\0b"}})
@example({"weight_map": nested(400, dict)})
def test_indexes_are_taken_or_refused(index):
    with folder() as outside:
        here = outside / "model"
        here.mkdir()
        first = safetensors_of({"a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}}, bytes(16))
        (here / "model-1.safetensors").write_bytes(first)
        (outside / "outside.safetensors").write_bytes(first)
        (here / "model-2.safetensors").write_bytes(
            safetensors_of({"b": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, bytes(8))
        )
        text = spelled(index)
        (here / "model.safetensors.index.json").write_text(text, errors="surrogatepass")
        opened("indexes", len(text), here)


@few(60)
@given(
    st.sampled_from([CONFIG, GEMMA, PHI, {**CONFIG, "rope_scaling": YARN}]).flatmap(changed), st.sampled_from(["lm_head", None])
)
@example({**CONFIG, "num_hidden_layers": 1_000_000}, "lm_head")
@example({**CONFIG, "hidden_size": 10**8, "head_dim": 10**4}, "lm_head")
@example({**CONFIG, "rope_theta": 0}, "lm_head")
@example({**CONFIG, "architectures": [["a"]]}, None)
@example({**CONFIG, "quantization_config": [1]}, "lm_head")
@example([], None)
def test_configs_of_models_are_taken_or_refused(values, head):
    with folder() as here:
        text = spelled(values)
        Path("config.json").write_text(text, errors="surrogatepass")
        with harmless("configs of models", len(text), here):
            shape, _ = hf.load_config(here, head)
            weight_shapes(shape)
            check_weights_fit(shape, None, "float32", "model")


@few()
@given(changed(ADAPTER))
@example({**ADAPTER, "peft_type": list(range(2000))})
@example({**ADAPTER, "r": None})
@example({**ADAPTER, "rank_pattern": {"(a+)+$": 4}})
@example({**ADAPTER, "rank_pattern": {"(": 4}, "alpha_pattern": [1]})
def test_configs_of_adapters_are_taken_or_refused(values):
    shape = hf.model_config_from_hf(CONFIG, "config.json")
    header = {
        f"base_model.model.model.layers.{i}.self_attn.q_proj.lora_{kind}.weight": {
            "dtype": "F32", "shape": [2, 8], "data_offsets": [at * 64, at * 64 + 64]
        }
        for at, (i, kind) in enumerate((i, kind) for i in range(2) for kind in "AB")
    }  # fmt: skip
    for name in header:
        header[name]["shape"] = [2, 8] if "lora_A" in name else [8, 2]
    with folder() as here:
        text = spelled(values)
        Path("adapter_config.json").write_text(text, errors="surrogatepass")
        Path("adapter_model.safetensors").write_bytes(safetensors_of(header, bytes(256)))
        with harmless("configs of adapters", len(text), here):
            hf.refuse_adapter(here) if hasattr(hf, "refuse_adapter") else None
            hf.read_adapter(here, shape)


@functools.cache
def tokenizer_files() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        char_tokenizer(chat=CHAT, spaces=True).save_pretrained(name)
        texts = {path.name: path.read_text() for path in Path(name).iterdir()}
    found = {name: json.loads(text) for name, text in texts.items() if name.endswith(".json")}
    found["tokenizer_config.json"]["chat_template"] = CHAT
    vocabulary = found["tokenizer.json"]["model"]["vocab"]
    for token in [token for token in vocabulary if len(token) == 1 and token not in "qa▁ |\n"]:
        del vocabulary[token]  # few places that can be changed are pieces
    return found


@st.composite
def tokenizers(draw: Any) -> dict[str, Any]:
    files = dict(tokenizer_files())
    for name in draw(st.sampled_from([("tokenizer.json",), ("tokenizer_config.json",), tuple(files)])):
        files[name] = draw(changed(files[name]))
    return files


def encode(made: Any) -> None:
    """What is done with a tokenizer."""
    config = DataConfig()
    try:
        encoder = Encoder(made, config, 200)
        prompt = encoder.prompt(Example("q", ("a",)))
        encoder.answer(prompt, "a")
        _ = encoder.end_ids
        chat = encoder.prompt(Example(({"role": "user", "content": "q"},), ("a",)))
        encoder.answer(chat, "a")
    except RowError as error:
        raise UserError(str(error)) from error


@few()
@given(tokenizers())
@example(tokenizer_files())
@example({**tokenizer_files(), "tokenizer_config.json": {**tokenizer_files()["tokenizer_config.json"], "unk_token": "absent"}})
@example({**tokenizer_files(), "tokenizer_config.json": {**tokenizer_files()["tokenizer_config.json"], "chat_template": False}})
@example({"tokenizer.json": {}})
@example({"tokenizer.json": []})
@example({"tokenizer.json": nested(400)})
@example({"tokenizer.json": {}, "tokenizer_config.json": {"tokenizer_class": ["a"]}})
@example({"tokenizer_config.json": {"auto_map": {"AutoTokenizer": ["evil.Evil", None]}}})
def test_tokenizers_are_taken_or_refused(files):
    with folder() as here:
        size = 0
        for name, values in files.items():
            text = spelled(values)
            Path(name).write_text(text, errors="surrogatepass")
            size += len(text)
        with harmless("tokenizers", size, here):
            encode(load_tokenizer(here, "model.tokenizer"))


@few()
@given(damaged(json.dumps(tokenizer_files()["tokenizer.json"]).encode()))
@example(b"[" * 100_000)
def test_bytes_are_a_tokenizer_or_refused(data):
    with folder() as here:
        Path("tokenizer.json").write_bytes(data)
        Path("tokenizer_config.json").write_text(json.dumps(tokenizer_files()["tokenizer_config.json"]))
        with harmless("bytes of tokenizers", len(data), here):
            encode(load_tokenizer(here, "model.tokenizer"))


PIECES = [
    "{% for m in messages %}",
    "{% endfor %}",
    "{{ m.content }}",
    "{{ m['role'] }}",
    "{% if m %}",
    "{% endif %}",
    "{{",
    "}}",
]
PIECES += [
    "{{ messages[0]['content'] }}",
    "{{ eos_token }}",
    "{{ x.y.z }}",
    "{{ 1 / 0 }}",
    "{{ 'a' * 10 ** 9 }}",
    "{% set a = a %}",
]
PIECES += ["{{ ''.__class__.__mro__ }}", "{% include 'x' %}", "{% import 'os' as os %}", "{{ cycler.__init__.__globals__ }}"]
PIECES += [
    "{{ raise_exception('no') }}",
    "{{ range(10**9) }}",
    "{% generation %}",
    "{% endgeneration %}",
    "{{ strftime_now('%d') }}",
]
PIECES += ["{{ messages | tojson }}", "{{ messages.append(1) }}", "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "(", "a"]


@few()
@given(st.lists(st.one_of(st.sampled_from(PIECES), TEXTS), max_size=7).map("".join))
@example("{{ 10 ** 10 ** 8 }}")
@example("{{" + "1" * 4500)
@example("{{ '%9999999d' | format(1) }}")
@example("{{" + "(" * 5000)
@example("{% if 1 %}" * 3000)
def test_chat_templates_are_taken_or_refused(template):
    with folder() as here:
        Path("t.jinja").write_text(template, errors="surrogatepass")
        made = char_tokenizer(chat="x")
        with harmless("chat templates", len(template), here):
            made.chat_template = read_template("t.jinja")
            encode(made)


def test_what_is_changed_was_well_formed():
    with folder() as here:
        for name, values in tokenizer_files().items():
            Path(name).write_text(json.dumps(values))
        encode(load_tokenizer(here, "model.tokenizer"))
        for values in (CONFIG, GEMMA, PHI, {**CONFIG, "rope_scaling": YARN}):
            hf.model_config_from_hf(values, "config.json")
