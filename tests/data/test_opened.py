"""Which format a file has by its columns, and which of its prompts are held out."""

from __future__ import annotations

import ast
import collections
import dataclasses
import hashlib

import pytest

from align_jax.data import DataConfig, Encoder, GroupDataset
from align_jax.data.arrange import Group, Sft, Unpaired
from align_jax.data.formats import recognized, spelled, unlike
from align_jax.data.opened import open_data
from align_jax.errors import UserError
from tests.data.toys import char_tokenizer, opinion, write_jsonl

SCORED = {"prompt": "p", "responses": ["a", "b"], "scores": [1, 0]}
PAIR = {"prompt": "p", "chosen": "a", "rejected": "b"}
CHAT = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]


@pytest.mark.parametrize(
    ("row", "name"),
    [
        (SCORED, "groups"),
        (SCORED | {"tokens": [[3, 2], [4, 2]]}, "samples"),
        (SCORED | {"tokens": [7, 9]}, "groups"),  # a column of that name that holds something else
        (SCORED | {"chosen": None, "rejected": None}, "groups"),
        ({"instruction": "p", "completions": [{"response": "a", "overall_score": 1}], "source": "x"}, "ultrafeedback"),
        (PAIR, "pairs"),
        (PAIR | {"score_chosen": 8.0, "score_rejected": 2.0, "prompt_id": "x"}, "pairs"),
        ({"chosen": "q a", "rejected": "q b"}, "pairs"),
        ({"prompt": "p", "completion": "a", "label": True}, "unpaired"),
        (opinion(), "gdpo"),
        ({"prompt": "p", "id": 3}, "prompts"),
    ],
)
def test_a_format_is_known_by_its_columns(row, name):
    assert spelled(recognized(row, "rows.jsonl:1")) == name


def test_columns_of_no_format_are_named_with_what_there_is():
    with pytest.raises(UserError, match=r"rows\.jsonl:1: .*answer, question.*pairs: chosen, rejected"):
        recognized({"question": "q", "answer": "a"}, "rows.jsonl:1")


def test_a_malformed_row_of_a_known_format_is_an_error_of_that_format(tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", [SCORED | {"scores": [1]}])
    with pytest.raises(UserError, match="1 scores for 2 responses"):
        dataset(DataConfig(train=path), "train")


def test_auto_is_the_same_data_as_its_format_by_name(tmp_path):
    (tmp_path / "rows.jsonl").write_text('not json\n{"prompt": "p", "responses": ["a", "b"], "scores": [1, 0]}\n')
    auto = DataConfig(train=str(tmp_path / "rows.jsonl"), on_bad_row="skip")
    named = dataset(dataclasses.replace(auto, format="groups"), "train")
    found = dataset(auto, "train")
    assert found.fingerprint == named.fingerprint
    assert "format groups, by its columns" in found.describe() and "by its columns" not in named.describe()


def test_a_fraction_holds_out_prompts_and_all_their_rows(tmp_path):
    rows = [PAIR | {"prompt": f"p{i % 20}", "chosen": f"a{i}"} for i in range(60)]
    config = DataConfig(train=write_jsonl(tmp_path / "rows.jsonl", rows), eval=0.2)
    parts = {which: [source[i] for i in range(len(source))] for which, source in sources(config).items()}
    prompts = {which: {row["prompt"] for row in part} for which, part in parts.items()}
    assert len(prompts["eval"]) == 4 and not prompts["eval"] & prompts["train"]
    assert sorted(row["chosen"] for part in parts.values() for row in part) == sorted(row["chosen"] for row in rows)
    # the same ones in whatever order the rows are, and more of them with a larger fraction
    again = sources(dataclasses.replace(config, train=write_jsonl(tmp_path / "other.jsonl", rows[::-1])))["eval"]
    assert {again[i]["prompt"] for i in range(len(again))} == prompts["eval"]
    more = sources(dataclasses.replace(config, eval=0.4))["eval"]
    assert {more[i]["prompt"] for i in range(len(more))} > prompts["eval"]
    assert again.where(0) == f"{tmp_path / 'other.jsonl'}:{1 + rows[::-1].index(again[0])}"


def test_what_is_held_out_decides_the_fingerprint(tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", [SCORED | {"prompt": f"p{i}"} for i in range(10)])
    prints = {dataset(DataConfig(train=path, eval=e), which).fingerprint for e in (0.1, 0.2) for which in ("train", "eval")}
    assert len(prints | {dataset(DataConfig(train=path), "train").fingerprint}) == 5


def test_one_prompt_cannot_be_held_out(tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", [PAIR, PAIR | {"chosen": "c"}])
    with pytest.raises(UserError, match="data.eval: 0.5 .* 1 different prompts"):
        open_data(DataConfig(train=path, eval=0.5), "eval", None)


def test_a_first_row_without_a_format_is_skipped_where_malformed_rows_are(tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", [{"prompt": None, "chosen": None}, SCORED])
    with pytest.raises(UserError, match=r"the columns with a value, \(none\), are those of no format"):
        dataset(DataConfig(train=path), "train")
    skipping = dataset(DataConfig(train=path, on_bad_row="skip"), "train")
    assert len(skipping) == 1 and len(skipping.bad_rows) == 1 and skipping.format == "groups"


@pytest.mark.parametrize("value", ["0.1", "5%", " 0.5"])
def test_a_fraction_as_text_is_said(value):
    with pytest.raises(UserError, match="is text; a fraction of data.train is a number"):
        DataConfig(eval=value.strip())


@pytest.mark.parametrize("value", [0, 1, 1.5, -0.1])
def test_a_fraction_is_between_zero_and_one(value):
    with pytest.raises(UserError, match=f"data.eval: {value}"):
        DataConfig(eval=value)


def sources(config):
    return {which: open_data(config, which, None).source for which in ("train", "eval")}


def dataset(config, which):
    return GroupDataset(config, which, Encoder(char_tokenizer(), config), arrangement=Group())


def test_dialogues_in_plain_text_are_read_as_such_and_said(tmp_path):
    turns = "\n\nHuman: hi\n\nAssistant: "
    rows = [{"chosen": turns + "yes", "rejected": turns + "no"}]
    source, data_format, _ = open_data(DataConfig(train=write_jsonl(tmp_path / "hh.jsonl", rows)), "train", None)
    assert data_format.read(source[0]).prompt == turns.removesuffix(" ")
    assert any("data.format: hh makes conversations of them" in note for note in source.notes)
    plain = open_data(DataConfig(train=write_jsonl(tmp_path / "rows.jsonl", [PAIR])), "train", None)
    assert plain.source.notes == ()


def held(rows, path, fraction=0.2):
    """The prompts that are held out and those that are not, and how many rows each has."""
    config = DataConfig(train=write_jsonl(path, rows), eval=fraction, on_bad_row="skip")
    parts = {}
    for which in ("train", "eval"):
        source, data_format, _ = open_data(config, which, None)
        parts[which] = collections.Counter(repr(data_format.read(source[i]).prompt) for i in range(len(source)))
    return parts


@pytest.mark.parametrize(
    "change",
    [
        lambda i: {"group": f"g{i}"},
        lambda i: {"context": f"c{i}"},
        lambda i: {"tools": [{"type": "function", "function": {"name": f"f{i}"}}]},
        lambda i: {"documents": [{"title": f"t{i}"}]},
        lambda i: {"group": None if i else "g"},
    ],
    ids=["group", "context", "tools", "documents", "group of some"],
)
@pytest.mark.parametrize("messages", [False, True])
def test_a_prompt_is_on_one_side_whatever_stands_beside_it(tmp_path, change, messages):
    def prompt(p):
        return [{"role": "user", "content": f"p{p}"}] if messages else f"p{p}"

    rows = [PAIR | {"prompt": prompt(p)} | change(i) for p in range(10) for i in range(4)]
    parts = held(rows, tmp_path / "rows.jsonl")
    assert len(parts["eval"]) == 2 and len(parts["train"]) == 8 and not parts["eval"].keys() & parts["train"].keys()
    assert set((parts["eval"] + parts["train"]).values()) == {4}
    # the same prompts as without what stands beside them
    bare = held([{**row, **dict.fromkeys(("group", "context", "tools", "documents"))} for row in rows], tmp_path / "bare.jsonl")
    assert bare == parts


def test_beliefs_of_a_prompt_are_on_one_side_whatever_their_options(tmp_path):
    names = [["no", "yes", "maybe"], ["a", "b", "c"]]
    rows = [
        opinion(prompt=f"p{p}", options=options, accept_choice=None, reject_choice=None) for p in range(10) for options in names
    ]
    parts = held(rows, tmp_path / "rows.jsonl")
    assert len(parts["eval"]) == 2 and not parts["eval"].keys() & parts["train"].keys()


def test_what_earlier_versions_held_out_of_bare_prompts_stays(tmp_path):
    rows = [PAIR | {"prompt": f"B {i}"} for i in range(100)]
    expected = ["B 45", "B 49", "B 5", "B 59", "B 70", "B 76", "B 80", "B 91", "B 96", "B 98"]
    assert sorted(map(ast.literal_eval, held(rows, tmp_path / "rows.jsonl", 0.1)["eval"])) == expected


def test_a_prompt_that_one_data_set_of_a_mixture_holds_out_is_trained_on_in_none(tmp_path):
    rows = [PAIR | {"prompt": f"p{i}", "group": g} for i in range(20) for g in "ab"]
    train = [write_jsonl(tmp_path / "a.jsonl", rows[:30]), write_jsonl(tmp_path / "b.jsonl", rows[10:])]
    found = sources(DataConfig(train=train, eval=0.2))
    prompts = {which: {source[i]["prompt"] for i in range(len(source))} for which, source in found.items()}
    assert prompts["eval"] and not prompts["eval"] & prompts["train"]


def test_the_digest_of_a_choice_by_other_rules_is_another(tmp_path):
    """Caches of earlier versions are of other rows, where these had groups."""
    bare = [PAIR | {"prompt": f"p{i}"} for i in range(9)]
    for rows, rule in ((bare, ""), ([row | {"group": "g"} for row in bare], " by prompt")):
        path = write_jsonl(tmp_path / "rows.jsonl", rows)
        whole = open_data(DataConfig(train=path), "train", None).source.digest
        expected = hashlib.sha256(f"{whole} 0.2 True{rule}".encode()).hexdigest()
        assert sources(DataConfig(train=path, eval=0.2))["eval"].digest == expected


def _malformed(tmp_path, good=0):
    rows = [SCORED | {"scores": ["9", "1"], "prompt": f"p{i}"} for i in range(8)] + [SCORED] * good
    return write_jsonl(tmp_path / "rows.jsonl", rows)


@pytest.mark.parametrize("on_bad_row", ["error", "skip"])
def test_where_all_rows_are_malformed_that_is_said_and_not_that_none_can_be_held_out(tmp_path, on_bad_row):
    config = DataConfig(train=_malformed(tmp_path), eval=0.05, on_bad_row=on_bad_row)
    reason = r"all 8 rows are malformed, the first: .*rows.jsonl:1: field 'scores\[0\]': expected a finite number, got '9'"
    with pytest.raises(UserError, match=reason):
        open_data(config, "train", None)
    config = dataclasses.replace(config, train=_malformed(tmp_path, good=2))
    with pytest.raises(UserError, match="it has 1 different prompts; 8 rows are malformed, the first: .*rows.jsonl:1: field"):
        open_data(config, "train", None)


@pytest.mark.parametrize(
    ("row", "name", "said"),
    [
        ({"prompt": "p", "completion": "a", "label": "yes"}, "completions", "the columns of unpaired, but field 'label'"),
        ({"prompt": "p", "response": "a", "score": 1}, "prompts", "completion in place of response? (format completions)"),
        ({"prompt": "p", "reponses": ["a", "b"], "scores": [1, 0]}, "prompts", "responses in place of reponses? (format"),
        ({"prompt": "p", "completion": "a", "labels": True}, "completions", "label in place of labels? (format unpaired)"),
        ({"prompt": "p", "completions": ["a"], "labels": [True]}, "prompts", ""),
        ({"prompt": "p", "response_a": "a", "response_b": "b", "winner": "model_a"}, "prompts", ""),
        ({"messages": CHAT, "question": "p", "answer": "a", "score": 1.0, "label": "x"}, "messages", ""),
        ({"instruction": "p", "input": "", "output": "a"}, "alpaca", ""),
        (PAIR | {"ratings": [1, 2], "responses": ["a", "b"], "question": "p"}, "pairs", ""),
        (opinion(), "gdpo", ""),
        ({**opinion(probabilities=None), "probs": [0.5, 0.3, 0.2]}, "gdpo", "did you mean probabilities in place of probs?"),
        (SCORED, "groups", ""),
    ],
)
def test_what_columns_may_have_been_meant_for_is_said(row, name, said):
    found = recognized(row, "rows.jsonl:1")
    assert spelled(found) == name
    assert said in unlike(row, found) if said else unlike(row, found) == ""


def test_a_format_that_cannot_serve_says_what_else_the_columns_may_be(tmp_path):
    rows = [{"prompt": "p", "completion": "a", "label": "yes"}]
    config = DataConfig(train=write_jsonl(tmp_path / "rows.jsonl", rows))
    with pytest.raises(UserError, match="give a column `label`; its first row has the columns of unpaired, but field 'label'"):
        GroupDataset(config, "train", Encoder(char_tokenizer(), config), arrangement=Unpaired())
    notes = GroupDataset(config, "train", Encoder(char_tokenizer(), config), arrangement=Sft()).notes
    assert any(note.startswith("columns not read: label; its first row has the columns of unpaired") for note in notes)
    with pytest.raises(UserError, match="of no format; did you mean chosen in place of winner, rejected in place of loser"):
        recognized({"question": "q", "winner": "a", "loser": "b"}, "rows.jsonl:1")
    with pytest.raises(UserError, match="prompt in place of question, completion in place of answer. .format completions.;"):
        recognized({"question": "q", "answer": "a"}, "rows.jsonl:1")
