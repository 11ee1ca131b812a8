"""Real models, where they are at hand, say what they say in transformers: the same greedy text, token for token."""

from __future__ import annotations

import os

import pytest

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
