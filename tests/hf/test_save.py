"""Export: transformers computes the same logits, no bit changes on the way, and nothing of the user's is lost."""

from __future__ import annotations

import collections
import json
import os
import shutil
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from safetensors import safe_open

from align_jax.errors import UserError
from align_jax.hf import load_config, load_model, save, save_model
from align_jax.models import Decoder, ModelConfig, weight_shapes
from align_jax.parallel.mesh import make_mesh
from tests.hf import models

_CONFIG = ModelConfig(64, 32, 48, 2, 4, 2, 8)


def _random_model(config):
    rng = np.random.default_rng(0)
    shapes = weight_shapes(config)
    weights = jax.tree.map(
        lambda shape: jnp.asarray(rng.standard_normal(shape, np.float32)),
        shapes,
        is_leaf=lambda x: isinstance(x, tuple),
    )
    return Decoder(config, weights, dtype=jnp.float32)


@pytest.fixture
def model():
    return _random_model(_CONFIG)


@pytest.fixture
def tokenizer():
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    words = {"<unk>": 0, "a": 1, "b": 2, "<s>": 5, "</s>": 9}
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="<unk>")),
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        chat_template="{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}",
    )


def _raw(folder) -> dict[str, tuple]:
    """Tensor name -> type, shape and bytes, over all files."""
    out = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="numpy") as opened:
            for name in opened.keys():
                assert name not in out
                array = opened.get_tensor(name)
                out[name] = (array.dtype.name, array.shape, array.tobytes())
    return out


def _siblings(folder):
    return sorted(os.listdir(folder.parent))


_VARIANTS = ["llama3.1", "llama3.2", "linear", "odd_heads", "mistral_window", "qwen2_window", "qwen3"]
_VARIANTS += ["dynamic", "yarn_mscale", "qwen2_mixed", "gemma2", "gemma3", "ministral", "smollm3", "granite", "olmo2", "olmo3"]
_VARIANTS += ["phi3", "phi4_mini", "mixtral", "qwen3_moe_not_normed", "seed_oss", "gpt_oss"]


@pytest.mark.parametrize("variant", _VARIANTS)
def test_transformers_computes_the_same_logits(variant, tmp_path):
    source = models.save(models.torch_model(variant), tmp_path / "source")
    model = load_model(source, dtype="float32")
    save_model(model, tmp_path / "out", max_shard_bytes=20_000)
    theirs, info = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", attn_implementation="eager", output_loading_info=True
    )
    assert not any(info.values()), info
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1
    tokens = models.tokens(3)
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens)).logits.numpy()
    np.testing.assert_allclose(jax.jit(model)(tokens), expected, rtol=0, atol=1e-4)
    assert load_config(tmp_path / "out")[0] == load_config(source)[0]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("mesh", [None, (2, 2, 2)])
def test_import_then_export_is_bit_exact(dtype, mesh, tmp_path):
    original = models.torch_model("llama3.1", getattr(torch, dtype))
    with torch.no_grad():  # zeros of both signs, and a number too small to be normal in any of the types
        original.model.layers[1].mlp.up_proj.weight[0, :3] = torch.tensor([-0.0, 0.0, 1e-39 if dtype != "float16" else 1e-7])
    source = models.save(original, tmp_path / "source")
    model = load_model(source, mesh and make_mesh(*mesh), param_dtype=dtype)
    save_model(model, tmp_path / "out")
    assert _raw(tmp_path / "out") == _raw(source)
    assert transformers.AutoConfig.from_pretrained(tmp_path / "out").dtype == getattr(torch, dtype)


def test_float32_parameters_are_rounded_to_the_asked_type(model, tmp_path):
    save_model(model, tmp_path / "out", dtype="bfloat16")
    dtype, _, data = _raw(tmp_path / "out")["model.layers.1.self_attn.o_proj.weight"]
    assert dtype == "bfloat16"
    expected = np.asarray(model.layers.o[1].reshape(32, 32).T.astype(jnp.bfloat16))
    assert data == expected.tobytes()
    with pytest.raises(UserError, match="dtype is 'int8'"):
        save_model(model, tmp_path / "other", dtype="int8")


def test_value_beyond_float16_is_named(model, tmp_path):
    model.layers.up[...] = model.layers.up[...].at[1, 0, 0].set(1e6)
    with pytest.raises(UserError, match=r"'model.layers.1.mlp.up_proj.weight' has values that float16 cannot hold"):
        save_model(model, tmp_path / "out", dtype="float16")
    assert not os.listdir(tmp_path)


def test_shards_and_index(model, tmp_path):
    out = tmp_path / "new" / "out"
    save_model(model, out, max_shard_bytes=20_000)
    index = json.loads((out / "model.safetensors.index.json").read_text())
    by_file = collections.defaultdict(int)
    for name, (_, _, data) in (raw := _raw(out)).items():
        by_file[index["weight_map"][name]] += len(data)
    assert set(index["weight_map"]) == set(raw)
    assert index["metadata"]["total_size"] == sum(by_file.values())
    assert sorted(by_file) == [f"model-{i + 1:05d}-of-{len(by_file):05d}.safetensors" for i in range(len(by_file))]
    assert len(by_file) > 1 and max(by_file.values()) <= 20_000
    save_model(model, tmp_path / "one")
    assert [p.name for p in (tmp_path / "one").glob("model*")] == ["model.safetensors"]
    assert _raw(tmp_path / "one") == raw
    save_model(model, tmp_path / "tiny", max_shard_bytes=1)
    assert _raw(tmp_path / "tiny") == raw
    with pytest.raises(UserError, match="max_shard_bytes is 0"):
        save_model(model, tmp_path / "none", max_shard_bytes=0)


def test_host_memory_holds_one_tensor(model, tmp_path, monkeypatch):
    live, original = [], save._fetch

    def fetch(*args):
        assert all(ref() is None for ref in live)
        array = original(*args)
        live.append(weakref.ref(array))
        return array

    monkeypatch.setattr(save, "_fetch", fetch)
    save_model(model, tmp_path / "out")
    assert len(live) == 2 * 9 + 3


def test_compilations_do_not_grow_with_depth(tmp_path, caplog):
    counts = []
    for layers in (3, 6):
        config = ModelConfig(64, 16, 24, layers, 4, 2, 4)
        model = _random_model(config)
        caplog.clear()
        with jax.log_compiles(True):
            save_model(model, tmp_path / str(layers))
        counts.append(sum("Finished XLA compilation" in record.message for record in caplog.records))
    assert 0 < counts[1] <= counts[0] <= 12


def test_tokenizer_object(model, tokenizer, tmp_path):
    save_model(model, tmp_path / "out", tokenizer)
    _check_tokenizer(tmp_path / "out", tokenizer)
    config = transformers.AutoConfig.from_pretrained(tmp_path / "out")
    generation = transformers.GenerationConfig.from_pretrained(tmp_path / "out")
    for loaded in (config, generation):
        assert (loaded.bos_token_id, loaded.eos_token_id, loaded.pad_token_id) == (5, 9, None)


def test_tokenizer_folder(model, tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    (tmp_path / "tokenizer" / "secret.txt").write_text("x")
    save_model(model, tmp_path / "out", tmp_path / "tokenizer")
    _check_tokenizer(tmp_path / "out", tokenizer)
    assert not (tmp_path / "out" / "secret.txt").exists()
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="tokenizer folder .*empty has none of tokenizer.json"):
        save_model(model, tmp_path / "out2", str(tmp_path / "empty"))
    with pytest.raises(UserError, match="tokenizer is a int"):
        save_model(model, tmp_path / "out2", 3)


def _check_tokenizer(folder, expected):
    loaded = transformers.AutoTokenizer.from_pretrained(folder)
    chat = [{"role": "user", "content": "a"}]
    assert loaded.get_vocab() == expected.get_vocab()
    assert loaded.apply_chat_template(chat, tokenize=False) == "<user>a"


def test_base_and_generation_config(model, tokenizer, tmp_path):
    base = {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "eos_token_id": [2, 3], "note": "kept"}
    save_model(model, tmp_path / "out", tokenizer, base_config=base, generation_config={"temperature": 0.6})
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["eos_token_id"], config["bos_token_id"], config["note"]) == ([2, 3], 5, "kept")
    assert config["architectures"] == ["MistralForCausalLM"] and config["sliding_window"] is None
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text()) == {"temperature": 0.6}
    with pytest.raises(UserError, match="GPT2LMHeadModel"):
        save_model(model, tmp_path / "out2", base_config={"architectures": ["GPT2LMHeadModel"]})


def test_earlier_export_is_replaced_and_nothing_else(model, tokenizer, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    save_model(model, out, tokenizer, max_shard_bytes=20_000)  # an empty folder is fine
    save_model(model, out)
    assert sorted(os.listdir(out)) == ["config.json", "generation_config.json", "model.safetensors"]
    (tmp_path / "plain").mkdir()
    assert out.stat().st_mode == (tmp_path / "plain").stat().st_mode
    (tmp_path / "plain").rmdir()
    (out / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="not an earlier export .it holds notes.txt"):
        save_model(model, out)
    foreign = models.save(models.torch_model("llama2"), tmp_path / "foreign")
    before = _raw(foreign)
    with pytest.raises(UserError, match="foreign is not empty and not an earlier export"):
        save_model(model, foreign)
    assert _raw(foreign) == before
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        save_model(model, tmp_path / "file")
    assert _siblings(out) == ["file", "foreign", "out"]


def test_link_to_an_earlier_export(model, tmp_path):
    save_model(model, tmp_path / "real", dtype="bfloat16")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    save_model(model, tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert _raw(tmp_path / "real")["model.norm.weight"][0] == "float32"


def test_failure_leaves_what_was_there(model, tmp_path, monkeypatch):
    out = tmp_path / "out"
    save_model(model, out)
    before = _raw(out)
    model.norm[...] = model.norm[...] * 2

    def fail(*args):
        raise OSError("disk is gone")

    with monkeypatch.context() as patch:
        patch.setattr(save, "write_json", fail)
        with pytest.raises(OSError, match="disk is gone"):
            save_model(model, out)
    assert _raw(out) == before and _siblings(out) == ["out"]
    save_model(model, out)
    assert _raw(out) != before and _siblings(out) == ["out"]


def test_full_disk_is_noticed_before_writing(model, tmp_path, monkeypatch):
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 1000))
    with pytest.raises(UserError, match=r"needs 0.00 GB, but .* has 0.00 GB free"):
        save_model(model, tmp_path / "a" / "out")
    assert not os.listdir(tmp_path)
