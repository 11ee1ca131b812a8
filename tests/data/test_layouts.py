"""Rows as people have them: demonstrations, values that are zero, rounded probabilities, prompts under other names."""

from __future__ import annotations

import decimal

import numpy as np
import pytest

from align_jax.data.formats import FORMATS, recognized, spelled
from align_jax.data.formats.fields import said, whole
from align_jax.data.sources import RowError
from align_jax.errors import UserError
from tests.data.toys import opinion

USER = {"role": "user", "content": "hi"}
PAIR = {"prompt": "p", "chosen": "c", "rejected": "r"}


def bot(text):
    return {"role": "assistant", "content": text}


@pytest.mark.parametrize(
    ("row", "name", "prompt", "answer"),
    [
        ({"messages": [USER, bot("a"), USER, bot("b")]}, "messages", (USER,), (bot("a"), USER, bot("b"))),
        ({"messages": [bot("hello"), USER, bot("b")]}, "messages", (bot("hello"), USER), (bot("b"),)),
        (
            {"messages": '[{"role": "User", "content": "hi"}, {"role": "ASSISTANT", "content": "a"}]'},
            "messages",
            (USER,),
            (bot("a"),),
        ),
        ({"prompt": "hi", "prompt_id": "1", "messages": [USER, bot("a")]}, "messages", (USER,), (bot("a"),)),
        (
            {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "a"}]},
            "sharegpt",
            (USER,),
            (bot("a"),),
        ),
        ({"prompt": "p", "completion": "c"}, "completions", "p", "c"),
        ({"prompt": "p", "completion": "c", "label": None}, "completions", "p", "c"),
        ({"prompt": [USER], "completion": [bot("c")]}, "completions", (USER,), (bot("c"),)),
        ({"instruction": "Add.", "input": "1 2", "output": "3"}, "alpaca", "Add.\n\n1 2", "3"),
        ({"instruction": "Add.", "input": "", "output": "3"}, "alpaca", "Add.", "3"),
    ],
)
def test_demonstrations(row, name, prompt, answer):
    found = recognized(row, "x:1")
    example = found.read(row)
    assert spelled(found) == name and (example.prompt, example.responses) == (prompt, (answer,))
    assert example.scores is example.desirable is None


@pytest.mark.parametrize(
    ("row", "name"),
    [
        (PAIR | {"messages": [USER, bot("a")]}, "pairs"),
        (PAIR | {"instruction": "x", "output": "y"}, "pairs"),
        ({"prompt": "p", "completion": "c", "label": 0}, "unpaired"),
        ({"prompt": "p", "responses": ["a"], "scores": [1], "messages": [USER, bot("a")]}, "groups"),
    ],
)
def test_what_judges_responses_comes_first(row, name):
    assert spelled(recognized(row, "x:1")) == name


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"messages": [USER, bot("a"), USER]}, "'messages': the last message must be the assistant's, not of 'user'"),
        ({"messages": [bot("a")]}, "the assistant's message is the only one"),
        ({"messages": "hi"}, "'messages': expected a list of objects, or JSON text of one, got 'hi'"),
        ({"messages": []}, "expected a list of messages"),
    ],
)
def test_conversations_that_are_no_demonstration(row, said):
    with pytest.raises(RowError, match=said):
        FORMATS["messages"].read(row)


def test_plain_text_is_refused_with_a_word():
    with pytest.raises(UserError, match="`text`.* says nowhere where a prompt ends; give `prompt` and `completion`"):
        recognized({"text": "Once upon a time", "id": 1}, "x:1")


@pytest.mark.parametrize("name", ["question", "instruction", "input", "query", "post", "history"])
def test_a_prompt_under_another_name_is_not_ignored(name):
    row = {name: "What is it?", "chosen": "It is good.", "rejected": "It is bad."}
    with pytest.raises(RowError, match=f"column '{name}' looks like it.*Rename '{name}' to 'prompt'"):
        FORMATS["pairs"].read(row)
    with pytest.raises(RowError, match=f"column '{name}' looks like it"):
        FORMATS["pairs"].read(row | {"chosen": "Good.", "rejected": "Bad."})
    # where it stands in what both begin with, or the prompt is there, it is no prompt
    whole = FORMATS["pairs"].read({name: "What is it?", "chosen": "What is it? Good.", "rejected": "What is it? Bad."})
    assert whole.prompt == "What is it?" and whole.responses == (" Good.", " Bad.")
    assert FORMATS["pairs"].read(row | {"prompt": "p"}).prompt == "p"
    turns = {"chosen": [USER, bot("a")], "rejected": [USER, bot("b")], name: "raw"}
    assert FORMATS["pairs"].read(turns).prompt == (USER,)
    alone = {"chosen": [bot("so: a")], "rejected": [bot("so: b")], name: "raw"}
    with pytest.raises(RowError, match=f"column '{name}' looks like it"):
        FORMATS["pairs"].read(alone)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"), (1, "1"), (0.0, "0"), (2.5, "2.5"), (False, "False"), (True, "True"), (np.int64(0), "0"), ("0", "0"),
        ("", ""), (None, ""), (float("nan"), ""), ("de", "de"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("column", ["group", "context"])
def test_zero_is_a_value(column, value, text):
    assert said(value) == text
    assert getattr(FORMATS["pairs"].read(PAIR | {column: value}), column) == text


@pytest.mark.parametrize("label", [0, 0.0, False])
def test_a_label_of_zero_is_a_label(label):
    row = {"prompt": "p", "completion": "c", "label": label}
    assert spelled(recognized(row, "x:1")) == "unpaired" and FORMATS["unpaired"].read(row).desirable is False


@pytest.mark.parametrize("value", [0, 0.0, "0", np.int64(0), np.float32(0)])
def test_a_choice_may_be_any_zero(value):
    row = opinion(accept_choice_id=value, accept_choice="no", reject_choice_id=1, reject_choice="yes")
    assert FORMATS["gdpo"].read(row).opinion.accepted == 0


@pytest.mark.parametrize("value", [0.5, "0.5", "no", True, None, -1, 3, float("nan"), float("inf"), [0]])
def test_a_choice_that_is_no_number_of_an_option(value):
    assert whole(value) in (None, -1, 3)
    with pytest.raises(RowError, match="accept_choice_id"):
        FORMATS["gdpo"].read(opinion(accept_choice_id=value))


@pytest.mark.parametrize("scores", [[np.float32(1.5), np.int64(0)], [decimal.Decimal("1.5"), 0], [1.5, -0.0]])
def test_scores_may_be_any_numbers(scores):
    assert FORMATS["groups"].read({"prompt": "p", "responses": ["a", "b"], "scores": scores}).scores == (1.5, 0.0)


OPTIONS = [f"o{i}" for i in range(12)]


@pytest.mark.parametrize(
    "values",
    [
        [0.33, 0.33, 0.33], [0.3, 0.3, 0.3], [0.17] * 6, [0.08] * 12, [0.083] * 12, [0.143] * 7, [0.5, 0.5], [1.0, 0.0],
        [np.float32(0.33)] * 3, [0.334, 0.333, 0.334], [1, 0, 0],
    ],
)  # fmt: skip
def test_rounded_probabilities_are_brought_to_one(values):
    row = opinion(options=OPTIONS[: len(values)], probabilities=values, accept_choice=None, reject_choice=None)
    found = FORMATS["gdpo"].read(row).opinion.probabilities
    assert sum(found) == pytest.approx(1, abs=1e-12)
    np.testing.assert_allclose(found, np.asarray(values, float) / np.sum(values, dtype=float), rtol=1e-6)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([0.5, 0.3], "these sum to 0.8"),
        ([0.5, 0.4], "these sum to 0.9"),
        ([0.55, 0.4], "these sum to 0.95"),
        ([33, 33, 34], "percentages. divide them by 100"),
        ([0.2, 0.2, 0.2], "these sum to 0.6"),
        ([0.0, 0.0], "these sum to 0"),
        ([0, 0, 0], "these sum to 0"),
        ([1, 1, 0], "these sum to 2: answers that were counted. divide them by 2, and put that in the column `answers`"),
        ([2.0, 0.0, 0.0], "these sum to 2: answers"),
        ([1, 0, 1], "these sum to 2: answers"),
        ([0.333, 0.333, 0.31], "these sum to 0.976"),
    ],
)
def test_probabilities_that_no_rounding_explains_are_refused(values, said):
    row = opinion(options=OPTIONS[: len(values)], probabilities=values, accept_choice=None, reject_choice=None)
    with pytest.raises(RowError, match=f"numbers that sum to 1.*{said}"):
        FORMATS["gdpo"].read(row)


@pytest.mark.parametrize("written", ["yes", "Yes", " yes.", "[yes]", "'yes'"])
def test_the_name_of_a_choice_may_be_written_with_marks(written):
    assert FORMATS["gdpo"].read(opinion(accept_choice=written)).opinion.accepted == 1


def test_options_may_be_ratings():
    row = opinion(options=[0, 1, 2], accept_choice=1, reject_choice="0")
    assert FORMATS["gdpo"].read(row).opinion.options == ("0", "1", "2")


@pytest.mark.parametrize(
    ("row", "prompt", "answer"),
    [
        ({"chosen": "ask: yes it is", "rejected": "ask: yes it is"}, "ask: yes it", " is"),
        ({"chosen": [USER, bot("a")], "rejected": [USER, bot("a")]}, (USER,), (bot("a"),)),
        (PAIR | {"rejected": "c"}, "p", "c"),
    ],
)
def test_a_pair_of_one_answer_is_read(row, prompt, answer):
    example = FORMATS["pairs"].read(row)
    assert example.prompt == prompt and example.responses == (answer, answer)
