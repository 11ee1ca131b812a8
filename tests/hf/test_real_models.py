"""Real models, where they are at hand: the same greedy text as in transformers, token for token; and they train."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

import align_jax
from align_jax.generation import Sampling, generate
from align_jax.hf import load_model

# Folders of real models in Hugging Face format, by environment variable.
_MODELS = {"ALIGN_JAX_SMOLLM2": "SmolLM2-135M-Instruct", "ALIGN_JAX_GEMMA3": "Gemma 3 270M"}
_PROMPTS = ("Name three colours.", "Why do people disagree about taxes? Answer in one sentence.")


def _ids(tokenizer, text: str) -> list[int]:
    """The tokens of a question; a converted tokenizer may have lost its chat template."""
    if tokenizer.chat_template is None:
        return tokenizer(text)["input_ids"]
    chat = [{"role": "user", "content": text}]
    return tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)["input_ids"]


@pytest.mark.slow
@pytest.mark.parametrize("variable", _MODELS)
def test_greedy_text_equals_transformers(variable):
    if variable not in os.environ:
        pytest.skip(f"{variable} (the folder of {_MODELS[variable]}) is not set")
    torch = pytest.importorskip("torch")
    import transformers

    folder = os.environ[variable]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    prompts = [_ids(tokenizer, text) for text in _PROMPTS]
    model, sampling = load_model(folder, dtype="float32"), Sampling(temperature=0)
    ours = generate(model, prompts, max_new_tokens=24, sampling=sampling, eos_ids=[])
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    options = {"max_new_tokens": 24, "min_new_tokens": 24, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    for prompt, [sample] in zip(prompts, ours, strict=True):
        with torch.no_grad():
            expected = theirs.generate(torch.tensor([prompt]), **options)[0, len(prompt) :].tolist()
        assert sample.tokens.tolist() == expected
        print(tokenizer.decode(expected))


# A prompt's two best and worst answers; beliefs and texts given them. Plain templates: a converted tokenizer may have no other.
_TRAINED = {
    "mpo": ("preferences", {"format": "ultrafeedback", "max_responses": 2}, {"beta": 0.1, "alpha": 0.2}),
    "gdpo": ("opinions", {"format": "gdpo", "belief_template": "{id}<{belief}>"}, {"beta": 0.1, "preference": "dpo"}),
}


@pytest.mark.slow
@pytest.mark.parametrize("variable", _MODELS)
@pytest.mark.parametrize("name", _TRAINED)
def test_the_loss_of_a_batch_falls(variable, name, tmp_path):
    """Two groups of real data, cut short, four steps on the same batch."""
    if variable not in os.environ or "ALIGN_JAX_DATA" not in os.environ:
        pytest.skip(f"{variable} (the folder of {_MODELS[variable]}) or ALIGN_JAX_DATA is not set")
    folder, data, objective = _TRAINED[name]
    rows = Path(os.environ["ALIGN_JAX_DATA"]) / folder / "train.jsonl"
    lengths = {"max_prompt_tokens": 128, "max_response_tokens": 128, "max_rows": 2}
    config = {
        "run": {"dir": str(tmp_path / "run")},
        "model": {"path": os.environ[variable], "dtype": "float32"},
        "reference": {"cache_dir": str(tmp_path / "reference")},
        "data": {"train": str(rows), "prompt_template": "{prompt}\n", "chat_template": "never", **lengths, **data},
        "objective": {"name": name, **objective},
        "optimizer": {"name": "adamw", "learning_rate": 2e-6, "schedule": "constant"},
        "train": {"steps": 4, "groups_per_step": 2},
        "log": {"progress": False, "plots": False},
    }
    history = [line for line in align_jax.train(align_jax.Config.of(config)).history if "loss" in line]
    losses = np.array([line["loss"] for line in history])
    print(variable, name, losses.round(4).tolist(), [round(line["grad_norm"], 3) for line in history])
    assert len(losses) == 4 and np.isfinite(losses).all() and np.isfinite([line["grad_norm"] for line in history]).all()
    if name == "mpo":  # of two answers one is accepted, by scores as far from their mean
        assert losses[0] == pytest.approx(np.log(2), abs=1e-3)
    assert (np.diff(losses) < 0).all()
