"""Empty answers: one rule for texts and messages; columns that nobody reads are said."""

from __future__ import annotations

import json

import pytest

from align_jax.data import DataConfig, Encoder, GroupDataset
from align_jax.data.arrange import Beliefs, Group, Pair, Sft, Unpaired
from align_jax.data.formats import FORMATS
from align_jax.data.look import Look, read_rows
from align_jax.data.opened import open_data
from align_jax.data.prompts import distinct_prompts
from align_jax.data.reading import Noted, Reading
from align_jax.errors import UserError
from tests.data.toys import CHAT, char_tokenizer, opinion, write_jsonl

USER = {"role": "user", "content": "hi"}


def bot(text):
    return {"role": "assistant", "content": text}


def group(*texts, scores=None, prompt="p"):
    return {"prompt": prompt, "responses": list(texts), "scores": scores or list(range(len(texts)))}


def dataset(tmp_path, rows, arrangement=None, chat=None, **config):
    config = DataConfig(train=write_jsonl(tmp_path / "rows.jsonl", rows), **config)
    tokenizer = char_tokenizer(chat=chat)
    return GroupDataset(config, "train", Encoder(tokenizer, config), arrangement=arrangement or Group())


@pytest.mark.parametrize("empty", ["", "  ", "\n"])
def test_an_empty_text_is_the_end_token_alone_and_counted(tmp_path, empty):
    data = dataset(tmp_path, [group("a", empty), group("b", "c")])
    eos = char_tokenizer().eos_token_id
    assert data[0].segments[1].tokens.tolist() == [eos]
    assert data.notes == ["1 of 4 answers is empty: the end token alone (data.on_empty: drop leaves them out)"]


@pytest.mark.parametrize("empty", [bot(""), bot(None), bot(" ") | {"tool_calls": []}])
def test_an_empty_message_is_counted_by_the_same_rule(tmp_path, empty):
    rows = [{"prompt": [USER], "responses": [[bot("a")], [empty]], "scores": [1, 0]}]
    assert dataset(tmp_path, rows, chat=CHAT).notes[0].startswith("1 of 2 answers is empty")
    with pytest.raises(UserError, match=r"rows\.jsonl:1: response 1 is empty \(data.on_empty: keep takes it"):
        dataset(tmp_path, rows, chat=CHAT, on_empty="error")


def test_calls_of_tools_are_no_empty_answer(tmp_path):
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
    config = DataConfig(train=write_jsonl(tmp_path / "r.jsonl", [{"prompt": [USER], "chosen": [call], "rejected": [bot("b")]}]))
    source, reading, _ = open_data(config, "train", None)
    look = Look()
    assert len(list(look.at(read_rows(source, reading.read, "error", [])))) == 1 and look.notes() == []


def test_dropped_answers_leave_groups_that_have_contrast(tmp_path):
    rows = [group("a", "", "b"), group("a", ""), group("", " "), group("c", "d"), group("a", "", "b", scores=[1, 2, 1])]
    data = dataset(tmp_path, rows, on_empty="drop")
    assert [len(data[i].segments) for i in range(len(data))] == [2, 2] and data[0].labels["scores"].tolist() == [0, 2]
    assert data.notes == [
        "data.on_empty: drop: left out 2 empty answers, 1 row (the better answer is empty), 1 row (no answer is left)"
    ]
    assert "1 row without two different scores dropped" in data.describe()


def demonstrations(*answers):
    return [{"prompt": f"p{i}", "completion": answer} for i, answer in enumerate(answers)]


NOT_COUNTED = "a text of its beliefs is empty, and what it accepts is not counted in its distribution"


@pytest.mark.parametrize(
    ("rows", "arrangement", "said"),
    [
        (demonstrations("", "a", " ", "\n"), Sft(), "3 rows (no answer is left)"),
        ([group("", prompt="a"), group("b", prompt="b"), group("a", "c")], Group(), "1 row (no answer is left)"),
        ([group("a", "", scores=[0, 1]), group("a", "b")], Group(), "1 row (the better answer is empty)"),
        ([group("a", "", "b"), group("a", "b")], Group(), "1 empty answer"),
        ([opinion(reject_response=""), opinion()], Beliefs(), "1 row (a text of its beliefs is empty)"),
        ([opinion(accept_response="", probabilities=None), opinion()], Beliefs(), f"1 row ({NOT_COUNTED})"),
    ],
    ids=["sft", "no answer", "better answer", "some answers", "beliefs", "beliefs that are counted"],
)
def test_what_is_left_out_is_said_as_it_is(tmp_path, rows, arrangement, said):
    (found,) = [note for note in dataset(tmp_path, rows, arrangement, on_empty="drop").notes if "on_empty" in note]
    assert found == f"data.on_empty: drop: left out {said}"


def test_skipped_where_they_are_errors(tmp_path):
    data = dataset(tmp_path, [group("a", ""), group("c", "d")], on_empty="error", on_bad_row="skip")
    assert len(data) == 1 and len(data.bad_rows) == 1


@pytest.mark.parametrize(
    ("arrangement", "kept"),
    [(Pair(), ["c"]), (Group(), ["c"]), (Unpaired(), ["c", "c"]), (Sft(), ["b", "c"])],
    ids=lambda x: type(x).__name__,
)
def test_a_pair_without_its_better_answer_is_no_demonstration(tmp_path, arrangement, kept):
    rows = [
        {"prompt": "a", "chosen": "", "rejected": "x"},
        {"prompt": "b", "chosen": "x", "rejected": ""},
        {"prompt": "c", "chosen": "x", "rejected": "y"},
    ]
    data = dataset(tmp_path, rows, arrangement, on_empty="drop")
    assert [data.example_of(i).prompt for i in range(len(data))] == kept


def test_a_text_of_a_belief_that_is_empty_leaves_the_row_out(tmp_path):
    rows = [opinion(reject_response=""), opinion(prompt="r")]
    assert len(dataset(tmp_path, rows, Beliefs(), on_empty="drop")) == 1
    kept = dataset(tmp_path, rows, Beliefs())
    assert len(kept) == 2 and kept.notes[0].startswith("1 of 4 answers is empty")


def test_sampled_tokens_follow_the_texts_that_are_kept():
    reading = Reading([FORMATS["samples"]], on_empty="drop")
    row = {"prompt": "p", "responses": ["a", "", "b"], "scores": [1, 2, 3], "tokens": [[5, 2], [2], [6, 2]]}
    example = reading.read(row)
    assert example.tokens == ((5, 2), (6, 2)) and example.scores == (1.0, 3.0) and example.left_out == 1


def test_prompts_are_kept_whatever_their_answers(tmp_path):
    config = DataConfig(
        train=write_jsonl(tmp_path / "r.jsonl", [group("", prompt="a"), group("b", prompt="b")]), on_empty="drop"
    )
    assert [row["prompt"] for row in distinct_prompts(config, "train", tmp_path)[0]] == ["a", "b"]


def test_prompts_keep_what_templates_are_given(tmp_path):
    tools = [{"type": "function", "function": {"name": "f"}}]
    rows = [{"prompt": "a", "group": 0, "tools": tools}, {"prompt": "a", "group": 0}, {"prompt": "a", "group": 0}]
    found, *_ = distinct_prompts(DataConfig(train=write_jsonl(tmp_path / "r.jsonl", rows)), "train", tmp_path)
    weighed = [{"path": str(tmp_path / "r.jsonl"), "weight": 2}, {"path": write_jsonl(tmp_path / "s.jsonl", rows), "weight": 1}]
    assert distinct_prompts(DataConfig(train=weighed), "train", tmp_path)[2][-1].startswith("weights have no effect")
    assert found == [{"prompt": "a", "group": "0", "tools": tuple(tools)}, {"prompt": "a", "group": "0"}]


def test_on_empty_decides_the_fingerprint_but_its_default_does_not(tmp_path):
    rows = [group("a", "", "c"), group("b", "c")]
    prints = [dataset(tmp_path, rows, **more).fingerprint for more in ({}, {"on_empty": "keep"}, {"on_empty": "drop"})]
    assert prints[0] == prints[1] != prints[2]


@pytest.mark.parametrize(
    ("rows", "config", "said"),
    [
        ([group("a", "b") | {"source": "s", "id": 0}], {}, ["columns not read: source, id"]),
        ([group("a", "b") | {"group": "g", "system": None, "context": ""}], {}, []),
        ([opinion(question_id="x", accept_choice=None)], {"format": "gdpo"}, ["columns not read: question_id"]),
        (
            [group("a", "b") | {f"c{i}": i for i in range(20)}],
            {},
            ["columns not read: c0, c1, c2, c3, c4, c5, c6, c7, c8, c9, c10, c11 and 8 more"],
        ),
        # those of the first row that can be read
        (
            [{"prompt": "p", "x": 1}, group("a", "b") | {"y": 1}],
            {"on_bad_row": "skip", "format": "groups"},
            ["columns not read: y"],
        ),
    ],
)
def test_columns_that_are_not_read_are_said_once(tmp_path, rows, config, said):
    arrangement = Beliefs() if config.get("format") == "gdpo" else Group()
    assert dataset(tmp_path, rows, arrangement, **config).notes == said


def test_a_row_notes_what_is_read_of_it():
    row = Noted({"a": 1, "b": 2, "c": 3})
    assert row["a"] == row.get("a") == 1 and row.get("d") is None and "c" in row and list(row) == ["a", "b", "c"]
    assert row.read == {"a"}
    for copied in (
        lambda row: row | {},
        lambda row: {} | row,
        lambda row: row.copy(),
        dict,
        lambda row: json.loads(json.dumps(row)),
    ):
        other = Noted({"a": 1})
        assert copied(other) == {"a": 1} and other.read == {"a"}
    assert {**row} == dict(row) == {"a": 1, "b": 2, "c": 3} and row.read == {"a", "b", "c"}
