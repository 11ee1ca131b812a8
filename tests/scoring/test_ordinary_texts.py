"""Log-probs of ordinary texts, scored as texts, against transformers' on the ids of the joint text."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import align_jax
from align_jax.data import DataConfig, Encoder
from align_jax.data.formats import Example

# (prompt, response): spaces, punctuation, line ends and none at the boundary.
TEXTS = [
    ("Once upon a time", ", there was a little girl named Lily."),
    ("Once upon a time,", " there was a big ball."),
    ("Once upon a time, there", " was a big ball"),
    ("Once upon a time, there was", "n't a ball."),
    ("The dog is", " big and happy"),
    ("The dog is", " sad"),
    ("Question: is the dog big?\nAnswer:", " Yes."),
    ("Question: is the dog big?\n", "Yes."),
    ("Question: is the dog big?\n\n", "Yes, it is."),
    ("Tom said: ", '"Hello!"'),
    ("Tom said:", '"Hello!"'),
    ("Tom said:\n\t", "- Hello\n- Bye"),
    ("2 + 2 =", " 4"),
    ("2 + 2 = ", "4"),
    ("The ball (", "red) was here."),
    ("A story.", "\n\nOnce upon a time"),
    ("Lily's", " ball"),
    ("Lily", "'s ball"),
    ("He saw a ca", "t."),
]


@pytest.mark.skipif("ALIGN_JAX_DATA" not in os.environ, reason="ALIGN_JAX_DATA is not set: no real model")
def test_log_probs_of_ordinary_texts():
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = Path(os.environ["ALIGN_JAX_DATA"]) / "stories260k"
    tokenizer, theirs = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    encoder, merged = Encoder(tokenizer, DataConfig()), 0
    model = align_jax.load_model(folder, dtype="float32")
    ours = align_jax.response_logps(model, [p for p, _ in TEXTS], [[r] for _, r in TEXTS], tokenizer=tokenizer)[:, 0]
    for (prompt, response), found in zip(TEXTS, ours, strict=True):
        before, joint = tokenizer(prompt)["input_ids"], tokenizer(prompt + response)["input_ids"]
        answer = encoder.answer(encoder.prompt(Example(prompt, (response,))), response)
        if joint[: len(before)] != before:  # a token would reach across: what was said is still what is scored
            merged += 1
            assert answer.merged
            joint = [*before, *answer.tokens.tolist()[:-1]]
            assert tokenizer.decode(joint, skip_special_tokens=True) == prompt + response
        joint = [*joint, tokenizer.eos_token_id]
        with torch.no_grad():
            logps = theirs(torch.tensor([joint])).logits[0].log_softmax(-1)
        expected = sum(logps[i - 1, joint[i]].item() for i in range(len(before), len(joint)))
        assert float(found) == pytest.approx(expected, abs=2e-4), (prompt, response)
    assert merged == 2  # "= " + "4" and "said: " + quote: the space would be one token with what follows
