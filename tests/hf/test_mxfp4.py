"""Weights of experts as MXFP4: what transformers makes of them is what is loaded."""

from __future__ import annotations

import json
import warnings

import jax
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from align_jax import hf
from align_jax.errors import UserError
from align_jax.hf.files import Checkpoint
from align_jax.hf.mxfp4 import Unpacked, dequantized
from align_jax.parallel.mesh import make_mesh
from tests.hf import models

# Every product has blocks of 32 inputs.
_SIZE = {"hidden_size": 64, "intermediate_size": 32, "num_local_experts": 4}


@pytest.fixture
def folders(tmp_path):
    """One model in MXFP4, and as transformers reads it."""
    model, rng = models.torch_model("gpt_oss", **_SIZE), np.random.default_rng(0)
    packed = {}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.endswith("_proj") or ".experts." not in name:
                continue
            experts, inputs, outputs = parameter.shape
            blocks = rng.integers(0, 256, (experts, outputs, inputs // 32, 16), dtype=np.uint8)
            scales = rng.integers(122, 126, (experts, outputs, inputs // 32), dtype=np.uint8)
            packed |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
            parameter.copy_(convert_moe_packed_tensors(torch.tensor(blocks), torch.tensor(scales)).float())
    plain, mxfp4 = (models.save(model, tmp_path / name) for name in ("plain", "mxfp4"))
    kept = {k: v for k, v in load_file(mxfp4 / "model.safetensors").items() if f"{k}_blocks" not in packed}
    save_file(kept | packed, mxfp4 / "model.safetensors", metadata={"format": "pt"})
    models.edit_config(mxfp4, {"quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": []}})
    return plain, mxfp4


def test_all_codes_and_scales_mean_what_they_do_in_transformers():
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (2, 64, 4, 16), dtype=np.uint8)
    blocks[0, :16, 0] = np.arange(256).reshape(16, 16)
    scales = np.resize(np.arange(3, 252, dtype=np.uint8), (2, 64, 4))
    theirs = convert_moe_packed_tensors(torch.tensor(blocks), torch.tensor(scales)).float().numpy()
    assert theirs.shape == (2, 128, 64)
    np.testing.assert_array_equal(np.swapaxes(dequantized(blocks, scales), 1, 2).astype(np.float32), theirs)


def test_a_packed_checkpoint_is_the_plain_one(folders, tmp_path):
    plain, mxfp4 = folders
    with pytest.warns(UserWarning, match="mxfp4: the weights of experts are MXFP4; they are dequantized, and kept as bfloat16"):
        model = hf.load_model(mxfp4, dtype="float32", param_dtype="bfloat16")
    expected = hf.load_model(plain, dtype="float32", param_dtype="bfloat16")
    jax.tree.map(np.testing.assert_array_equal, model.weights(), expected.weights())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hf.check_weights(mxfp4, model.config)  # of which nothing is dequantized
    hf.save_model(model, tmp_path / "out", base_config=hf.load_config(mxfp4)[1])
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert "quantization_config" not in written and written["torch_dtype"] == "bfloat16"
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", dtype=torch.float32, attn_implementation="eager"
    )
    tokens = models.tokens()
    np.testing.assert_allclose(jax.jit(model)(tokens), theirs(torch.tensor(tokens)).logits.detach().numpy(), atol=1e-3)


@pytest.mark.filterwarnings("ignore:.*MXFP4")
def test_devices_read_their_parts(folders):
    plain, mxfp4 = folders
    mesh = make_mesh(1, 2, 2, expert=2)
    model, expected = hf.load_model(mxfp4, mesh), hf.load_model(plain)
    assert model.layers.expert_up[...].sharding.spec == jax.P(None, "expert", "fsdp", "tensor")
    jax.tree.map(np.testing.assert_array_equal, model.weights(), expected.weights())


def test_any_piece_is_a_piece_of_the_whole(folders):
    unpacked = Unpacked(Checkpoint(folders[1]))
    name = "model.layers.1.mlp.experts.gate_up_proj"
    assert unpacked.shapes[name] == (4, 64, 64) and len(unpacked.packed) == 6
    whole = unpacked.read(name, (slice(None),) * 3)
    for index in ((slice(1, 3), slice(5, 40), slice(3, 7)), (slice(0, 1), slice(33, 64), slice(9, 64, 2))):
        np.testing.assert_array_equal(unpacked.read(name, index), whole[index])


@pytest.mark.parametrize(
    ("wrong", "said"),
    [("scales", "is missing"), ("shape", "has shape .* and its scales"), ("type", "types F32, U8"), ("both", "stands beside")],
)
def test_what_is_no_mxfp4_is_refused(folders, wrong, said):
    file = folders[1] / "model.safetensors"
    tensors = load_file(file)
    name = "model.layers.0.mlp.experts.down_proj"
    if wrong == "scales":
        del tensors[f"{name}_scales"]
    elif wrong == "shape":
        tensors[f"{name}_blocks"] = tensors[f"{name}_blocks"][..., :8].copy()
    elif wrong == "type":
        tensors[f"{name}_scales"] = tensors[f"{name}_scales"].astype(np.float32)
    else:
        tensors[name] = np.zeros((4, 32, 64), np.float32)
    save_file(tensors, file)
    with pytest.raises(UserError, match=rf"tensor '{name}_blocks' in .*{said}.*take a whole copy, or one in bfloat16"):
        hf.load_model(folders[1])
