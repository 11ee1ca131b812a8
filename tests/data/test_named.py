"""Every data set that is known by name, on rows of its columns."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import datasets
import pytest

from align_jax.data import DataConfig, Encoder, GroupDataset, open_source
from align_jax.data.arrange import Beliefs, Group, Pair
from align_jax.data.formats import FORMATS, find_format
from align_jax.data.look import read_rows
from align_jax.data.named import NAMED, find_named
from align_jax.data.opened import open_data
from align_jax.data.sources import rows_read
from align_jax.errors import UserError
from tests.data.toys import CHAT, char_tokenizer, opinion, write_jsonl

USER = {"role": "user", "content": "hi"}


def bot(text):
    return {"role": "assistant", "content": text}


CHATS = {"chosen": [USER, bot("good")], "rejected": [USER, bot("bad")]}
PAIRED = ((USER,), ((bot("good"),), (bot("bad"),)), (1.0, 0.0))
ULTRAFEEDBACK = {
    "source": "evol_instruct",
    "instruction": "hi",
    "models": ["a", "b"],
    "completions": [
        {
            "annotations": {"helpfulness": {"Rating": "5", "Rationale": "r"}},
            "custom_system_prompt": "As an AI assistant",
            "model": "a",
            "principle": "helpfulness",
            "response": "good",
            "critique": "c",
            "fine-grained_score": 4.75,
            "overall_score": 8.5,
        },
        {"annotations": {}, "model": "b", "response": "bad", "critique": "c", "fine-grained_score": 2.0, "overall_score": 3.0},
    ],
    "correct_answers": ["None"],
    "incorrect_answers": ["None"],
}
OLMO = CHATS | {"prompt": "hi", "chosen_rating": 4.75, "rejected_rating": 4.5, "chosen_model": "m", "source": "s", "id": "1"}
MMOQA = opinion(style="Casual", question="q?", selections=[0.25, 0.5, 0.25], answers=["a", "b", "c"], options_map=["x"])
# name -> a row of its columns; prompt, responses and scores of the example
ROWS = {
    "ultrafeedback": (ULTRAFEEDBACK, "hi", ("good", "bad"), (8.5, 3.0)),
    "ultrafeedback-binarized": (
        CHATS | {"prompt": "hi", "prompt_id": "x", "messages": CHATS["chosen"], "score_chosen": 8.5, "score_rejected": 3.0},
        *PAIRED,
    ),
    "ultrafeedback-cleaned": (
        CHATS | {"source": "s", "prompt": "hi", "chosen-rating": 5.0, "chosen-model": "m", "rejected-rating": 2.0},
        *PAIRED,
    ),
    "ultrafeedback-reward": (
        {
            "prompt": "hi", "prompt_id": "x", "A0": [USER, bot("a")], "A1": [USER, bot("b")], "A2": [USER, bot("c")],
            "A3": [USER, bot("d")], "A0_score": 8.5, "A1_score": 3.0, "A2_score": 0.0, "A3_score": 7.0,
        },
        (USER,),
        tuple((bot(text),) for text in "abcd"),
        (8.5, 3.0, 0.0, 7.0),
    ),
    "ultrafeedback-armorm": (
        CHATS
        | {"prompt_id": "x", "prompt": "hi", "all_generated_responses": ["a", "b", "c"], "all_rm_scores": [0.1, 0.17, 0.15]},
        "hi",
        ("a", "b", "c"),
        (0.1, 0.17, 0.15),
    ),
    "helpsteer3": (
        {
            "domain": "general", "language": "english", "context": [USER], "response1": "good", "response2": "bad",
            "overall_preference": -2, "individual_preference": [{"score": -2, "reasoning": "r", "feedback1": "f"}],
        },
        (USER,),
        ("good", "bad"),
        (2.0, 0.0),
    ),
    "hh-rlhf": (
        {
            "chosen": "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: Is Human: a word?\n\nAssistant: Yes.\n\nIt is.",
            "rejected": "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: Is Human: a word?\n\nAssistant:",
        },
        (USER, bot("hello"), {"role": "user", "content": "Is Human: a word?"}),
        ((bot("Yes.\n\nIt is."),), (bot(""),)),
        (1.0, 0.0),
    ),
    "shp": (
        {
            "post_id": "x", "domain": "askacademia_train", "history": "hi", "c_root_id_A": "a", "score_A": 3, "score_B": 9,
            "human_ref_A": "bad", "human_ref_B": "good", "labels": 0, "score_ratio": 3.0,
        },
        "hi",
        ("good", "bad"),
        (1.0, 0.0),
    ),
    "nectar": (
        {
            "prompt": "\n\nHuman: hi\n\nAssistant: ", "turns": 1, "num_responses": 3, "source": ["lmsys"], "good_natured": True,
            "answers": [
                {"answer": "b", "model": "m", "rank": 2.0}, {"answer": "a", "model": "m", "rank": 1.0},
                {"answer": "c", "model": "m", "rank": 3.0},
            ],
        },
        (USER,),
        ("b", "a", "c"),
        (1.0, 2.0, 0.0),
    ),
    "skywork-reward": (CHATS | {"source": "magpie"}, *PAIRED),
    **{name: (OLMO, *PAIRED) for name in NAMED if name.startswith("olmo-2-")},
    **{name: (MMOQA, "q", ("good1", "bad0"), (1.0, 0.0)) for name in NAMED if name.startswith(("mmoqa-", "movie-"))},
}  # fmt: skip
JOINED = ("helpsteer2", "global-opinions")


def test_there_are_rows_of_every_one():
    assert set(ROWS) | set(JOINED) == set(NAMED)
    assert all(find_format(known.format) for known in NAMED.values())


def test_every_one_and_every_format_is_documented():
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
    for name, known in NAMED.items():
        split = ", ".join(filter(None, (known.split, known.eval_split)))
        subset = f" ({known.subset})" if known.subset else ""
        assert f"| `{name}` | {known.hub}{subset} | `{known.format}` | {split} |" in page
    assert all(f"| `{name}` | " in page for name in FORMATS)


@pytest.fixture
def hub(monkeypatch):
    """What `datasets.load_dataset` was asked for; it gives the rows that are put here."""
    calls = []

    def load(*args, **kwargs):
        calls.append((args, kwargs))
        return datasets.Dataset.from_list(load.rows)

    monkeypatch.setattr(datasets, "load_dataset", load)
    load.calls = calls
    return load


def examples(config, which="train"):
    source, reading, _ = open_data(config, which, None)
    return [example for _, example in read_rows(source, reading.read, "error", [])], reading


@pytest.mark.parametrize("name", ROWS)
def test_a_row_by_name(name, hub):
    row, prompt, responses, scores = ROWS[name]
    hub.rows = [row]
    (example,), _ = examples(DataConfig(train={"name": name}))
    assert (example.prompt, example.responses, example.scores) == (prompt, responses, scores)
    assert example.context == ""
    ((args, kwargs),) = hub.calls
    assert NAMED[name].hub in (*args, *kwargs.values()) and kwargs["split"] == NAMED[name].split


@pytest.mark.parametrize("name", ROWS)
def test_a_local_copy_by_name(name, tmp_path):
    row, prompt, responses, _ = ROWS[name]
    (example,), reading = examples(DataConfig(train={"name": name, "path": write_jsonl(tmp_path / "rows.jsonl", [row])}))
    assert (example.prompt, example.responses) == (prompt, responses) and reading.name == NAMED[name].format


def test_the_split_for_evaluation(hub):
    hub.rows = [ROWS["shp"][0]]
    examples(DataConfig(eval={"name": "shp"}), "eval")
    examples(DataConfig(eval={"name": "shp", "split": "test"}), "eval")
    assert [kwargs["split"] for _, kwargs in hub.calls] == ["validation", "test"]
    with pytest.raises(UserError, match="nectar has no split for evaluation; give data.eval a fraction"):
        open_data(DataConfig(eval={"name": "nectar"}), "eval", None)


def test_streamed_rows_are_limited(tmp_path, monkeypatch):
    asked = []

    def load(*args, **kwargs):
        asked.append((args, kwargs))
        return datasets.Dataset.from_list([ROWS["nectar"][0]] * 5).to_iterable_dataset()

    monkeypatch.setattr(datasets, "load_dataset", load)
    train = {"name": "nectar", "streaming": True, "limit": 2, "revision": "v1"}
    source, reading, path = open_data(DataConfig(train=train), "train", tmp_path)
    assert len(source) == 2 and reading.read(source[1]).scores == (1.0, 2.0, 0.0) and path == "berkeley-nest/Nectar"
    ((_, kwargs),) = asked
    assert kwargs["streaming"] is True and kwargs["revision"] == "v1"


@pytest.mark.parametrize("name", ["ultrafeedback", "nectar", "ultrafeedback-reward", "hh-rlhf", "helpsteer3", "skywork-reward"])
def test_sequences_of_structs_come_as_lists_of_their_fields(name):
    """As `datasets` gives a `Sequence` of structs."""

    def turned(value):
        if not (isinstance(value, list) and value and all(isinstance(item, dict) for item in value)):
            return value
        return {key: [item.get(key) for item in value] for key in value[0]}

    row, *expected = ROWS[name]
    example = FORMATS[NAMED[name].format].read({key: turned(value) for key, value in row.items()})
    assert [example.prompt, example.responses, example.scores] == expected


STEER = [
    {"prompt": "hi", "response": "a", "helpfulness": 3, "correctness": 4, "coherence": 4, "complexity": 2, "verbosity": 2},
    {"prompt": "two\n<extra_id_1>Assistant\nyes\n<extra_id_1>User\nmore", "response": "c", "helpfulness": 0, "verbosity": 1},
    {"prompt": "hi", "response": "b", "helpfulness": 1, "correctness": 1, "coherence": 4, "complexity": 2, "verbosity": 2},
]


def test_helpsteer2_joins_the_rows_of_a_prompt(tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", STEER)
    for config in (DataConfig(train={"name": "helpsteer2", "path": path}), DataConfig(train=path)):
        (first, second), reading = examples(config)
        assert reading.name == "helpsteer2"
        assert (first.prompt, first.responses, first.scores) == ("hi", ("a", "b"), (3.0, 1.0))
        assert [m["role"] for m in second.prompt] == ["user", "assistant", "user"] and second.prompt[2]["content"] == "more"
    data = dataset(config, Group(), chat=CHAT)
    assert len(data) == 2 and data.where(1).endswith("rows.jsonl:2")


def steered(*rows):
    return [{"prompt": "hi", "response": chr(97 + i), "helpfulness": i} | row for i, row in enumerate(rows)]


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("group", ["a", "b"]),
        ("group", [0, None]),
        ("system", ["Be brief.", "Be long."]),
        ("context", ["c", None]),
        ("tools", [[{"name": "f"}], [{"name": "g"}]]),
        ("documents", ['[{"title": "t"}]', None]),
    ],
)
def test_helpsteer2_keeps_rows_apart_that_differ_beside_the_prompt(tmp_path, name, values):
    first, second = ({} if value is None else {name: value} for value in values)
    path = write_jsonl(tmp_path / "rows.jsonl", steered(first, second, first, second))
    found, _ = examples(DataConfig(train=path))
    assert [(e.responses, e.scores) for e in found] == [(("a", "c"), (0.0, 2.0)), (("b", "d"), (1.0, 3.0))]
    assert found[0] != dataclasses.replace(found[1], responses=found[0].responses, scores=found[0].scores)


@pytest.mark.parametrize(
    "bad", [{"helpfulness": "x"}, {"response": 3}, {"system": 3}, {"response": None}, {"helpfulness": None}]
)
def test_a_bad_row_of_helpsteer2_leaves_its_group_and_is_named(tmp_path, bad):
    path = write_jsonl(tmp_path / "rows.jsonl", steered({}, {}, bad, {}))
    with pytest.raises(UserError, match=r"rows\.jsonl:3: field"):
        dataset(DataConfig(train=path), Group())
    data = dataset(DataConfig(train=path, on_bad_row="skip"), Group())
    assert len(data) == 1 and data.example_of(0).responses == ("a", "b", "d")
    assert [row["where"].rpartition(":")[2] for row in data.bad_rows] == ["3"]


def test_responses_of_helpsteer2_may_be_messages(tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", steered({"response": [bot("a")]}, {"response": [bot("b")]}))
    (example,), _ = examples(DataConfig(train=path))
    assert example.responses == ((bot("a"),), (bot("b"),))
    path = write_jsonl(tmp_path / "rows.jsonl", steered({"response": [USER, bot("a")]}, {}))
    with pytest.raises(UserError, match=r"rows\.jsonl:1: response 0 begins with what the user says"):
        examples(DataConfig(train=path))


def test_rows_of_helpsteer2_are_counted_as_rows(tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", steered({}, {}, {"prompt": "other"}, {}))
    assert rows_read(open_data(DataConfig(train=path), "train", None).source) == 4
    both = open_data(DataConfig(train=[path, {"path": path, "label": "again"}]), "train", None).source
    assert rows_read(both) == 8 and len(both) == 4


def test_helpsteer2_joined_by_the_prompt_alone_keeps_its_digest(tmp_path):
    def digest(*rows):
        path = write_jsonl(tmp_path / "rows.jsonl", steered(*rows))
        whole = open_source(path).digest
        return open_data(DataConfig(train=path, format="helpsteer2"), "train", None).source.digest, whole

    found, whole = digest({}, {"group": ""})
    assert found == hashlib.sha256(f"{whole} joined by prompt".encode()).hexdigest()
    for rows in (({"group": "a"}, {}), ({"helpfulness": "x"}, {})):
        found, whole = digest(*rows)
        assert found != hashlib.sha256(f"{whole} joined by prompt".encode()).hexdigest()


def test_a_country_without_shares_leaves_out_itself(tmp_path):
    shares = {"Egypt": [0.1, 0.7, 0.2], "France": [0, 0, 0], "Peru": [1, 2], "Chile": "x", "Kenya": [1, 0, 0]}
    rows = [{"question": "q", "options": ["a", "b", "c"], "selections": shares}]
    config = DataConfig(train=write_jsonl(tmp_path / "rows.jsonl", rows), on_bad_row="skip")
    data = dataset(config, Beliefs())
    assert [data.example_of(i).group for i in range(len(data))] == ["Egypt", "Kenya"]
    assert [row["where"].rpartition(":")[2] for row in data.bad_rows] == ["1", "1", "1"]
    assert "France has shares [0, 0, 0] for 3 options" in data.bad_rows[0]["reason"]
    with pytest.raises(UserError, match=r"rows\.jsonl:1: field 'selections': France has shares"):
        dataset(dataclasses.replace(config, on_bad_row="error"), Beliefs())


OPINIONS = {
    "question": "Do you agree?",
    "selections": "defaultdict(<class 'list'>, {'Egypt': [0.1, 0.7, 0.19], 'France': [0.5, 0.0, 0.5]})",
    "options": "['Agree', \"Don't\", 'DK/Refused']",
    "source": "GAS",
}


def test_global_opinions_spreads_a_question_over_its_countries(tmp_path):
    config = DataConfig(train={"name": "global-opinions", "path": write_jsonl(tmp_path / "rows.jsonl", [OPINIONS])})
    (egypt, france), _ = examples(config)
    assert (egypt.prompt, egypt.group, egypt.responses) == ("Do you agree?", "Egypt", ("Don't", "Agree"))
    assert egypt.opinion.options == ("Agree", "Don't", "DK/Refused")
    assert egypt.opinion.probabilities == pytest.approx((0.1 / 0.99, 0.7 / 0.99, 0.19 / 0.99))
    assert (egypt.opinion.accepted, egypt.opinion.rejected) == (1, 0)
    assert france.opinion.rejected == 1 and france.opinion.probabilities == (0.5, 0.0, 0.5)
    data = dataset(config, Beliefs())
    assert data.group_names == ("Egypt", "France") and data[0].labels["target_probs"].shape == (3,)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"question": None}, "'question' is missing"),
        ({"selections": "{'Egypt': [0.5, 0.5]}"}, "Egypt has shares .* for 3 options"),
        ({"selections": "{}"}, "no country has answered"),
        ({"selections": "{'Egypt': [0, 0, 0]}"}, "Egypt has shares"),
        ({"options": "Agree or not"}, "'options': expected Python's text of a list"),
    ],
)
def test_opinions_that_cannot_be_read_are_one_bad_row(tmp_path, change, said):
    rows = [OPINIONS | change, OPINIONS]
    config = DataConfig(train={"name": "global-opinions", "path": write_jsonl(tmp_path / "rows.jsonl", rows)})
    with pytest.raises(UserError, match=rf"rows\.jsonl:1: .*{said}"):
        examples(config)
    source, reading, _ = open_data(config, "train", None)
    bad = []
    assert len(list(read_rows(source, reading.read, "skip", bad))) == 2 and len(bad) == 1


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("hh", {"chosen": "hello"}, "'chosen': expected text that begins with '.*Human:'"),
        ("hh", {"rejected": "\n\nHuman: ho\n\nAssistant: x"}, "do not begin with the same turn"),
        ("hh", {"rejected": "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: other\n\nAssistant: x"}, "where they part"),
        ("nectar", {"answers": [{"answer": "a"}]}, r"'answers\[0\]': expected an object with 'answer' and 'rank'"),
        ("shp", {"labels": 2}, "'labels': expected 1"),
        ("helpsteer3", {"overall_preference": None}, "'overall_preference' is missing"),
        ("ultrafeedback_reward", {"A1_score": None}, "'A1_score' is missing"),
        ("ultrafeedback_reward", {"A1": [{"role": "user", "content": "ho"}, bot("b")]}, "differ before the last answer"),
        ("generated", {"all_rm_scores": [1]}, "1 scores for 3 responses"),
    ],
)
def test_malformed_rows_of_published_layouts(name, change, said):
    row = next(row for key, (row, *_) in ROWS.items() if NAMED[key].format == name)
    with pytest.raises(ValueError, match=said):
        FORMATS[name].read(row | change)


def test_the_same_dialogue_twice_is_read_as_a_pair_without_contrast():
    text = "\n\nHuman: hi\n\nAssistant: a"
    example = FORMATS["hh"].read({"chosen": text, "rejected": text})
    assert example.prompt == (USER,) and example.responses == ((bot("a"),), (bot("a"),)) and Pair().items(0, example) == []


@pytest.mark.parametrize("name", ["UltraFeedback", "openbmb/UltraFeedback", "openbmb/ultrafeedback", "ultrafeedback"])
def test_names_are_found_in_any_case_and_by_hub_id(name):
    assert find_named(name, "data.train.name").hub == "openbmb/UltraFeedback"


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(UserError, match="data.train.name: no data set .* 'ultrafedback'; did you mean ultrafeedback"):
        DataConfig(train={"name": "ultrafedback"})


def test_another_format_than_that_of_the_name_is_refused(tmp_path):
    train = {"name": "nectar", "path": "x.jsonl"}
    with pytest.raises(UserError, match="data.format: 'pairs', but nectar has format 'nectar'"):
        open_data(DataConfig(train=train, format="pairs"), "train", None)


def dataset(config, arrangement, chat=None):
    return GroupDataset(config, "train", Encoder(char_tokenizer(chat=chat), config), arrangement=arrangement)
