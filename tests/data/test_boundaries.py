"""The tokens that a model would have seen, against the tokenizer's own calls, over tokenizers of each kind and many texts."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from align_jax.data import DataConfig, Encoder
from align_jax.data.formats.example import Example
from align_jax.data.tokens import TextTokens
from tests.data.tokenizers_of_each_kind import CORPUS, KINDS, TEMPLATES, TURNS, tokenizer

WORDS = sorted({word for line in CORPUS for word in line.split(" ")})
ODD = [" ", "  ", "\n", "\n\n", "\t", ",", ".", "n't", "'", "é", "好", "🙂", "1", "0x", "▁", "<", ">", "s>"]
PIECES = st.sampled_from([*WORDS, *ODD])
TEXTS = st.lists(PIECES, max_size=8).map(" ".join) | st.lists(PIECES, max_size=8).map("".join)
PROMPTS = TEXTS.filter(str.strip)
# A text of the corpus cut anywhere, also inside a word: tokens that would reach across.
CUT = st.sampled_from(CORPUS).flatmap(lambda text: st.integers(1, len(text)).map(lambda at: (text[:at], text[at:])))
PAIRS = st.one_of(CUT, CUT, st.tuples(PROMPTS, TEXTS))
SETTINGS = settings(max_examples=60, deadline=None, derandomize=True, database=None)


def encoded(tok, prompt, response, **config):
    encoder = Encoder(tok, DataConfig(**config, max_prompt_tokens=10**6, max_response_tokens=10**6))
    start = encoder.prompt(Example(prompt, (response,)))
    return encoder, start, encoder.answer(start, response)


@pytest.mark.parametrize("bos", [True, False], ids=["bos", "no bos"])
@pytest.mark.parametrize("kind", KINDS)
def test_plain_text(kind, bos):
    tok = tokenizer(kind, bos=bos)
    merged = []

    @SETTINGS
    @given(PAIRS)
    def check(pair):
        prompt, response = pair
        _, start, answer = encoded(tok, prompt, response)
        assert start.ids.tolist() == tok(prompt)["input_ids"]
        joint, ours = tok(prompt + response)["input_ids"], [*start.ids.tolist(), *answer.tokens.tolist()[:-1]]
        assert answer.tokens[-1] == tok.eos_token_id
        assert (ours == joint) == (not answer.merged)
        if "▁" not in prompt + response:  # which such a tokenizer reads as a space
            assert tok.decode(ours, skip_special_tokens=True, clean_up_tokenization_spaces=False) == tok.decode(
                joint, skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
        merged.append(answer.merged)

    check()
    assert len(merged) / 10 < sum(merged) < len(merged) * 9 / 10  # both were seen


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("kind", KINDS)
def test_conversations(kind, template):
    tok = tokenizer(kind, template)

    @SETTINGS
    @given(PROMPTS, PROMPTS, TEXTS)
    def check(first, second, response):
        turns = (("user", first), ("assistant", second), ("user", second))
        messages = [{"role": role, "content": content} for role, content in turns]
        encoder, start, answer = encoded(tok, tuple(messages), response)
        whole = [*messages, {"role": "assistant", "content": response}]
        oracle = tok.apply_chat_template(whole, tokenize=True, return_dict=False)
        before = tok.apply_chat_template(messages, tokenize=True, return_dict=False, add_generation_prompt=True)
        assert start.ids.tolist() == before or start.changed
        ours = [*start.ids.tolist(), *answer.tokens.tolist()]
        if not answer.merged:
            assert ours == oracle[: len(ours)]
            # What is left out stands behind the end of the turn: blanks, or the header of a next one.
            rest = tok.decode(oracle[len(ours) :], skip_special_tokens=True).strip()
            assert rest in ("", "assistant")
        assert tok.decode(answer.tokens[-1:]) in (tok.eos_token, "<|im_end|>", "<|eot_id|>", "<end_of_turn>")
        ends = [tok.convert_tokens_to_ids(t) for t in ("</s>", "<|im_end|>", "<|eot_id|>", "<end_of_turn>")]
        assert sum(token in ends for token in answer.tokens.tolist()) == 1
        assert answer.tokens[-1] in encoder.end_ids

    check()


@pytest.mark.parametrize("kind", KINDS)
def test_control_tokens_in_texts_stay_text(kind):
    plain, chat = tokenizer(kind), tokenizer(kind, "chatml")
    control = st.sampled_from([*TURNS, "</s>", "<s>", "<unk>"])
    texts = st.tuples(TEXTS, control, TEXTS).map("".join)

    @SETTINGS
    @given(texts, texts)
    def check(prompt, response):
        for tok in (plain, chat):
            encoder, start, answer = encoded(tok, prompt, response)
            special = set(tok.all_special_ids) | {tok.convert_tokens_to_ids(t) for t in TURNS}
            special.discard(tok.unk_token_id)
            inner = [t for t in answer.tokens.tolist()[:-1] if t in special]
            assert inner == []
            if tok is plain:
                assert [t for t in start.ids.tolist()[1:] if t in special] == []
            else:
                flags = {"add_generation_prompt": True, "return_dict": False}
                expected = tok.apply_chat_template([{"role": "user", "content": "x"}], **flags)
                assert [t for t in start.ids.tolist() if t in special] == [t for t in expected if t in special]
            if kind != "llama_2" and "▁" not in prompt + response:
                text = tok.decode([*start.ids.tolist()[tok is plain :], *answer.tokens.tolist()[:-1]])
                assert text.endswith(response.removesuffix(tok.eos_token)) or tok is chat

    check()


@pytest.mark.parametrize("scheme", ["always", "first", "never"])
def test_a_control_token_that_is_a_piece_too_stays_text(scheme):
    """Unigram models hold their control tokens among their pieces, with a score that wins."""
    pieces = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), ("▁", -2.0), *((c, -5.0) for c in "abcdefgh<>/s.")]
    core = Tokenizer(models.Unigram(pieces, unk_id=0))
    core.pre_tokenizer, core.decoder = pre_tokenizers.Metaspace("▁", prepend_scheme=scheme), decoders.Metaspace("▁")
    tok = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    for prompt, response in (("a </s> b", "c"), ("</s>", "</s></s>a"), ("a", "b<s>c d")):
        _, start, answer = encoded(tok, prompt, response)
        assert not {1, 2} & {*start.ids.tolist(), *answer.tokens.tolist()[:-1]}
        ids = [*start.ids.tolist(), *answer.tokens.tolist()[:-1]]
        assert "".join(tok.convert_ids_to_tokens(ids)).replace("▁", " ").strip() == prompt + response


@pytest.mark.parametrize("kind", KINDS)
def test_sections_are_what_the_tokenizer_makes_of_them(kind):
    """Text with marked tokens is tokenized section by section: where nothing is marked, that is the tokenizer's own call."""
    tok = tokenizer(kind, "chatml")
    tokens = TextTokens(tok)

    @SETTINGS
    @given(st.lists(TEXTS | st.sampled_from([*TURNS, "<think>", "</s>"]), max_size=6).map("".join))
    def check(text):
        assert tokens._sections(text) == tok(text, add_special_tokens=False)["input_ids"]

    check()


@pytest.mark.parametrize("kind", KINDS)
def test_control_tokens_that_take_the_spaces_beside_them(kind):
    tok = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(tokenizer(kind).backend_tokenizer.to_str()))
    tok.add_special_tokens({"eos_token": AddedToken("<left>", lstrip=True), "pad_token": AddedToken("<right>", rstrip=True)})
    tokens = TextTokens(tok)

    @SETTINGS
    @given(st.lists(st.sampled_from(["a", " ", "  ", "play", "<left>", "<right>"]), max_size=6).map("".join), TEXTS)
    def check(text, more):
        joint = tok(text + more, add_special_tokens=False)["input_ids"]
        before = tok(text, add_special_tokens=False)["input_ids"]
        ids, merged = tokens.after(before, text, more)
        assert merged or [*before, *ids] == joint
        assert tokens._sections(text) == before

    check()
