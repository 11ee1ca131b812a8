"""Adapters of PEFT, read and written: logits equal those of peft, both ways."""

import dataclasses
import json

import jax
import numpy as np
import pytest

import align_jax
from align_jax import hf
from align_jax.errors import UserError
from align_jax.models import Decoder
from align_jax.models.adapting import merged
from align_jax.parallel.mesh import make_mesh

peft = pytest.importorskip("peft")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
TOKENS = np.random.default_rng(0).integers(0, 64, (2, 12))
KINDS = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "patterns": {"rank_pattern": {"q_proj": 2, "layers.1.mlp.down_proj": 3}, "alpha_pattern": {"v_proj": 3}},
    "some_layers": {"layers_to_transform": [1], "use_dora": True},
    "saved": {"modules_to_save": ["lm_head", "input_layernorm"], "target_modules": ["q_proj", "v_proj"]},
    "norm": {"modules_to_save": ["model.norm"], "target_modules": ["q_proj"]},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A folder with a tiny LLaMA."""
    torch.manual_seed(0)
    shape = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": False}
    folder = tmp_path_factory.mktemp("base")
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**shape, **heads)).save_pretrained(folder)
    return folder


def theirs(base, folder, **options):
    """An adapter of PEFT with weights of its own, in a folder; its logits."""
    options = {"r": 4, "lora_alpha": 6, "target_modules": ALL, "task_type": "CAUSAL_LM", "init_lora_weights": False} | options
    model = peft.get_peft_model(transformers.AutoModelForCausalLM.from_pretrained(base), peft.LoraConfig(**options))
    torch.manual_seed(1)
    with torch.no_grad():
        for value in model.parameters():
            if value.requires_grad:
                value.add_(0.05 * torch.randn_like(value))
    model.save_pretrained(folder)
    return logits(model)


def logits(model):
    with torch.no_grad():
        return model(torch.from_numpy(TOKENS)).logits.numpy()


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_of_peft_gives_its_logits_here_merged_and_written_again(kind, base, tmp_path):
    want = theirs(base, tmp_path / "theirs", **KINDS[kind])
    model = hf.load_model(base, dtype="float32", adapter=tmp_path / "theirs")
    np.testing.assert_allclose(model(TOKENS), want, atol=1e-5)
    config, weights = merged(model.config, model.weights())
    np.testing.assert_allclose(Decoder(config, weights, dtype="float32")(TOKENS), want, atol=1e-5)
    hf.save_adapter(model, tmp_path / "ours", base)
    again = peft.PeftModel.from_pretrained(transformers.LlamaForCausalLM.from_pretrained(base), tmp_path / "ours")
    np.testing.assert_allclose(logits(again), want, atol=1e-5)
    assert hf.read_adapter(tmp_path / "ours", model.config.base) == model.config.lora


@pytest.fixture(scope="module")
def phi(tmp_path_factory):
    """A folder with a tiny Phi-3, whose checkpoint holds q, k and v as one tensor, and gate and up."""
    torch.manual_seed(0)
    shape = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "pad_token_id": 0}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": False}
    folder = tmp_path_factory.mktemp("phi")
    transformers.Phi3ForCausalLM(transformers.Phi3Config(**shape, **heads)).save_pretrained(folder)
    return folder


FUSED = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]
FUSED_KINDS = {
    **{kind: KINDS[kind] for kind in ("lora", "rslora", "dora", "some_layers")},
    "patterns": {"rank_pattern": {"qkv_proj": 2, "layers.1.mlp.gate_up_proj": 3}, "alpha_pattern": {"qkv_proj": 3}},
    "saved": {"modules_to_save": ["lm_head"], "target_modules": ["qkv_proj"], "use_rslora": True},
}


@pytest.mark.parametrize("kind", FUSED_KINDS)
def test_an_adapter_of_fused_projections_is_taken_apart_and_put_together(kind, phi, tmp_path):
    want = theirs(phi, tmp_path / "theirs", **{"target_modules": FUSED, **FUSED_KINDS[kind]})
    model = hf.load_model(phi, dtype="float32", adapter=tmp_path / "theirs")
    np.testing.assert_allclose(model(TOKENS), want, atol=1e-5)
    hf.save_adapter(model, tmp_path / "ours", phi)
    plain = transformers.AutoModelForCausalLM.from_pretrained(phi)
    again = peft.PeftModel.from_pretrained(plain, tmp_path / "ours")
    np.testing.assert_allclose(logits(again), want, atol=1e-5)
    loaded = hf.load_model(phi, dtype="float32", adapter=tmp_path / "ours")
    np.testing.assert_allclose(loaded(TOKENS), want, atol=1e-5)


def test_an_adapter_of_some_of_a_fused_projection_and_what_cannot_be(phi, tmp_path):
    model = align_jax.add_adapter(hf.load_model(phi, dtype="float32"), 4, 8.0, targets=("q", "v", "up"), seed=1)
    weights = model.weights()
    for name in ("q", "v", "up"):
        weights["layers"][f"{name}_lora_b"] += 0.1 * jax.random.normal(
            jax.random.key(0), weights["layers"][f"{name}_lora_b"].shape
        )
    moved = Decoder(model.config, weights, dtype="float32")
    hf.save_adapter(moved, tmp_path / "ours", phi)
    found = peft.PeftModel.from_pretrained(transformers.AutoModelForCausalLM.from_pretrained(phi), tmp_path / "ours")
    np.testing.assert_allclose(logits(found), moved(TOKENS), atol=1e-5)
    assert np.abs(logits(found) - np.asarray(hf.load_model(phi, dtype="float32")(TOKENS))).max() > 1e-2
    dora = align_jax.add_adapter(hf.load_model(phi), 4, 8.0, targets=("q",), dora=True)
    with pytest.raises(UserError, match="this one is of q, and has magnitudes"):
        hf.save_adapter(dora, tmp_path / "dora", phi)
    with pytest.raises(UserError, match="layers.q is one tensor with others"):
        hf.saved_weights(hf.load_config(phi)[0], ["qkv_proj"])


def test_an_adapter_on_eight_devices_gives_the_same_logits(base, tmp_path):
    want = theirs(base, tmp_path / "a", use_dora=True)
    mesh = make_mesh(2, 2, 2)
    with jax.set_mesh(mesh):
        model = hf.load_model(base, mesh, dtype="float32", adapter=tmp_path / "a")
        found = jax.jit(lambda weights: Decoder(model.config, weights, dtype="float32")(TOKENS))(model.weights())
    np.testing.assert_allclose(found, want, atol=1e-5)


def edit(folder, **values):
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"init_lora_weights": "pissa_niter_4"}, "path_initial_model_for_weight_conversion"),
        ({"trainable_token_indices": [3]}, "trainable_token_indices"),
        ({"r": 8}, "rank 8, but its factors have rank 4"),
    ],
)
def test_what_is_not_computed_here_is_refused_by_its_key(values, message, base, tmp_path):
    theirs(base, tmp_path / "a")
    edit(tmp_path / "a", **values)
    with pytest.raises(UserError, match=message):
        hf.load_model(base, adapter=tmp_path / "a")


def test_an_adapter_for_another_model_is_refused_by_the_tensor(base, tmp_path):
    theirs(base, tmp_path / "a")
    config = hf.load_config(base)[0]
    other = dataclasses.replace(config, width=16)
    adapter = hf.read_adapter(tmp_path / "a", other)
    with pytest.raises(UserError, match="asks for"):
        hf.load_adapter(tmp_path / "a", dataclasses.replace(other, lora=adapter))
    with pytest.raises(UserError, match="belongs to nothing"):
        hf.read_adapter(tmp_path / "a", dataclasses.replace(config, layers=1))


def test_a_tied_model_takes_no_whole_embedding(base):
    config = dataclasses.replace(hf.load_config(base)[0], tied_embeddings=True)
    with pytest.raises(UserError, match="tied"):
        hf.saved_weights(config, ["embed_tokens"])
    with pytest.raises(UserError, match="has no module 'lm_tail'"):
        hf.saved_weights(config, ["lm_tail"])


def test_from_python_a_fresh_adapter_is_written_read_and_merged(base, tmp_path):
    model = align_jax.add_adapter(hf.load_model(base, dtype="float32"), 4, 8.0, targets=("q", "down"), seed=1)
    plain = np.asarray(hf.load_model(base, dtype="float32")(TOKENS))
    np.testing.assert_array_equal(model(TOKENS), plain)
    with pytest.raises(ValueError, match="has an adapter already"):
        align_jax.add_adapter(model)
    with pytest.raises(UserError, match="has no adapter"):
        align_jax.save_adapter(hf.load_model(base), tmp_path / "none", base)
    weights = model.weights()
    weights["layers"]["q_lora_b"] += 0.1
    moved = Decoder(model.config, weights, dtype="float32")
    align_jax.save_adapter(moved, tmp_path / "adapter", base)
    again = align_jax.load_model(base, dtype="float32", adapter=tmp_path / "adapter")
    np.testing.assert_array_equal(again(TOKENS), moved(TOKENS))
    align_jax.save_model(moved, tmp_path / "whole")
    np.testing.assert_allclose(hf.load_model(tmp_path / "whole", dtype="float32")(TOKENS), moved(TOKENS), atol=1e-5)
    assert np.abs(np.asarray(moved(TOKENS)) - plain).max() > 1e-3
    with pytest.raises(UserError, match="less than they were"):
        align_jax.save_model(hf.load_model(base, quantize="int8"), tmp_path / "few")


def cut(folder, drop):
    """The adapter without the tensors whose names have `drop` in them."""
    from safetensors.numpy import load_file, save_file

    file = folder / "adapter_model.safetensors"
    save_file({name: value for name, value in load_file(file).items() if drop not in name}, file, {"format": "pt"})


@pytest.mark.parametrize(
    ("kind", "drop", "message"),
    [
        ("saved", "layers.0.input_layernorm", "layers.attn_norm is saved whole, but not that of layer 0"),
        ("dora", "layers.1.self_attn.q_proj.lora_magnitude", "layers.1.self_attn.q_proj has no magnitude"),
        ("lora", "layers.1.self_attn.q_proj.lora_B", "factor A of rank 4 and a factor B of rank 0"),
    ],
)
def test_an_adapter_that_lacks_a_tensor_is_refused(kind, drop, message, base, tmp_path):
    theirs(base, tmp_path / "a", **KINDS[kind])
    cut(tmp_path / "a", drop)
    with pytest.raises(UserError, match=message):
        hf.load_model(base, adapter=tmp_path / "a")
