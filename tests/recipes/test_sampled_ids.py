"""`score(generate(...))` gives the log-probs of the ids that were sampled, whatever their text would be tokenized to."""

from __future__ import annotations

import numpy as np
import pytest

import align_jax
from align_jax.data import DataConfig, Encoder
from align_jax.data.formats import Example
from align_jax.models import Decoder
from align_jax.recipes.models import starting_model
from align_jax.recipes.sampled_ids import SampledIds
from tests.data.tokenizers_of_each_kind import tokenizer
from tests.data.toys import write_jsonl

PROMPTS = ["Once upon a time", "The answer is ", "def f(x):\n", "Isn't it"]
SHAPE = {"width": 16, "mlp_width": 16, "layers": 1, "heads": 2, "kv_heads": 1, "head_size": 8, "max_length": 256}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """kind, chat template -> a config that samples and scores a fresh model, which says anything."""

    def make(kind, template):
        folder = tmp_path_factory.mktemp(f"{kind}-{template}")
        tok = tokenizer(kind, template)
        tok.save_pretrained(folder / "tokenizer")
        size = max(tok.get_vocab().values()) + 1
        write_jsonl(folder / "prompts.jsonl", [{"prompt": prompt} for prompt in PROMPTS])
        model = {"config": SHAPE | {"vocab_size": size}, "tokenizer": str(folder / "tokenizer"), "dtype": "float32"}
        generate = {"prompts": str(folder / "prompts.jsonl"), "output": str(folder / "samples.jsonl"), "samples": 3}
        score = {"input": str(folder / "samples.jsonl"), "output": str(folder / "scored.jsonl")}
        generate |= {"tokens": True, "max_new_tokens": 12}
        return align_jax.Config.of({"model": model, "generate": generate, "score": score, "data": {}})

    return make


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "template"), [("mistral", None), ("byte_level", "chatml"), ("llama_2", "gemma")])
def test_the_log_probs_are_those_of_the_sampled_ids(config, kind, template, capsys):
    made = config(kind, template)
    rows = align_jax.generate(made)
    scored = align_jax.score(made)
    said = capsys.readouterr().err
    assert "12 responses scored by the ids that were sampled (column tokens); the texts of " in said
    encoder = Encoder(tokenizer(kind, template), DataConfig())
    prompts = [encoder.prompt(Example(prompt, ())).ids.tolist() for prompt in PROMPTS]
    source = starting_model(made)
    model = Decoder(source.shape, source.weights(None, "float32"), dtype="float32")
    expected = align_jax.response_logps(model, align_jax.make_groups(prompts, [row["tokens"] for row in rows]))
    np.testing.assert_allclose([row["logps"] for row in scored], expected, atol=1e-4)
    # From their texts alone, some are other ids, and as many as was said.
    again = sum(
        ids[: -1 if ids[-1] in encoder.end_ids else None]
        != encoder.answer(encoder.prompt(Example(row["prompt"], ())), text).tokens.tolist()[:-1]
        for row in rows
        for text, ids in zip(row["responses"], row["tokens"], strict=True)
    )
    assert again > 0 and f"the texts of {again} would become other ids" in said


def test_ids_that_are_not_of_the_text_are_not_used():
    tok = tokenizer("byte_level")
    encoder = Encoder(tok, DataConfig())
    example = Example("Once upon a time", (" there was", " no"))
    good = [tok(text, add_special_tokens=False)["input_ids"] for text in example.responses]
    for tokens, used in (
        (good, True),
        ([[*ids, tok.eos_token_id] for ids in good], True),
        (good[::-1], False),  # another text's
        (good[:1], False),
        ([good[0], []], False),
        ([good[0], [10**6]], False),
        ("no", False),
    ):
        ids = SampledIds(encoder)
        found = ids.of(example, {"tokens": tokens})
        assert (found.tokens is not None) == used
        assert ("is not of this tokenizer" in "".join(ids.lines())) == (not used)
    # Behind a stop string the text is shorter than what was sampled.
    longer = [[*good[0], *good[0]], good[1]]
    for reasons, used in ((["stop", "eos"], True), (["eos", "eos"], False)):
        found = SampledIds(encoder).of(example, {"tokens": longer, "finish_reasons": reasons})
        assert (found.tokens is not None) == used
    # Behind a belief they do not stand behind the prompt.
    assert SampledIds(encoder).of(example, {"tokens": good, "beliefs": [0, 1]}).tokens is None
