"""A mixture of experts is trained like any model: MPO on a mesh that cuts experts, an export, an adapter on attention."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import torch
import transformers

import align_jax
from align_jax.hf import load_model
from align_jax.models import Decoder, ModelConfig, init_weights
from tests.data.toys import char_tokenizer

SHAPE = ModelConfig(128, 16, 12, 2, 4, 2, 4, max_length=64, experts=4, active_experts=2)
ROWS = [{"prompt": f"q{i}", "responses": ["good", "bad", "so so"], "scores": [3.0, 1.0, 2.0]} for i in range(4)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny random Mixtral."""
    path = tmp_path_factory.mktemp("model") / "mixtral"
    align_jax.save_model(Decoder(SHAPE, init_weights(SHAPE, jax.random.key(0))), path, tokenizer=char_tokenizer())
    assert json.loads((path / "config.json").read_text())["model_type"] == "mixtral"
    return path


def _config(folder, run, *more, **sections):
    given = {
        "run": {"dir": run},
        "model": {"path": folder, "dtype": "float32"},
        "objective": {"name": "mpo", "beta": 0.5},
        "data": {"train": ROWS, "max_prompt_tokens": 8, "max_response_tokens": 8},
        "log": {"quiet": True},
        "optimizer": {"learning_rate": 0.01, "warmup_steps": 0},
        "train": {"steps": 3, "groups_per_step": 4},
    }
    return align_jax.Config.of(given | sections, *more)


@pytest.mark.slow
def test_mpo_on_devices_that_share_experts_equals_one_device_and_is_exported(folder, tmp_path):
    one = align_jax.train(_config(folder, tmp_path / "one", "model.router_aux_weight=0.1"))
    cut = align_jax.train(_config(folder, tmp_path / "cut", "model.router_aux_weight=0.1", "mesh.fsdp=2", "mesh.expert=2"))
    steps = [[line for line in run.history if "loss" in line] for run in (one, cut)]
    assert len(steps[0]) == 3
    for a, b in zip(*steps, strict=True):
        for name in ("loss", "grad_norm", "router/aux_loss", "router/busiest"):
            assert b[name] == pytest.approx(a[name], rel=2e-3), name
    # The set of three has two that are worse than the best: log(3 / 1), and the balance, about k = 2.
    assert steps[0][0]["loss"] == pytest.approx(np.log(3) + 0.1 * steps[0][0]["router/aux_loss"], rel=1e-4)
    assert steps[0][0]["router/aux_loss"] == pytest.approx(2, abs=0.1) and 1 <= steps[0][0]["router/busiest"] < 4
    align_jax.export(cut.folder, tmp_path / "out")
    tokens = np.arange(12).reshape(2, 6)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    ours = load_model(tmp_path / "out", dtype="float32")(tokens)
    np.testing.assert_allclose(ours, theirs(torch.tensor(tokens)).logits.detach().numpy(), atol=1e-4)
    before = load_model(folder, dtype="float32")(tokens)
    assert np.abs(ours - before).max() > 1e-2


@pytest.mark.slow
def test_dpo_of_a_gpt_oss_trains_its_sinks_and_biases_and_is_exported(tmp_path):
    shape = dataclasses.replace(
        SHAPE,
        **{"head_size": 8, "qkv_bias": True, "o_bias": True, "sinks": True, "expert_biases": True, "norm_float32": True},
        **{"activation": "clamped_swiglu", "sliding_window": 4, "layer_windows": (True, False)},
    )
    fresh = Decoder(shape, init_weights(shape, jax.random.key(0)))
    align_jax.save_model(fresh, tmp_path / "gpt-oss", tokenizer=char_tokenizer())
    pairs = [{"prompt": f"q{i}", "chosen": "good one", "rejected": "bad one"} for i in range(4)]
    data = {"train": pairs, "max_prompt_tokens": 8, "max_response_tokens": 8}
    run = align_jax.train(
        _config(tmp_path / "gpt-oss", tmp_path / "run", "mesh.fsdp=2", "mesh.expert=2", objective={"name": "dpo"}, data=data)
    )
    losses = [line["loss"] for line in run.history if "loss" in line]
    assert losses[0] == pytest.approx(np.log(2), abs=1e-6) and losses[-1] < losses[0] - 0.01
    align_jax.export(run.folder, tmp_path / "out")
    ours, before = (load_model(tmp_path / name, dtype="float32") for name in ("out", "gpt-oss"))
    layers, old = ours.layers.weights(), before.layers.weights()
    still = [name for name in layers if np.array_equal(layers[name], old[name])]
    assert not still
    tokens = np.arange(12).reshape(2, 6)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", dtype=torch.float32, attn_implementation="eager"
    )
    np.testing.assert_allclose(ours(tokens), theirs(torch.tensor(tokens)).logits.detach().numpy(), atol=1e-4)


def test_keys_that_do_not_fit_the_experts_are_refused(folder, tmp_path):
    def refused(*overrides, **sections):
        with pytest.raises(align_jax.UserError) as caught:
            align_jax.train(_config(folder, tmp_path / "run", *overrides, **sections))
        return str(caught.value)

    assert "8 devices cannot share the model's 4 experts evenly" in refused("mesh.expert=8", "train.groups_per_step=8")
    assert "q_proj, k_proj, v_proj, o_proj" in refused(lora={"targets": ["up_proj"]})
    dense = {"vocab_size": 128, "width": 16, "mlp_width": 12, "layers": 1, "heads": 4, "kv_heads": 2, "head_size": 4}
    model = {"config": dense, "tokenizer": str(folder), "dtype": "float32"}
    assert "model.router_aux_weight: 0.1: the model has no experts" in refused(model=model | {"router_aux_weight": 0.1})
    assert "mesh.expert: 2: the model has no experts" in refused("mesh.expert=2", model=model)
