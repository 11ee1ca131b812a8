"""The section `lora` as an option: given and taken out whole."""

import pytest

from align_jax.config import Config
from align_jax.config.lora import LoraConfig
from align_jax.errors import UserError

PLAIN = {"model": {"path": "a/model"}, "objective": {"name": "mpo"}}


def test_an_adapter_comes_and_goes_with_what_nobody_chose():
    plain, adapted = Config.of(PLAIN), Config.of(PLAIN | {"lora": {"rank": 4}})
    assert plain != adapted and plain.model.param_dtype != adapted.model.param_dtype
    assert Config.of(adapted, "lora=null") == plain and Config.of(plain, "lora={}", "lora.rank=4") == adapted
    chosen = Config.of(PLAIN | {"lora": {}, "optimizer": {"learning_rate": 1e-3}})
    assert Config.of(chosen, "lora=null").optimizer.learning_rate == 1e-3


def test_a_file_with_an_adapter_without_it(tmp_path):
    (tmp_path / "c.yaml").write_text("model: {path: a/model}\nlora: {rank: 4}\nobjective: {name: mpo}\n")
    assert Config.of(tmp_path / "c.yaml", "lora=null") == Config.of(PLAIN)
    with pytest.raises(UserError, match="^--lora: expected keys and values, got 3"):
        Config.of(tmp_path / "c.yaml", "lora=3")


def test_all_linear_may_be_a_text_as_peft_has_it():
    for targets in ("all-linear", ["all-linear"], None):
        config = LoraConfig(targets=targets)
        assert len(config.adapter(()).targets) == 7 and config.targets is None
    with pytest.raises(UserError, match="lora.targets: 'q_proj' is not a list of texts or one of all-linear"):
        Config.of({**PLAIN, "lora": {"targets": "q_proj"}})
