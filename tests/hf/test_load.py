"""Import: sharded placement, bounded memory and compilation, and every way a checkpoint can be wrong."""

from __future__ import annotations

import json
import weakref

import huggingface_hub
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from huggingface_hub.utils import filter_repo_objects
from safetensors.numpy import load_file, save_file

from align_jax.errors import UserError
from align_jax.hf import load, load_config, load_generation_config, load_model, load_weights, resolve_folder
from align_jax.hf.files import Checkpoint
from align_jax.models import weight_shardings
from align_jax.parallel.mesh import make_mesh
from tests.hf import models

_SHARDED = {"max_shard_size": "20KB"}


@pytest.fixture
def folder(tmp_path):
    return models.save(models.torch_model("llama2"), tmp_path / "model")


@pytest.fixture
def sharded(tmp_path):
    return models.save(models.torch_model("llama2"), tmp_path / "sharded", **_SHARDED)


def _edit(folder, change):
    """Rewrites model.safetensors after `change(tensors)`."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_one_file_and_many_files_load_alike(folder, sharded):
    assert len(list(sharded.glob("*.safetensors"))) > 2
    config, _ = load_config(folder)
    assert jax.tree.all(jax.tree.map(np.array_equal, load_weights(folder, config), load_weights(sharded, config)))


def test_import_onto_a_mesh_equals_import_onto_one_device(sharded):
    mesh = make_mesh(2, 2, 2)
    config, _ = load_config(sharded)
    shardings = weight_shardings(config, mesh)
    ours = load_weights(sharded, config, shardings)
    jax.tree.map(lambda x, s: (x.sharding == s) or pytest.fail(f"{x.sharding} is not {s}"), ours, shardings)
    assert ours["layers"]["q"].addressable_shards[0].data.size == ours["layers"]["q"].size // 4
    jax.tree.map(np.testing.assert_array_equal, ours, load_weights(sharded, config))
    assert load_model(sharded, mesh).embed[...].sharding == shardings["embed"]


@pytest.mark.parametrize("mesh", [None, (2, 2, 2)])
def test_host_memory_holds_one_tensor_at_a_time(sharded, mesh, monkeypatch):
    config, _ = load_config(sharded)
    shardings = mesh and weight_shardings(config, make_mesh(*mesh))
    checkpoint = Checkpoint(sharded)
    largest = {name: int(np.prod(shape)) * 4 for name, shape in checkpoint.shapes.items()}
    live, read_bytes, original = [], {}, Checkpoint.read

    def read(self, name, index):
        others = [other for other, ref in live if ref() is not None and other != name]
        assert not others, f"{others} still in memory while {name} is read"
        array = original(self, name, index)
        live.append((name, weakref.ref(array)))
        read_bytes[name] = read_bytes.get(name, 0) + array.nbytes
        return array

    monkeypatch.setattr(Checkpoint, "read", read)
    load_weights(sharded, config, shardings)
    # Every byte exactly once, however many devices hold a copy.
    assert read_bytes == largest


def test_compilations_do_not_grow_with_depth(tmp_path, caplog):
    counts = []
    for layers in (3, 7):
        own = {"hidden_size": 40, "intermediate_size": 56, "vocab_size": 70}  # a shape whose programs no other test has made
        folder = models.save(models.torch_model("llama2", num_hidden_layers=layers, **own), tmp_path / str(layers))
        config, _ = load_config(folder)
        caplog.clear()
        with jax.log_compiles(True):
            load_weights(folder, config)
        counts.append(sum("Finished XLA compilation" in record.message for record in caplog.records))
    assert 0 < counts[1] <= counts[0] <= 21  # two programs for each of 9 stacked weights, one for each of 3 others


@pytest.mark.parametrize("stored", [np.float32, ml_dtypes.bfloat16, np.float16])
def test_stored_types_are_converted_to_param_dtype(folder, stored):
    def convert(tensors):
        for name in tensors:
            tensors[name] = tensors[name].astype(stored)

    _edit(folder, convert)
    config, _ = load_config(folder)
    expected = load_file(folder / "model.safetensors")["model.layers.1.mlp.down_proj.weight"]
    for param_dtype in ("float32", jnp.bfloat16):
        down = load_weights(folder, config, param_dtype=param_dtype)["layers"]["down"]
        assert down.dtype == jnp.dtype(param_dtype)
        np.testing.assert_array_equal(down[1].T, expected.astype(jnp.dtype(param_dtype)))


def test_model_types(folder):
    model = load_model(folder, dtype="bfloat16", param_dtype="float32")
    assert model.dtype == jnp.bfloat16 and model.embed[...].dtype == jnp.float32
    with pytest.raises(UserError, match="dtype is 'int8'"):
        load_model(folder, dtype="int8")
    with pytest.raises(UserError, match="param_dtype is 'float33'"):
        load_model(folder, param_dtype="float33")


def test_known_extra_buffers_are_ignored(folder):
    tokens = np.arange(6)[None]
    before = load_model(folder, dtype="float32")(tokens)
    _edit(folder, lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32)}))
    np.testing.assert_array_equal(load_model(folder, dtype="float32")(tokens), before)


def test_stored_head_of_a_tied_model(tmp_path):
    folder = models.save(models.torch_model("llama3.2"), tmp_path / "tied")
    config, _ = load_config(folder)
    _edit(folder, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].copy()}))
    assert "lm_head" not in load_weights(folder, config)
    _edit(
        folder,
        lambda t: t.update({"lm_head.weight": t["lm_head.weight"] + np.eye(*t["lm_head.weight"].shape, 3, "f4")}),
    )
    with pytest.raises(UserError, match=r"'lm_head.weight' differs from 'model.embed_tokens.weight'"):
        load_weights(folder, config)


def test_reward_head(folder):
    score = np.arange(32, dtype=np.float32)[None]

    def change(tensors):
        del tensors["lm_head.weight"]
        tensors["score.weight"] = score

    _edit(folder, change)
    models.edit_config(folder, {"architectures": ["LlamaForSequenceClassification"]})
    config, _ = load_config(folder, head="score")
    for shardings in (None, weight_shardings(config, make_mesh(2, 2, 2))):
        weights = load_weights(folder, config, shardings)
        np.testing.assert_array_equal(weights["score"], score.T)
        assert "lm_head" not in weights
    with pytest.raises(UserError, match="LlamaForSequenceClassification"):
        load_model(folder)


_WRONG_TENSORS = {
    "missing": (
        lambda t: t.pop("model.layers.1.mlp.up_proj.weight"),
        r"missing tensor 'model.layers.1.mlp.up_proj.weight'",
    ),
    "no_head": (lambda t: t.pop("lm_head.weight"), r"missing tensor 'lm_head.weight' \(config.json does not tie"),
    "unexpected": (
        lambda t: t.update({"model.layers.2.mlp.up_proj.weight": np.ones((2, 2), np.float32)}),
        r"unexpected tensor 'model.layers.2.mlp.up_proj.weight'",
    ),
    "bias": (
        lambda t: t.update({"model.layers.0.self_attn.q_proj.bias": np.ones(32, np.float32)}),
        r"unexpected tensor 'model.layers.0.self_attn.q_proj.bias'",
    ),
    "misshapen": (
        lambda t: t.update({"model.layers.0.self_attn.k_proj.weight": np.ones((32, 16), np.float32)}),
        r"'model.layers.0.self_attn.k_proj.weight' in .*safetensors has shape \[32, 16\].* asks for \[16, 32\]",
    ),
    "integers": (
        lambda t: t.update({"model.norm.weight": np.ones(32, np.int32)}),
        r"'model.norm.weight' in .*safetensors has type I32",
    ),
}


@pytest.mark.parametrize("case", _WRONG_TENSORS)
def test_wrong_tensors_are_named(case, folder):
    change, message = _WRONG_TENSORS[case]
    _edit(folder, change)
    with pytest.raises(UserError, match=message):
        load_model(folder)


def _shard_of(folder, name):
    return json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"][name]


def _duplicate(folder):
    home = _shard_of(folder, "model.norm.weight")
    other = next(p for p in sorted(folder.glob("*.safetensors")) if p.name != home)
    save_file({**load_file(other), "model.norm.weight": np.ones(32, np.float32)}, other)
    return r"tensor 'model.norm.weight' is in two files"


def _unlisted(folder):
    file = sorted(folder.glob("*.safetensors"))[0]
    save_file({**load_file(file), "model.extra": np.ones(32, np.float32)}, file)
    return rf"{file.name} holds tensor 'model.extra', which model.safetensors.index.json does not list"


def _index_edit(change):
    def apply(folder):
        index = json.loads((folder / "model.safetensors.index.json").read_text())
        message = change(index["weight_map"])
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        return message

    return apply


def _misdirect(weight_map):
    files = sorted(set(weight_map.values()))
    weight_map["model.imaginary"] = files[0]
    return rf"says that tensor 'model.imaginary' is in {files[0]}, but it is not there"


def _escape(weight_map):
    weight_map["model.norm.weight"] = "../other.safetensors"
    return r"tensor 'model.norm.weight' is in '../other.safetensors'"


def _absent(folder):
    file = _shard_of(folder, "model.norm.weight")
    (folder / file).unlink()
    return rf"{file}: listed in model.safetensors.index.json but absent"


def _truncate(folder):
    file = _shard_of(folder, "model.norm.weight")
    (folder / file).write_bytes((folder / file).read_bytes()[:-100])
    return rf"{file}: truncated or not a safetensors file"


def _both(folder):
    save_file({"x": np.ones(1)}, folder / "model.safetensors")
    return "has both model.safetensors and model.safetensors.index.json"


def _broken_index(folder):
    (folder / "model.safetensors.index.json").write_text("{")
    return r"model.safetensors.index.json: not valid JSON"


def _no_map(folder):
    (folder / "model.safetensors.index.json").write_text("{}")
    return r"'weight_map' is missing"


def _pickle_only(folder):
    for file in [*folder.glob("*.safetensors"), folder / "model.safetensors.index.json"]:
        file.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"cposix\nsystem\n")
    return r"only pickled weights \(pytorch_model.bin\)"


def _other_safetensors(folder):
    (folder / "model.safetensors.index.json").unlink()
    return r"has neither model.safetensors nor model.safetensors.index.json; found model-00001"


@pytest.mark.parametrize(
    "damage",
    [
        _duplicate,
        _unlisted,
        _index_edit(_misdirect),
        _index_edit(_escape),
        _absent,
        _truncate,
        _both,
        _broken_index,
        _no_map,
    ]
    + [_pickle_only, _other_safetensors],
)
def test_wrong_files_are_named(damage, sharded):
    message = damage(sharded)
    with pytest.raises(UserError, match=message):
        load_model(sharded)


def test_no_such_folder(tmp_path, folder, monkeypatch):
    with pytest.raises(UserError, match="no such folder"):
        load_model(tmp_path / "absent")
    with pytest.raises(UserError, match="is a file"):
        load_model(folder / "config.json")
    with pytest.raises(UserError, match=r"config.json: there is no such file"):
        load_model(tmp_path)

    def offline(*args, **kwargs):
        raise huggingface_hub.errors.OfflineModeIsEnabled("offline mode is enabled\nmore")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(UserError, match=r"'some/model'.*hub id.*OfflineModeIsEnabled: offline mode is enabled$"):
        load_model("some/model")


def test_hub_id_downloads_only_what_is_read(folder, monkeypatch):
    repository = [
        "model.safetensors",
        "model-00001-of-00002.safetensors",
        "config.json",
        "model.safetensors.index.json",
    ]
    repository += ["generation_config.json", "tokenizer.json", "tokenizer.model", "chat_template.jinja", "merges.txt"]
    unwanted = ["pytorch_model.bin", "consolidated.safetensors", "original/params.json", "modeling.py", "README.md"]
    asked = {}

    def download(repo_id, *, allow_patterns, ignore_patterns):
        names = filter_repo_objects(
            repository + unwanted, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns
        )
        asked[repo_id] = list(names)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert resolve_folder("some/model") == folder
    assert asked == {"some/model": repository}
    load_model("some/model")


def test_a_revision_is_downloaded_and_only_hub_ids_have_one(folder, tmp_path, monkeypatch):
    asked = []

    def download(repo_id, *, revision=None, **_):
        asked.append((repo_id, revision))
        if revision == "absent":
            raise huggingface_hub.errors.OfflineModeIsEnabled("offline")
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    load_model("some/model@v1.0")
    load_model("some/model")
    assert set(asked) == {("some/model", "v1.0"), ("some/model", None)}
    with pytest.raises(UserError, match="hub id it cannot be downloaded at revision 'absent': OfflineModeIsEnabled"):
        load_config("some/model@absent")
    with pytest.raises(UserError, match="is a folder here, which has no revision 'v1'"):
        load_config(f"{folder}@v1")
    folder.rename(odd := tmp_path / "model@home")
    assert resolve_folder(odd) == odd


@pytest.mark.parametrize("found", ["here", "hub"])
def test_an_adapter_is_no_model(tmp_path, monkeypatch, found):
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "meta-llama/Llama-3.2-1B", "r": 16}')
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(tmp_path))
    with pytest.raises(UserError, match=f"{tmp_path} is an adapter of PEFT for meta-llama/Llama-3.2-1B, .*lora.path"):
        load_model(tmp_path if found == "here" else "some/adapter")


def test_generation_config(folder, tmp_path):
    assert load_generation_config(folder)["eos_token_id"] == 2
    assert load_generation_config(tmp_path) is None


@pytest.mark.parametrize("mesh", [None, (2, 2, 2)])
@pytest.mark.parametrize(
    ("name", "at", "value"),
    [
        ("model.layers.1.self_attn.q_proj.weight", (0, 0), np.inf),
        ("model.layers.0.mlp.down_proj.weight", (-1, -1), np.nan),
        ("model.embed_tokens.weight", (3, 2), -np.inf),
        ("model.norm.weight", (0,), np.nan),
    ],
)
def test_a_weight_that_is_not_finite_is_named(folder, mesh, name, at, value):
    def spoil(tensors):
        tensors[name] = tensors[name].copy()
        tensors[name][at] = value

    config, _ = load_config(folder)
    shardings = mesh and weight_shardings(config, make_mesh(*mesh))
    load_weights(folder, config, shardings)
    _edit(folder, spoil)
    with pytest.raises(UserError, match=rf"tensor '{name}' in .*model.safetensors has 1 weight that is NaN or infinite in f"):
        load_weights(folder, config, shardings)


def test_weights_too_large_for_their_type_are_counted(folder):
    _edit(folder, lambda tensors: tensors.update({"model.norm.weight": np.full_like(tensors["model.norm.weight"], 1e6)}))
    config, _ = load_config(folder)
    load_weights(folder, config, param_dtype="bfloat16")
    count = config.width
    with pytest.raises(UserError, match=f"'model.norm.weight' .* has {count} weights that are NaN or infinite in float16"):
        load_weights(folder, config, param_dtype="float16")


@pytest.mark.parametrize("coarse", [ml_dtypes.bfloat16, np.float16])
@pytest.mark.parametrize("which", ["lm_head.weight", "model.embed_tokens.weight"])
def test_a_tied_head_of_another_precision_is_the_embedding(tmp_path, coarse, which):
    folder = models.save(models.torch_model("llama3.2"), tmp_path / "tied")
    plain = load_model(folder)

    def copy(tensors, nudge=0.0):
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] * np.float32(1 + nudge)
        tensors[which] = tensors[which].astype(coarse)

    original = (folder / "model.safetensors").read_bytes()
    _edit(folder, copy)
    loaded = load_model(folder)
    if which == "lm_head.weight":
        assert np.array_equal(loaded.embed[...], plain.embed[...])
    (folder / "model.safetensors").write_bytes(original)
    _edit(folder, lambda tensors: copy(tensors, 0.02))
    with pytest.raises(UserError, match="config.json ties the embeddings, but 'lm_head.weight' differs"):
        load_model(folder)


def test_unknown_sharding_is_refused(folder):
    config, _ = load_config(folder)
    shardings = weight_shardings(config, make_mesh(2, 2, 2))
    del shardings["norm"]
    with pytest.raises(TypeError, match="norm is None"):
        load.load_weights(folder, config, shardings)
