"""Tokens: one BOS, one EOS, boundaries by length, cuts that are reported."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from align_jax.data import DataConfig, Encoder
from align_jax.errors import UserError
from tests.data.toys import CHAT, char_tokenizer

USER = ({"role": "user", "content": "hi"},)
PLAIN = {
    "plain": {},
    "adds bos": {"adds_bos": True},
    "no bos": {"bos": None},
    "pad is eos": {"pad": "</s>"},
    "bos is eos": {"bos": "</s>"},
}


def text_of(tokenizer, ids):
    return "".join(tokenizer.convert_ids_to_tokens(ids))


@pytest.mark.parametrize("kind", PLAIN)
def test_plain_text_has_one_bos_and_one_eos(kind):
    tokenizer = char_tokenizer(**PLAIN[kind])
    encoder = Encoder(tokenizer, DataConfig(prompt_template="Q:{prompt}"))
    bos = tokenizer.bos_token or ""
    prompt, cut = encoder.encode_prompt("hi")
    assert text_of(tokenizer, prompt) == f"{bos}Q:hi" and not cut and prompt.dtype == np.int32
    response, cut = encoder.encode_response("hi", "a > b")
    assert text_of(tokenizer, response) == "a > b</s>" and not cut
    assert text_of(tokenizer, encoder.encode_response("hi", "a</s>")[0]) == "a</s>"
    # BOS that a text brings with it
    if bos:
        assert text_of(tokenizer, encoder.encode_prompt("hi")[0]).count(bos) == 1
        double = Encoder(tokenizer, DataConfig(prompt_template=f"{bos}{bos}{{prompt}}"))
        assert text_of(tokenizer, double.encode_prompt("hi")[0]) == f"{bos}hi"


@pytest.mark.parametrize("spaces", [False, True])
@pytest.mark.parametrize("prompt", ["hi", USER], ids=["plain", "messages"])
def test_a_chat_template_is_used_for_both(prompt, spaces):
    tokenizer = char_tokenizer(chat=CHAT, spaces=spaces)
    encoder = Encoder(tokenizer, DataConfig())
    ids = encoder.encode_prompt(prompt)[0]
    space = "▁" if spaces else ""
    assert text_of(tokenizer, ids) == f"<s>{space}<|user|>hi<|assistant|>"
    answer = "no" if isinstance(prompt, str) else ({"role": "assistant", "content": "no"},)
    response = encoder.encode_response(prompt, answer)[0]
    # the template's own EOS, without the newline after it; no space in the middle of a conversation
    assert text_of(tokenizer, response) == "no</s>"


def test_a_turn_that_the_assistant_has_begun_is_continued():
    tokenizer = char_tokenizer(chat=CHAT)
    encoder = Encoder(tokenizer, DataConfig())
    begun = (*USER, {"role": "assistant", "content": "well,"})
    assert text_of(tokenizer, encoder.encode_prompt(begun)[0]) == "<s><|user|>hi<|assistant|>well,"
    for answer in (" no", ({"role": "assistant", "content": " no"},)):
        assert text_of(tokenizer, encoder.encode_response(begun, answer)[0]) == " no</s>"


def test_a_template_without_bos_and_eos_gets_both():
    chat = "{% for m in messages %}[{{ m['content'] }}]{% endfor %}{% if add_generation_prompt %}[{% endif %}"
    tokenizer = char_tokenizer(chat=chat)
    encoder = Encoder(tokenizer, DataConfig())
    assert text_of(tokenizer, encoder.encode_prompt("hi")[0]) == "<s>[hi]["
    assert text_of(tokenizer, encoder.encode_response("hi", "no")[0]) == "no]</s>"


def test_chat_template_modes():
    tokenizer = char_tokenizer(chat=CHAT)
    never = Encoder(tokenizer, DataConfig(chat_template="never"))
    assert text_of(tokenizer, never.encode_prompt("hi")[0]) == "<s>hi"
    assert text_of(tokenizer, never.encode_prompt(USER)[0]) == "<s><|user|>hi<|assistant|>"  # messages have no other form
    with pytest.raises(UserError, match="the tokenizer has no chat template"):
        Encoder(char_tokenizer(), DataConfig(chat_template="always"))
    with pytest.raises(UserError, match="holds conversations, but the tokenizer has no chat template"):
        Encoder(char_tokenizer(), DataConfig()).encode_prompt(USER)
    with pytest.raises(UserError, match="no end-of-sequence token"):
        Encoder(char_tokenizer(eos=None), DataConfig())


def test_a_template_that_changes_the_prompt_is_refused():
    chat = "{{ messages | length }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    with pytest.raises(UserError, match="changes the prompt when the response follows"):
        Encoder(char_tokenizer(chat=chat), DataConfig()).encode_response("hi", "no")


def test_cuts_are_reported():
    tokenizer = char_tokenizer()

    def encode(side):
        encoder = Encoder(tokenizer, DataConfig(max_prompt_tokens=4, max_response_tokens=3, truncate_prompt=side))
        return encoder, *((text_of(tokenizer, ids), cut) for ids, cut in map(encoder.encode_prompt, ("abc", "abcdef")))

    for side, kept in (("left", "<s>def"), ("right", "<s>abc")):
        encoder, fits, cut = encode(side)
        assert fits == ("<s>abc", False) and cut == (kept, True)
    for text, expected in (("ab", ("ab</s>", False)), ("abc", ("abc", True)), ("abcd", ("abc", True))):
        ids, cut = encoder.encode_response("q", text)
        assert (text_of(tokenizer, ids), cut) == expected


def test_a_belief_has_the_same_tokens_whatever_follows():
    tokenizer = char_tokenizer(spaces=True)
    encoder = Encoder(tokenizer, DataConfig(belief_template="{id}<{belief}>"))
    belief = encoder.encode_belief(1, "a>b")
    assert text_of(tokenizer, belief) == "▁1<a>b>"
    for text in ("yes", ">no<"):
        whole, _ = encoder.encode_response("q", text, before=belief)
        np.testing.assert_array_equal(whole[: len(belief)], belief)
        np.testing.assert_array_equal(whole[len(belief) :], encoder.encode_response("q", text)[0])


def test_the_key_follows_all_that_changes_tokens():
    keys = [
        Encoder(char_tokenizer(**kwargs), DataConfig(chat_template=mode)).key()
        for kwargs, mode in (({}, "auto"), ({"chat": CHAT}, "auto"), ({"chat": CHAT}, "never"), ({"spaces": True}, "auto"))
    ]
    assert len(set(keys)) == 4
    assert Encoder(char_tokenizer(), DataConfig()).key() == keys[0]


def test_a_real_tokenizer():
    if "ALIGN_JAX_DATA" not in os.environ:
        pytest.skip("ALIGN_JAX_DATA is not set: no real tokenizer")
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(Path(os.environ["ALIGN_JAX_DATA"]) / "stories260k")
    encoder = Encoder(tokenizer, DataConfig())
    prompt, response = encoder.encode_prompt("Once upon")[0], encoder.encode_response("Once upon", "a time")[0]
    assert prompt.tolist() == tokenizer("Once upon")["input_ids"] and prompt.tolist().count(tokenizer.bos_token_id) == 1
    # a response begins as after a space, so prompt and response join to the text
    assert [*prompt, *response] == [*tokenizer("Once upon a time")["input_ids"], tokenizer.eos_token_id]


def test_special_tokens_inside_a_text_are_text():
    tokenizer = char_tokenizer()
    encoder = Encoder(tokenizer, DataConfig())
    response, _ = encoder.encode_response("hi", "a </s> b")
    assert list(response).count(tokenizer.eos_token_id) == 1 and response[-1] == tokenizer.eos_token_id
    prompt, _ = encoder.encode_prompt("a <s> b </s>")
    assert list(prompt).count(tokenizer.bos_token_id) == 1
    assert tokenizer.eos_token_id not in prompt


def test_a_token_beyond_the_models_vocabulary_is_an_error():
    tokenizer = char_tokenizer()
    with pytest.raises(UserError, match="vocabulary ends at 3"):
        Encoder(tokenizer, DataConfig(), vocab_size=4).encode_prompt("hi")
