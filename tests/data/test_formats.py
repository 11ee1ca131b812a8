"""Every format becomes the same kind of example; what is malformed is named."""

from __future__ import annotations

import pytest

from align_jax.data.formats import FORMATS
from align_jax.data.sources import RowError
from tests.data.toys import opinion

USER, MORE = {"role": "user", "content": "hi"}, {"role": "user", "content": "more"}
SYSTEM = {"role": "system", "content": "Be brief."}


def bot(text):
    return {"role": "assistant", "content": text}


def test_groups():
    example = FORMATS["groups"].read({"prompt": "p", "responses": ["a", "b", "c"], "scores": [1, 2.5, 0]})
    assert (example.prompt, example.responses, example.scores) == ("p", ("a", "b", "c"), (1.0, 2.5, 0.0))
    assert FORMATS["groups"].read({"prompt": "p", "responses": ["a"], "scores": [1], "group": "x"}).group == "x"


def test_ultrafeedback():
    completions = [{"response": "a", "overall_score": 3}, {"response": "b", "overall_score": 4.5, "model": "m"}]
    example = FORMATS["ultrafeedback"].read({"instruction": "p", "completions": completions})
    assert (example.prompt, example.responses, example.scores) == ("p", ("a", "b"), (3.0, 4.5))


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "p", "chosen": "c", "rejected": "r"}, ("p", "c", "r")),
        ({"chosen": "ask: yes", "rejected": "ask: no"}, ("ask:", " yes", " no")),
        ({"chosen": "ask: yesterday", "rejected": "ask: yes"}, ("ask:", " yesterday", " yes")),
        ({"prompt": [USER], "chosen": [bot("c")], "rejected": [bot("r")]}, ((USER,), (bot("c"),), (bot("r"),))),
        ({"chosen": [USER, bot("c")], "rejected": [USER, bot("r")]}, ((USER,), (bot("c"),), (bot("r"),))),
        (
            {"prompt": [USER], "chosen": [USER, bot("c")], "rejected": [USER, bot("r")]},
            ((USER,), (bot("c"),), (bot("r"),)),
        ),
        (
            {"prompt": "hi", "chosen": [USER, bot("c")], "rejected": [USER, bot("r")]},
            ((USER,), (bot("c"),), (bot("r"),)),
        ),
        (
            {"prompt": " hi\n", "chosen": [SYSTEM, USER, bot("c")], "rejected": [SYSTEM, USER, bot("r")]},
            ((SYSTEM, USER), (bot("c"),), (bot("r"),)),
        ),
        (
            {"prompt": "more", "chosen": [USER, bot("a"), MORE, bot("c")], "rejected": [USER, bot("a"), MORE, bot("r")]},
            ((USER, bot("a"), MORE), (bot("c"),), (bot("r"),)),
        ),
        (
            {
                "prompt": "user: hi\nassistant: a\nuser: more",
                "chosen": [USER, bot("a"), MORE, bot("c")],
                "rejected": [USER, bot("a"), MORE, bot("r")],
            },
            ((USER, bot("a"), MORE), (bot("c"),), (bot("r"),)),
        ),
        ({"prompt": "hi", "chosen": [bot("c")], "rejected": [bot("r")]}, ((USER,), (bot("c"),), (bot("r"),))),
    ],
    ids=[
        "plain",
        "implicit",
        "whole words",
        "conversation",
        "implicit conversation",
        "prompt repeated",
        "text repeated",
        "text repeated after a system turn",
        "a later turn repeated",
        "all turns as text",
        "text and answers",
    ],
)
def test_pairs(row, expected):
    example = FORMATS["pairs"].read(row)
    assert (example.prompt, *example.responses) == expected
    assert example.scores == (1.0, 0.0)


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("bye", "'prompt' is 'bye', but 'chosen' and 'rejected' begin with 'hi'"),
        ("h", "'prompt' is 'h', but"),
        (
            [MORE],
            "response 0 begins with what the user says, 'hi', and not with an answer to the prompt, which ends with 'more'",
        ),
        ([SYSTEM, USER], "response 0 begins with what the user says, 'hi', and not with an answer"),
    ],
)
def test_a_prompt_unlike_that_of_the_conversations_is_not_ignored(prompt, said):
    with pytest.raises(RowError, match=said):
        FORMATS["pairs"].read({"prompt": prompt, "chosen": [USER, bot("c")], "rejected": [USER, bot("r")]})


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("completions", {"completion": [USER, bot("a")]}),
        ("unpaired", {"completion": [SYSTEM, USER, bot("a")], "label": True}),
        ("groups", {"responses": ["a", [USER, bot("b")]], "scores": [1, 0]}),
        ("gdpo", opinion(accept_response=[USER, bot("a")])),
    ],
)
@pytest.mark.parametrize("prompt", ["hi", [USER]])
def test_whole_conversations_are_no_answers_to_a_prompt(name, row, prompt):
    with pytest.raises(RowError, match="response [01] begins with what the (user|system) says, .*, which ends with 'hi'"):
        FORMATS[name].read(row | {"prompt": prompt})


def test_what_follows_an_answer_may_begin_with_the_user():
    row = {"prompt": [USER, bot("a")], "completion": [MORE, bot("b")]}
    assert FORMATS["completions"].read(row).responses == ((MORE, bot("b")),)


def test_an_input_beside_a_conversation_is_not_ignored():
    row = {"instruction": [USER], "output": "o"}
    assert FORMATS["alpaca"].read(row | {"input": " "}).prompt == (USER,)
    with pytest.raises(RowError, match="'input': 'instruction' is a conversation, which 'more' cannot follow"):
        FORMATS["alpaca"].read(row | {"input": "more"})


@pytest.mark.parametrize(("group", "said"), [(" ", ""), ("\n", ""), ("", ""), (" a", " a"), ("0", "0"), (0, "0")])
def test_a_blank_group_is_none(group, said):
    assert FORMATS["prompts"].read({"prompt": "p", "group": group, "context": group}).group == said


@pytest.mark.parametrize("label", [True, False, 1, 0])
def test_unpaired(label):
    example = FORMATS["unpaired"].read({"prompt": "p", "completion": "c", "label": label})
    assert example.responses == ("c",) and example.scores is None and example.desirable is bool(label)


def test_gdpo():
    example = FORMATS["gdpo"].read(opinion(group="g1", context="said"))
    assert example.opinion.options == ("no", "yes", "maybe")
    assert example.opinion.probabilities == (0.25, 0.5, 0.25)
    assert (example.opinion.accepted, example.opinion.rejected) == (1, 0)
    assert example.responses == ("good1", "bad0") and (example.group, example.context) == ("g1", "said")
    rounded = FORMATS["gdpo"].read(opinion(probabilities=[0.333, 0.333, 0.333])).opinion.probabilities
    assert sum(rounded) == pytest.approx(1, abs=1e-12)
    assert FORMATS["gdpo"].read(opinion(probabilities=None)).opinion.probabilities is None


GROUP = {"prompt": "p", "responses": ["a", "b"], "scores": [1, 2]}
PAIR = {"prompt": "p", "chosen": "c", "rejected": "r"}


def feedback(**completion):
    return {"instruction": "p", "completions": [{"response": "a", "overall_score": 1} | completion]}


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        ("groups", {k: GROUP[k] for k in ("responses", "scores")}, "field 'prompt' is missing; the row has 'responses'"),
        ("groups", GROUP | {"prompt": " "}, "field 'prompt' is empty"),
        ("groups", GROUP | {"prompt": 3}, "field 'prompt': expected text or a list of messages, got 3"),
        ("groups", GROUP | {"responses": []}, "field 'responses': expected a list that is not empty"),
        ("groups", GROUP | {"responses": ["a", None]}, r"field 'responses\[1\]': expected text or a list of mess.*None"),
        ("groups", GROUP | {"scores": [1]}, "field 'scores': 1 scores for 2 responses"),
        ("groups", GROUP | {"scores": [1, float("nan")]}, r"field 'scores\[1\]': expected a finite number, got nan"),
        ("groups", GROUP | {"scores": [1, float("inf")]}, r"field 'scores\[1\]': expected a finite number, got inf"),
        ("groups", GROUP | {"scores": [1, 1e39]}, r"field 'scores\[1\]': expected a finite number, got 1e\+39"),
        ("groups", GROUP | {"scores": [1, "2"]}, r"field 'scores\[1\]': expected a finite number, got '2'"),
        ("groups", GROUP | {"scores": [1, True]}, r"field 'scores\[1\]': expected a finite number, got True"),
        ("groups", GROUP | {"prompt": [{"role": "user"}]}, r"field 'prompt\[0\]': a message needs text"),
        ("groups", GROUP | {"responses": ["a", [USER]]}, "response 1: the last message must be the assistant's"),
        ("ultrafeedback", feedback(overall_score=None), r"overall_score' is missing; the completion has 'response'"),
        ("ultrafeedback", feedback(overall_score=float("nan")), r"'completions\[0\].overall_score'.*got nan"),
        ("ultrafeedback", feedback(response=None), r"response' is missing; the completion has 'overall"),
        ("ultrafeedback", {"instruction": "p", "completions": []}, "'completions': expected a list that is not empty"),
        ("ultrafeedback", {"instruction": "p", "completions": ["a"]}, r"'completions\[0\]': expected an object"),
        ("pairs", {"prompt": "p", "chosen": "c"}, "field 'rejected' is missing"),
        ("pairs", {"chosen": "yes", "rejected": "no"}, "'prompt' is missing, and .* do not begin alike"),
        ("pairs", {"chosen": [USER, bot("a")], "rejected": "x"}, "one is text, the other a conversation"),
        ("pairs", {"chosen": [USER], "rejected": [USER, bot("a")]}, "nothing is left"),
        ("unpaired", {"prompt": "p", "completion": "c", "label": "yes"}, "'label': expected true or false, got 'yes'"),
        ("gdpo", opinion(options=["a"]), "'options': expected at least two"),
        ("gdpo", opinion(options=["a", "a", "b"]), "'options': expected at least two different"),
        ("gdpo", opinion(probabilities=[0.5, 0.5]), "'probabilities': expected 3 numbers that sum to 1"),
        ("gdpo", opinion(probabilities=[0.5, 0.6, 0.1]), "'probabilities': expected 3 numbers that sum to 1"),
        ("gdpo", opinion(probabilities=[-0.5, 1.0, 0.5]), "'probabilities': expected 3 numbers that sum to 1"),
        ("gdpo", opinion(accept_choice_id=3), "'accept_choice_id': 3 is not the number of one of the 3 options"),
        ("gdpo", opinion(reject_choice_id=-1), "'reject_choice_id': -1 is not"),
        ("gdpo", opinion(accept_choice="maybe"), "'accept_choice': 'maybe' is not option 1, 'yes'"),
        ("gdpo", opinion(reject_response=None), "'reject_response' is missing"),
    ],
)
def test_malformed_rows_name_the_field(name, row, message):
    with pytest.raises(RowError, match=message):
        FORMATS[name].read(row)


def test_samples_keep_their_tokens_and_may_be_blank():
    row = {"prompt": "p", "responses": ["a b", ""], "scores": [1, 0.5], "tokens": [[5, 6, 2], [2]]}
    example = FORMATS["samples"].read(row)
    assert example.responses == ("a b", "") and example.scores == (1.0, 0.5) and example.tokens == ((5, 6, 2), (2,))
    assert FORMATS["groups"].read(row).responses == ("a b", "")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"tokens": [[5]]}, "1 lists for 2 responses and 2 scores"),
        ({"tokens": [[5], []]}, r"tokens\[1\]"),
        ({"tokens": [[5], [-1]]}, r"tokens\[1\]"),
        ({"tokens": [[5], [True]]}, r"tokens\[1\]"),
        ({"tokens": None}, "'tokens' is missing"),
        ({"responses": ["a", 3]}, r"responses\[1\]"),
        ({"scores": [1, float("nan")]}, r"scores\[1\]"),
        ({"prompt": " "}, "'prompt' is empty"),
    ],
)
def test_bad_samples_are_named(change, message):
    row = {"prompt": "p", "responses": ["a", "b"], "scores": [1, 0], "tokens": [[5], [6]]}
    with pytest.raises(RowError, match=message):
        FORMATS["samples"].read({**row, **change})
