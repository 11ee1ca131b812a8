"""The words of other trainers have an answer, whose keys there are."""

from __future__ import annotations

import re

import pytest

from align_jax.config import words
from align_jax.config.keys import known

KEYS = {key.name for key in known().keys}
SECTIONS = "|".join(section.name for section in known().sections)
TRL = """
learning_rate lr per_device_train_batch_size batch_size gradient_accumulation_steps num_train_epochs max_steps
save_steps save_total_limit eval_steps logging_steps report_to loss_type warmup_steps lr_scheduler_type weight_decay
max_grad_norm bf16 fp16 gradient_checkpointing max_length max_prompt_length output_dir seed beta dataset_name
model_name_or_path ref_model torch_dtype peft_config lora_r lora_alpha deepspeed fsdp push_to_hub resume_from_checkpoint
packing num_generations load_best_model_at_end early_stopping_patience metric_for_best_model warmup_ratio
label_smoothing attn_implementation optim max_completion_length
""".split()


@pytest.mark.parametrize("word", TRL)
def test_a_word_of_trl_has_an_answer(word):
    assert words.answer(word) or known().named(word)


def test_the_keys_of_the_answers_are_there():
    assert set(words.SAME.values()) <= KEYS
    for text in [*words.OTHERWISE.values(), words.answer("lora_r"), words.answer("loss_type")]:
        named = re.findall(rf"\b((?:{SECTIONS})\.\w+)", text)
        assert {name for name in named if name != "run.dir"} <= KEYS, text
    choices = {f"{name}.name": known().section(name).choices for name in ("objective", "optimizer")}
    for key, values in words.VALUES.items():
        found = next(known_key for known_key in known().keys if known_key.name == key)
        accepted = choices.get(key) or f"{found.type} {found.meaning} constant cosine"
        assert all(name in accepted for name in values.values()), key


def test_no_word_is_a_key_of_ours():
    ours = {name.rpartition(".")[2] for name in KEYS}
    assert not ours & set(words.SAME)
    assert ours & set(words.OTHERWISE) == {"fsdp", "max_length"}  # elsewhere they mean what TRL means


@pytest.mark.parametrize(
    "word, value, said",
    [
        ("lr", 1, "that is optimizer.learning_rate here"),
        ("loss_type", "sigmoid", "'sigmoid' is `objective.name: dpo` here"),
        ("loss_type", "robust", "'robust' is `objective.name: robust_dpo` here"),
        ("loss_type", "exo_pair", "'exo_pair' is `objective.name: exo_pair` here"),
        ("loss_type", "grpo", "the loss is chosen by objective.name"),
        ("rpo_alpha", 1.0, "that is objective.sft_weight here"),
        ("lora_alpha", 16, "that is lora.alpha here"),
        ("peft_type", "LORA", "an adapter is a section of its own"),
        ("bnb_4bit_compute_dtype", "x", "model.quantize: int8"),
        ("fsdp_transformer_layer_cls_to_wrap", "x", "devices are laid out by mesh.data"),
        ("nothing_of_the_kind", 1, None),
    ],
)
def test_answers(word, value, said):
    found = words.answer(word, value)
    assert found is None if said is None else found.startswith(said)


def test_names_of_values():
    assert words.name_here("objective.name", "sigmoid") == "dpo"
    assert words.name_here("optimizer.name", "adamw_torch") == "adamw"
    assert words.name_here("model.dtype", "bf16") == "bfloat16"
    assert words.name_here("model.dtype", ["bf16"]) is words.name_here("run.dir", "x") is None
