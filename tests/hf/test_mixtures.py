"""Checkpoints of mixtures of experts: on a mesh, with adapters of PEFT, in few bits, and what is refused."""

from __future__ import annotations

import jax
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

import align_jax
from align_jax import hf
from align_jax.errors import UserError
from align_jax.hf.adapter_names import saved_weights
from align_jax.models import Decoder
from align_jax.models.adapting import add_adapter
from align_jax.parallel.mesh import make_mesh
from tests.hf import models

peft = pytest.importorskip("peft")
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]


@pytest.fixture(scope="module", params=["mixtral", "qwen3_moe", "gpt_oss"])
def base(request, tmp_path_factory):
    return models.save(models.torch_model(request.param), tmp_path_factory.mktemp(request.param))


def test_an_adapter_of_peft_on_attention_goes_both_ways(base, tmp_path):
    options = {"r": 4, "lora_alpha": 6, "target_modules": ATTENTION, "init_lora_weights": False, "task_type": "CAUSAL_LM"}
    theirs = peft.get_peft_model(transformers.AutoModelForCausalLM.from_pretrained(base), peft.LoraConfig(**options))
    theirs.save_pretrained(tmp_path / "theirs")
    tokens = models.tokens()
    want = theirs(torch.tensor(tokens)).logits.detach().numpy()
    model = hf.load_model(base, dtype="float32", adapter=tmp_path / "theirs")
    assert model.config.lora.targets == ("q", "k", "v", "o")
    np.testing.assert_allclose(jax.jit(model)(tokens), want, atol=1e-4)
    hf.save_adapter(model, tmp_path / "ours", base)
    written, read = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("ours", "theirs"))
    assert written.keys() == read.keys() and all(np.array_equal(written[name], read[name]) for name in read)
    name = "base_model.model.model.layers.0.mlp.experts.base_layer.lora_A.weight"
    save_file(read | {name: np.zeros((8, 32), np.float32)}, tmp_path / "theirs" / "adapter_model.safetensors")
    with pytest.raises(UserError, match="experts of a mixture have no adapters here"):
        hf.read_adapter(tmp_path / "theirs", model.config.base)
    assert add_adapter(hf.load_model(base)).config.lora.targets == ("q", "k", "v", "o")


def test_weights_come_to_the_devices_that_hold_them_and_go_back(base, tmp_path):
    mesh = make_mesh(1, 2, 2, expert=2)
    model = hf.load_model(base, mesh, dtype="float32")
    gate = model.layers.expert_gate[...]
    assert gate.sharding.spec == jax.P(None, "expert", "fsdp", "tensor")
    assert {shard.data.size for shard in gate.addressable_shards} == {gate.size // 8}
    align_jax.save_model(model, tmp_path / "out")
    before, after = (
        {k: v for f in folder.glob("*.safetensors") for k, v in load_file(f).items()} for folder in (base, tmp_path / "out")
    )
    assert before.keys() == after.keys() and all(np.array_equal(before[name], after[name]) for name in before)


def test_experts_of_eight_bits_are_near(base):
    exact, few = (hf.load_model(base, dtype="float32", quantize=kind) for kind in (None, "int8"))
    assert few.layers.expert_down[...].kind == "int8"
    tokens = models.tokens()
    logits = [
        np.asarray(jax.jit(lambda w, m=m: Decoder(m.config, w, dtype="float32")(tokens))(m.weights())) for m in (exact, few)
    ]
    assert 0 < np.abs(logits[1] - logits[0]).mean() < 0.05 * np.abs(logits[0]).mean()


def test_sinks_are_no_module_that_peft_saves(tmp_path):
    models.torch_model("gpt_oss").config.save_pretrained(tmp_path)
    models.edit_config(tmp_path, {"architectures": ...})
    with pytest.raises(UserError, match="lora.modules_to_save: sinks are a parameter and no module"):
        saved_weights(hf.load_config(tmp_path)[0], ["sinks"])


@pytest.mark.parametrize("change", [{"decoder_sparse_step": 2}, {"mlp_only_layers": [0]}])
def test_layers_with_one_mlp_beside_those_with_experts_are_refused(change, tmp_path):
    models.torch_model("qwen3_moe").config.save_pretrained(tmp_path)
    models.edit_config(tmp_path, {"architectures": ...})
    assert hf.load_config(tmp_path)[0].experts == 6
    models.edit_config(tmp_path, change)
    with pytest.raises(UserError, match="layer 0 has one MLP and not experts"):
        hf.load_config(tmp_path)
