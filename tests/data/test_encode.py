"""Tokens: the tokenizer's own, one end, boundaries by length, cuts that are reported."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from align_jax.data import DataConfig, Encoder
from align_jax.data.formats.example import Example
from align_jax.data.sources import RowError
from align_jax.errors import UserError
from tests.data.toys import CHAT, char_tokenizer

USER = ({"role": "user", "content": "hi"},)
PLAIN = {
    "plain": {},
    "no bos of its own": {"adds_bos": False},
    "no bos": {"bos": None},
    "pad is eos": {"pad": "</s>"},
    "bos is eos": {"bos": "</s>"},
}
CALLS = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] or '' }}{% for c in m['tool_calls'] or [] %}"
    "[{{ c['function']['name'] }} {{ c['function']['arguments'] | tojson }}]{% endfor %}{% if m['role'] == 'assistant' %}"
    "{{ eos_token }}{% endif %}{% endfor %}{% if tools %}{{ tools | tojson }}{% endif %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def text_of(tokenizer, ids):
    return "".join(tokenizer.convert_ids_to_tokens(ids))


def said(*turns):
    return tuple({"role": role, "content": content} for role, content in turns)


def prompt_ids(encoder, prompt, *responses, **more):
    return encoder.prompt(Example(prompt, responses, **more)).ids


def answer(encoder, prompt, response, *others, **more):
    return encoder.answer(encoder.prompt(Example(prompt, (response, *others), **more)), response)


def both(tokenizer, prompt, response, **config):
    encoder = Encoder(tokenizer, DataConfig(**config))
    start = encoder.prompt(Example(prompt, (response,)))
    return text_of(tokenizer, start.ids), text_of(tokenizer, encoder.answer(start, response).tokens)


@pytest.mark.parametrize("kind", PLAIN)
def test_plain_text_is_the_tokenizers_own_and_has_one_eos(kind):
    tokenizer = char_tokenizer(**PLAIN[kind])
    encoder = Encoder(tokenizer, DataConfig(prompt_template="Q:{prompt}"))
    bos = (tokenizer.bos_token or "") if PLAIN[kind].get("adds_bos", True) else ""
    prompt = encoder.prompt(Example("hi", ()))
    assert prompt.ids.tolist() == tokenizer("Q:hi")["input_ids"] and text_of(tokenizer, prompt.ids) == f"{bos}Q:hi"
    assert not prompt.cut and prompt.ids.dtype == np.int32
    response = answer(encoder, "hi", "a > b")
    assert text_of(tokenizer, response.tokens) == "a > b</s>" and not response.cut and response.scored is None
    assert text_of(tokenizer, answer(encoder, "hi", "a</s>").tokens) == "a</s>"
    assert text_of(tokenizer, answer(encoder, "hi", "").tokens) == "</s>"
    # BOS that a text brings with it
    if bos:
        double = Encoder(tokenizer, DataConfig(prompt_template=f"{bos}{bos}{{prompt}}"))
        assert text_of(tokenizer, prompt_ids(double, "hi")) == f"{bos}hi"


@pytest.mark.parametrize("spaces", [False, True])
@pytest.mark.parametrize("prompt", ["hi", USER], ids=["plain", "messages"])
def test_a_chat_template_is_used_for_both(prompt, spaces):
    tokenizer = char_tokenizer(chat=CHAT, spaces=spaces)
    given = "no" if isinstance(prompt, str) else said(("assistant", "no"))
    # the template's own EOS, without the newline after it; no space in the middle of a conversation
    mark = "▁" if spaces else ""
    assert both(tokenizer, prompt, given) == (f"<s>{mark}<|user|>hi<|assistant|>", "no</s>")


def test_a_turn_that_the_assistant_has_begun_is_continued():
    tokenizer = char_tokenizer(chat=CHAT)
    begun = (*USER, {"role": "assistant", "content": "well,"})
    for given in (" no", said(("assistant", " no"))):
        assert both(tokenizer, begun, given) == ("<s><|user|>hi<|assistant|>well,", " no</s>")


def test_no_bos_where_the_template_has_none_and_eos_where_it_ends_no_turn():
    chat = "{% for m in messages %}[{{ m['content'] }}]{% endfor %}{% if add_generation_prompt %}[{% endif %}"
    tokenizer = char_tokenizer(chat=chat)
    assert both(tokenizer, "hi", "no") == ("[hi][", "no]</s>")


def test_chat_template_modes():
    tokenizer = char_tokenizer(chat=CHAT)
    never = Encoder(tokenizer, DataConfig(chat_template="never"))
    assert text_of(tokenizer, prompt_ids(never, "hi")) == "<s>hi"
    assert text_of(tokenizer, prompt_ids(never, USER)) == "<s><|user|>hi<|assistant|>"  # messages have no other form
    with pytest.raises(UserError, match="the tokenizer has no chat template"):
        Encoder(char_tokenizer(), DataConfig(chat_template="always"))
    with pytest.raises(RowError, match="holds conversations .*, but the tokenizer has no chat template"):
        prompt_ids(Encoder(char_tokenizer(), DataConfig()), USER)
    with pytest.raises(UserError, match="no end-of-sequence token"):
        Encoder(char_tokenizer(eos=None), DataConfig())


def test_a_template_that_changes_what_was_said_is_a_row_error():
    chat = "{{ messages | length }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    with pytest.raises(RowError, match=r"prints '2hi.*where the prompt alone has '1hi'.*model.chat_template"):
        answer(Encoder(char_tokenizer(chat=chat), DataConfig()), "hi", "no")


def test_a_header_that_is_always_there_is_not_part_of_the_answer():
    chat = "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{{ eos_token }}\n{% endfor %}<|assistant|>"
    assert both(char_tokenizer(chat=chat), "hi", "no") == ("<|user|>hi</s>\n<|assistant|>", "no</s>")
    without_end = "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}\n{% endfor %}<|assistant|>"
    assert both(char_tokenizer(chat=without_end), "hi", "no") == ("<|user|>hi\n<|assistant|>", "no</s>")


def test_a_prompt_that_opens_a_thought_is_what_it_has_in_common_with_its_answers():
    chat = (
        "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'].split('</think>')[-1] }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|><think>{% endif %}"
    )
    tokenizer = char_tokenizer(chat=chat)
    encoder = Encoder(tokenizer, DataConfig())
    texts = ("no", "yes")
    assert encoder.check(Example("hi", texts))
    start = encoder.prompt(Example("hi", texts))
    assert start.changed and text_of(tokenizer, start.ids) == "<|user|>hi<|assistant|>"
    assert [text_of(tokenizer, encoder.answer(start, t).tokens) for t in texts] == ["no</s>", "yes</s>"]
    # A thought in an answer would be trained away without a word.
    with pytest.raises(RowError, match="leaves out its words: 'hm' is in the answer"):
        encoder.check(Example("hi", ("no", "<think>hm</think>yes")))
    # What is sampled stands behind all of it.
    sampled = encoder.prompt(Example("hi", ("no",), tokens=((5,),)))
    assert not sampled.changed and text_of(tokenizer, sampled.ids) == "<|user|>hi<|assistant|><think>"


def test_answers_with_and_without_a_thought_share_what_they_have_in_common():
    chat = (
        "{% for m in messages %}<|{{ m['role'] }}|>{% if m['role'] == 'assistant' and '</think>' not in m['content'] %}"
        "<think></think>{% endif %}{{ m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|><think></think>{% endif %}"
    )
    tokenizer = char_tokenizer(chat=chat)
    encoder, texts = Encoder(tokenizer, DataConfig()), ("no", "<think>hm</think>yes")
    start = encoder.prompt(Example("hi", texts))
    assert start.changed and text_of(tokenizer, start.ids) == "<|user|>hi<|assistant|><think>"
    answers = [text_of(tokenizer, encoder.answer(start, t).tokens) for t in texts]
    assert answers == ["</think>no</s>", "hm</think>yes</s>"]


def test_messages_go_to_the_template_whole():
    tokenizer = char_tokenizer(chat=CALLS)
    call = {"type": "function", "function": {"name": "look", "arguments": '{"at": 1}'}}
    given = ({"role": "assistant", "content": "", "tool_calls": [call]},)
    assert both(tokenizer, USER, given) == ("<|user|>hi<|assistant|>", '[look {"at": 1}]</s>')
    tools = ({"type": "function", "function": {"name": "look"}},)
    encoder = Encoder(tokenizer, DataConfig())
    assert '"look"' in text_of(tokenizer, prompt_ids(encoder, USER, tools=tools))
    # A template that has no place for them would train on a lie.
    deaf = Encoder(char_tokenizer(chat=CHAT), DataConfig())
    with pytest.raises(RowError, match="message 1: the chat template leaves out its tool call"):
        deaf.check(Example(USER, (given,)))
    with pytest.raises(RowError, match="message 1: the chat template leaves out its tool call"):
        prompt_ids(deaf, (*USER, *given, *USER))
    # The name alone may stand in the list of tools.
    lists = Encoder(char_tokenizer(chat="{% if tools %}{{ tools | tojson }}{% endif %}" + CHAT), DataConfig())
    with pytest.raises(RowError, match="leaves out its tool call"):
        lists.check(Example(USER, (given,), tools=tools))
    with pytest.raises(RowError, match="field 'tools': the chat template prints none"):
        prompt_ids(deaf, USER, tools=tools)
    with pytest.raises(RowError, match="leaves out its reasoning_content: 'because'"):
        deaf.check(Example(USER, (({"role": "assistant", "content": "no", "reasoning_content": "because"},),)))
    silent = CHAT.replace("{% for m in messages %}", "{% for m in messages if m['role'] != 'system' %}")
    with pytest.raises(RowError, match="leaves out message 0, of the system: 'be kind'"):
        prompt_ids(Encoder(char_tokenizer(chat=silent), DataConfig()), (*said(("system", "be kind")), *USER))


def test_what_a_template_refuses_is_a_row_error_before_anything_is_tokenized():
    chat = "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}{% endfor %}x"
    encoder = Encoder(char_tokenizer(chat=chat + CHAT), DataConfig())
    with pytest.raises(RowError, match="the chat template refuses this conversation: no system"):
        encoder.check(Example((*said(("system", "s")), *USER), ()))
    with pytest.raises(RowError, match="refuses this conversation"):
        encoder.check(Example((*USER, {"role": "assistant", "content": None}), ()))


TALK = said(("assistant", "one"), ("user", "and?"), ("assistant", "two"))


@pytest.mark.parametrize("marks", [False, True], ids=["turns", "generation marks"])
def test_of_a_conversation_as_an_answer_the_assistants_words_are_scored(marks):
    chat = CHAT
    if marks:
        written = "{{ m['content'] }}{% if m['role'] == 'assistant' %}{{ eos_token }}\n{% endif %}"
        said = "{% generation %}{{ m['content'] }}{{ eos_token }}{% endgeneration %}"
        spoken = f"{{% if m['role'] == 'assistant' %}}{said}\n{{% else %}}"
        chat = CHAT.replace(written, spoken + "{{ m['content'] }}{% endif %}")
    tokenizer = char_tokenizer(chat=chat)
    made = answer(Encoder(tokenizer, DataConfig()), USER, TALK)
    between = "" if marks else "\n"
    assert text_of(tokenizer, made.tokens) == f"one</s>{between}<|user|>and?<|assistant|>two</s>"
    assert text_of(tokenizer, made.tokens[made.scored]) == "one</s>two</s>"
    everything = answer(Encoder(tokenizer, DataConfig(score="all")), USER, TALK)
    assert everything.scored is None and everything.tokens.tolist() == made.tokens.tolist()


def test_an_answer_that_begins_with_the_users_words():
    tokenizer = char_tokenizer(chat=CHAT)
    made = answer(Encoder(tokenizer, DataConfig()), said(("system", "s")), said(("user", "q"), ("assistant", "a")))
    assert text_of(tokenizer, made.tokens) == "<|user|>q<|assistant|>a</s>"
    assert text_of(tokenizer, made.tokens[made.scored]) == "a</s>"


def test_cuts_are_reported():
    tokenizer = char_tokenizer()

    def encode(side):
        encoder = Encoder(tokenizer, DataConfig(max_prompt_tokens=4, max_response_tokens=3, truncate_prompt=side))
        prompts = (encoder.prompt(Example(text, ())) for text in ("abc", "abcdef"))
        return encoder, *((text_of(tokenizer, prompt.ids), prompt.cut) for prompt in prompts)

    for side, kept in (("left", "<s>def"), ("right", "<s>abc")):
        encoder, fits, cut = encode(side)
        assert fits == ("<s>abc", False) and cut == (kept, True)
    for text, expected in (("ab", ("ab</s>", False)), ("abc", ("abc", True)), ("abcd", ("abc", True))):
        made = answer(encoder, "q", text)
        assert (text_of(tokenizer, made.tokens), made.cut) == expected
    # The end of a cut prompt does not change its answers.
    assert text_of(tokenizer, answer(encoder, "abcdef", "ab").tokens) == "ab</s>"


@pytest.mark.parametrize("chat", [None, CHAT], ids=["plain", "chat"])
def test_a_belief_has_the_same_tokens_whatever_follows(chat):
    tokenizer = char_tokenizer(spaces=True, chat=chat)
    encoder = Encoder(tokenizer, DataConfig(belief_template="{id}<{belief}>"))
    prompt = encoder.prompt(Example("q", ()))
    belief = encoder.belief(prompt, 1, "a>b")
    assert text_of(tokenizer, belief) == "1<a>b>"
    for text in ("yes", ">no<", ""):
        whole = encoder.answer(prompt, text, (1, "a>b")).tokens
        after = encoder.after_belief(prompt, (1, "a>b"), belief, text).tokens
        assert whole.tolist() == [*belief, *after] and text_of(tokenizer, after) == f"{text}</s>"


def test_beliefs_of_which_one_begins_with_another_are_refused():
    encoder = Encoder(char_tokenizer(), DataConfig(belief_template="{belief}"))
    prompt = encoder.prompt(Example("q", ()))
    with pytest.raises(RowError, match=r"'good enough' begins with that of 'good'.*data.belief_template"):
        encoder.beliefs(prompt, ["bad", "good enough", "good"])
    assert len(encoder.beliefs(prompt, ["bad", "good"])) == 2
    marked = Encoder(char_tokenizer(), DataConfig(belief_template="{belief}."))
    assert len(marked.beliefs(prompt, ["good", "good enough"])) == 2


def test_the_key_follows_all_that_changes_tokens():
    keys = [
        Encoder(char_tokenizer(**kwargs), DataConfig(chat_template=mode)).key()
        for kwargs, mode in (({}, "auto"), ({"chat": CHAT}, "auto"), ({"chat": CHAT}, "never"), ({"spaces": True}, "auto"))
    ]
    assert len(set(keys)) == 4
    assert Encoder(char_tokenizer(), DataConfig()).key() == keys[0]


def test_the_day_that_a_template_prints_is_the_one_given():
    chat = "{{ strftime_now('%d %b %Y') }} " + CHAT
    tokenizer = char_tokenizer(chat=chat)
    one, same, other = (Encoder(tokenizer, DataConfig(date=day)) for day in ("2024-07-26", "2024-07-26", "2024-07-27"))
    assert text_of(tokenizer, prompt_ids(one, "hi")).startswith("26 Jul 2024 ")
    assert one.key() == same.key() != other.key()
    # Where none is printed, the day is nothing.
    assert len({Encoder(char_tokenizer(chat=CHAT), DataConfig(date=day)).key() for day in ("2024-07-26", "2024-07-27")}) == 1
    with pytest.raises(UserError, match=r"data.date: '26.7.2024' is no day; write it as YYYY-MM-DD"):
        DataConfig(date="26.7.2024")


def test_a_real_tokenizer():
    if "ALIGN_JAX_DATA" not in os.environ:
        pytest.skip("ALIGN_JAX_DATA is not set: no real tokenizer")
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(Path(os.environ["ALIGN_JAX_DATA"]) / "stories260k")
    encoder = Encoder(tokenizer, DataConfig())
    for prompt, response in (
        ("Once upon", " a time"),
        ("Once upon a time", ", there was a little girl named Lily."),
        ("Q: is it?\n", "It is."),
    ):
        start = encoder.prompt(Example(prompt, (response,)))
        assert start.ids.tolist() == tokenizer(prompt)["input_ids"]
        made = encoder.answer(start, response)
        assert [*start.ids, *made.tokens] == [*tokenizer(prompt + response)["input_ids"], tokenizer.eos_token_id]
    # A space at the end would be one token with the word behind it: the prompt keeps its own.
    start = encoder.prompt(Example("Once upon ", ("a time",)))
    made = encoder.answer(start, "a time")
    assert made.merged and start.ids.tolist() == tokenizer("Once upon ")["input_ids"]
    assert tokenizer.decode([*start.ids, *made.tokens], skip_special_tokens=True) == "Once upon a time"


@pytest.mark.parametrize("chat", [None, CHAT], ids=["plain", "chat"])
def test_special_tokens_inside_a_text_are_text_unless_asked_for(chat):
    tokenizer = char_tokenizer(chat=chat)
    encoder = Encoder(tokenizer, DataConfig())
    response = answer(encoder, "hi", "a </s> b").tokens
    assert list(response).count(tokenizer.eos_token_id) == 1 and response[-1] == tokenizer.eos_token_id
    assert "".join(tokenizer.convert_ids_to_tokens(response)) == "a </s> b</s>"
    prompt = prompt_ids(encoder, "a <s> b </s>")
    assert list(prompt).count(tokenizer.bos_token_id) == 1
    assert tokenizer.eos_token_id not in prompt
    asked = Encoder(tokenizer, DataConfig(control_tokens="tokens"))
    assert list(answer(asked, "hi", "a </s> b").tokens).count(tokenizer.eos_token_id) == 2


def test_a_token_beyond_the_models_vocabulary_is_an_error():
    with pytest.raises(UserError, match="vocabulary ends at 3"):
        prompt_ids(Encoder(char_tokenizer(), DataConfig(), vocab_size=4), "hi")


def test_the_key_knows_a_day_that_only_some_rows_print():
    chat = "{% if messages[0]['role'] == 'system' %}{{ strftime_now('%Y') }}{% endif %}" + CHAT
    tokenizer = char_tokenizer(chat=chat)
    assert len({Encoder(tokenizer, DataConfig(date=day)).key() for day in ("2024-07-26", "2025-07-26")}) == 2


def test_control_tokens_do_not_shift_what_is_scored():
    marked = "{% generation %}{{ m['content'] }}{{ eos_token }}{% endgeneration %}"
    chat = CHAT.replace(
        "{{ m['content'] }}{% if m['role'] == 'assistant' %}{{ eos_token }}\n{% endif %}",
        f"{{% if m['role'] == 'assistant' %}}{marked}{{% else %}}{{{{ m['content'] }}}}{{% endif %}}",
    )
    encoder = Encoder(char_tokenizer(chat=chat), DataConfig())
    talk = said(("assistant", "one"), ("user", "and </s>?"), ("assistant", "two"))
    for prompt in (USER, said(("user", "hi </s> there"))):
        made = answer(encoder, prompt, talk)
        assert text_of(encoder.tokenizer, made.tokens[made.scored]) == "one</s>two</s>"


def test_a_token_that_reaches_into_a_later_turn_is_scored():
    from tests.data.tokenizers_of_each_kind import tokenizer

    tok = tokenizer("byte_level")
    tok = type(tok)(tokenizer_object=tok.backend_tokenizer, eos_token="</s>", unk_token="<unk>")
    tok.chat_template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{% if m['role'] == 'assistant' %}{{ eos_token }}"
        "{% endif %}\n{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    made = answer(Encoder(tok, DataConfig()), USER, said(("assistant", "play"), ("user", "and"), ("assistant", "play outside")))
    # " play" is one token with the space that ends the header
    assert tok.decode(made.tokens[made.scored]) == "play</s> play outside</s>"


@pytest.mark.parametrize("role", ["tool", "assistant"])
def test_a_message_that_is_left_out_is_refused_whoever_says_it(role):
    omitted = "{{ '(omitted)' if m['role'] == '" + role + "' and not loop.last else m['content'] }}"
    chat = CHAT.replace("{{ m['content'] }}", omitted)
    encoder = Encoder(char_tokenizer(chat=chat), DataConfig())
    talk = (*USER, *said((role, "42"), ("user", "and?")))
    with pytest.raises(RowError, match=f"leaves out message 1, of the {role}: '42'"):
        encoder.check(Example(talk, ("no",)))
    with pytest.raises(RowError, match=f"leaves out message ., of the {role}"):
        encoder.check(Example(USER, (said(("assistant", "a"), (role, "42"), ("user", "b"), ("assistant", "c")),)))


def test_an_answer_that_a_template_prints_nothing_for_takes_no_header_from_others():
    chat = CHAT.replace("{% for m in messages %}", "{% for m in messages if m['content'] %}")
    encoder = Encoder(char_tokenizer(chat=chat), DataConfig())
    assert not encoder.check(Example("hi", ("yes", "no")))
    with pytest.raises(RowError, match="does not render this conversation as prompt . answer"):
        encoder.check(Example("hi", ("yes", "")))


def test_an_answer_of_which_nothing_scored_is_left_is_refused():
    tokenizer = char_tokenizer(chat=CHAT)
    given = said(("user", "a long question"), ("assistant", "a"))
    assert not Encoder(tokenizer, DataConfig()).check(Example(said(("system", "s")), (given,)))
    short = Encoder(tokenizer, DataConfig(max_response_tokens=8))
    with pytest.raises(RowError, match="cut to 8 tokens nothing else is left of it"):
        short.check(Example(said(("system", "s")), (given,)))


def test_private_characters_of_a_text_are_kept():
    encoder = Encoder(char_tokenizer(chat=CHAT), DataConfig())
    icon = "\ue0f0 a \ue0f1"
    assert icon in encoder.prompt(Example(f"hi {icon}", ())).text


def test_what_a_generation_prompt_says_for_the_answer_is_not_in_other_answers():
    chat = CHAT.replace("<|assistant|>{% endif %}", "<|assistant|>Sure: {% endif %}")
    encoder = Encoder(char_tokenizer(chat=chat), DataConfig())
    start = encoder.prompt(Example("hi", ("yes", "no")))
    assert start.changed and text_of(encoder.tokenizer, start.ids) == "<s><|user|>hi<|assistant|>"
    # A turn that the template moves behind the answer would be trained on.
    moved = "{% for m in messages if m['role'] != 'system' %}<|{{ m['role'] }}|>{{ m['content'] }}{% endfor %}"
    last = "{% if messages[0]['role'] == 'system' %}<|system|>{{ messages[0]['content'] }}{% endif %}"
    chat = moved + last + "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    with pytest.raises(RowError, match="does not render this conversation as prompt . answer"):
        encoder = Encoder(char_tokenizer(chat=chat), DataConfig())
        encoder.check(Example((*said(("system", "s")), *USER), ("no",)))
