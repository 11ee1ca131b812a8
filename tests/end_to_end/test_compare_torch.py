"""PyTorch's side of `tools/compare_torch.py`, as far as it needs no GPU."""

from __future__ import annotations

import importlib.util
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

TOOL = Path(__file__).parents[2] / "tools" / "compare_torch.py"


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("compare_torch", TOOL)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # which it sets
        patch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        yield module


def test_one_row_without_padding_gives_what_padded_rows_give(tool):
    torch.manual_seed(0)
    sizes = dict(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_key_value_heads=2, attn_implementation="sdpa"))
    rng = np.random.default_rng(0)
    some = lambda n: rng.integers(0, 64, n).tolist()  # noqa: E731
    groups = [tool.Group(some(m), [some(n) for n in answers], None, None) for m, answers in ((5, (3, 7)), (9, (1, 4, 6)))]
    padded, flat = (f(model, groups, "cpu") for f in (tool.torch_logps, tool.torch_logps_in_one_row))
    torch.testing.assert_close(flat, padded, rtol=1e-5, atol=1e-5)
    grads = [torch.autograd.grad(x.square().sum(), list(model.parameters())) for x in (padded, flat)]
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    "device, dtype, installed, attention",
    [
        ("cuda", "bfloat16", True, "flash_attention_2"),
        ("cuda", "bfloat16", False, "sdpa"),
        ("cuda", "float32", True, "sdpa"),
        ("cpu", "bfloat16", True, "sdpa"),
    ],
)
def test_flash_attention_where_there_is_one(device, dtype, installed, attention, tool, monkeypatch):
    monkeypatch.setattr(tool, "is_flash_attn_2_available", lambda: installed)
    model = types.SimpleNamespace(dtype=dtype, param_dtype="float32")
    job = types.SimpleNamespace(device=device, config=types.SimpleNamespace(model=model))
    assert tool.attention_of(job) == attention and tool.mixed(job) == (dtype != "float32")
