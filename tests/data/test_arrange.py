"""Which responses stand in which slots, for every objective layout."""

from __future__ import annotations

import numpy as np
import pytest

from align_jax.batch import pad_to, sizes
from align_jax.data import DataConfig, Encoder, GroupDataset, RowLayout, pack_groups
from align_jax.data.arrange import Beliefs, Group, Label, Pair, Sft, SplitPair, Unpaired
from align_jax.data.arrange.split_pair import split_after
from align_jax.data.records import Segment
from align_jax.errors import UserError
from tests.data.toys import char_tokenizer, opinion, write_jsonl

TOKENIZER = char_tokenizer()
GROUPS = [
    {"prompt": "p0", "responses": ["a0", "b0", "c0"], "scores": [1, 3, 2]},
    {"prompt": "p1", "responses": ["a1", "b1"], "scores": [2, 2]},
    {"prompt": "p2", "responses": ["a2"], "scores": [5]},
    {"prompt": "p3", "responses": ["a3", "b3"], "scores": [0, 1]},
]
PAIRS = [{"prompt": f"p{i}", "chosen": f"c{i}", "rejected": f"r{i}"} for i in range(3)]
UNPAIRED = [{"prompt": f"p{i}", "completion": f"c{i}", "label": i != 1} for i in range(3)]
ROWS = {"groups": GROUPS, "pairs": PAIRS, "unpaired": UNPAIRED}


ARRANGEMENTS = {"group": Group, "pair": Pair, "split_pair": SplitPair, "unpaired": Unpaired, "sft": Sft, "gdpo": Beliefs}


def dataset(tmp_path, rows, format_, layout, *, seed=0, preference=None, **config):
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    made = DataConfig(train=path, format=format_, **config)
    arrangement = ARRANGEMENTS[layout](**({} if preference is None else {"preference": preference}))
    return GroupDataset(made, "train", Encoder(TOKENIZER, made), arrangement=arrangement, seed=seed)


def texts(group):
    """{slot: text}; `parent|text` where a segment has one."""

    def text(segment):
        return "".join(TOKENIZER.convert_ids_to_tokens(segment.tokens))

    return {s.slot: (text(group.segments[s.parent]) + "|" if s.parent >= 0 else "") + text(s) for s in group.segments}


def prompt(group):
    return "".join(TOKENIZER.convert_ids_to_tokens(group.prompt))


def test_group(tmp_path):
    data = dataset(tmp_path, GROUPS, "groups", "group")
    assert len(data) == 4 and data.slots == 3
    assert prompt(data[0]) == "<s>p0" and data[0].row == 0
    assert texts(data[0]) == {0: "a0</s>", 1: "b0</s>", 2: "c0</s>"}
    np.testing.assert_array_equal(data[0].labels["scores"], [1, 3, 2])
    assert texts(data[2]) == {0: "a2</s>"}  # without contrast: kept, and counted by the objective
    pairs = dataset(tmp_path, PAIRS, "pairs", "group")
    assert texts(pairs[1]) == {0: "c1</s>", 1: "r1</s>"} and pairs[1].labels["scores"].tolist() == [1, 0]


def test_samples_are_trained_on_as_they_were_sampled(tmp_path):
    a, b, end = (TOKENIZER.convert_tokens_to_ids(t) for t in ("a", "b", "</s>"))
    # The first ended itself, the second at the length limit, the third said nothing; texts are not tokenized again.
    row = {"prompt": "p", "responses": ["ab", "not these", ""], "scores": [1, 2, 3], "tokens": [[a, b, end], [b, a, b], [end]]}
    data = dataset(tmp_path, [row], "samples", "group")
    assert texts(data[0]) == {0: "ab</s>", 1: "bab", 2: "</s>"} and data[0].labels["truncated"].tolist() == [0, 0]
    cut = dataset(tmp_path, [row], "samples", "pair", max_response_tokens=2)
    assert texts(cut[0]) == {0: "</s>", 1: "ab"} and cut[0].labels["truncated"].tolist() == [0, 1]
    strange = write_jsonl(tmp_path / "strange.jsonl", [{**row, "tokens": [[a], [b], [1000]]}])
    made = DataConfig(train=strange, format="samples")
    with pytest.raises(UserError, match="strange.jsonl:1: field 'tokens': the vocabulary ends at 999, got 1000"):
        GroupDataset(made, "train", Encoder(TOKENIZER, made, vocab_size=1000), arrangement=Group())


def test_split_pair_cuts_the_longer_response_where_the_shorter_ends(tmp_path):
    rows = [
        {"prompt": "p", "chosen": "abcd", "rejected": "x"},
        {"prompt": "q", "chosen": "a", "rejected": "xyz"},
        {"prompt": "r", "chosen": "ab", "rejected": "xy"},
    ]
    data = dataset(tmp_path, rows, "pairs", "split_pair")
    assert data.slots == 4 and [group.slots for group in (data[0], data[1], data[2])] == [4, 4, 4]
    assert texts(data[0]) == {0: "ab", 1: "x</s>", 2: "ab|cd</s>"}
    assert texts(data[1]) == {0: "a</s>", 1: "xy", 3: "xy|z</s>"}
    assert texts(data[2]) == {0: "ab</s>", 1: "xy</s>"}


def test_what_is_split_is_counted_in_scored_tokens():
    segment = Segment(np.arange(6, dtype=np.int32), 1, scored=np.array([0, 1, 0, 1, 1, 0], bool))
    head, rest = split_after(segment, 2)
    assert head.tokens.tolist() == [0, 1, 2, 3] and head.scored.tolist() == [0, 1, 0, 1] and head.slot == 1
    assert rest.tokens.tolist() == [4, 5] and rest.length == 1 and (rest.slot, rest.parent) == (3, 1)
    assert split_after(segment, 3) == (segment, None)


def test_pair_takes_best_against_worst_and_drops_what_has_no_contrast(tmp_path):
    data = dataset(tmp_path, GROUPS, "groups", "pair")
    assert len(data) == 2 and data.slots == 2
    assert texts(data[0]) == {0: "b0</s>", 1: "a0</s>"} and data[0].labels["scores"].tolist() == [3, 1]
    assert texts(data[1]) == {0: "b3</s>", 1: "a3</s>"} and data[1].row == 1 and "rows.jsonl:4" in data.where(1)
    assert "2 rows without two different scores and texts dropped" in data.describe()
    said = dataset(tmp_path, GROUPS, "groups", "group").describe()
    assert "2 of the groups have one score or one text for all responses" in said
    with pytest.raises(UserError, match="none of the 1 rows has two different scores"):
        dataset(tmp_path, GROUPS[1:2], "groups", "pair")


def test_sft_takes_the_best(tmp_path):
    assert texts(dataset(tmp_path, GROUPS, "groups", "sft")[0]) == {0: "b0</s>"}
    assert texts(dataset(tmp_path, PAIRS, "pairs", "sft")[2]) == {0: "c2</s>"}
    data = dataset(tmp_path, UNPAIRED, "unpaired", "sft")
    assert [texts(data[i])[0] for i in range(len(data))] == ["c0</s>", "c2</s>"]
    assert "1 row without a desirable completion dropped" in data.describe()


@pytest.mark.parametrize("format_", ["groups", "pairs", "unpaired"])
def test_unpaired_has_another_prompts_completion_in_slot_1(tmp_path, format_):
    data = dataset(tmp_path, ROWS[format_], format_, "unpaired")
    own = {
        "groups": ["a0", "b0", "c0", "a3", "b3"],  # rows of equal scores say nothing about what is desirable
        "pairs": ["c0", "r0", "c1", "r1", "c2", "r2"],
        "unpaired": ["c0", "c1", "c2"],
    }[format_]
    desirable = {
        "groups": [False, True, False, False, True],
        "pairs": [True, False] * 3,
        "unpaired": [True, False, True],
    }[format_]
    assert [texts(data[i])[0] for i in range(len(data))] == [f"{t}</s>" for t in own]
    assert [bool(data[i].labels["desirable"]) for i in range(len(data))] == desirable
    for i in range(len(data)):
        # the last character of these texts is the number of their prompt
        assert texts(data[i])[1][-5] != texts(data[i])[0][-5]
        assert texts(data[i]) == texts(dataset(tmp_path, ROWS[format_], format_, "unpaired")[i])


def test_unpaired_needs_two_prompts(tmp_path):
    data = dataset(tmp_path, UNPAIRED[:1] * 3, "unpaired", "unpaired")
    with pytest.raises(UserError, match="at least two different prompts"):
        data[0]


OPINIONS = [opinion("p0", 1, 0), opinion("p0", 1, 2), opinion("p0", 0, 1), opinion("p1", 1, 2, group="g")]


def test_gdpo_conditions_both_texts_on_the_accepted_belief(tmp_path):
    data = dataset(tmp_path, OPINIONS, "gdpo", "gdpo")
    assert len(data) == 4 and data.slots == 3 + 2 and data.group_names == ("g",)
    group = data[0]
    assert texts(group) == {0: "0<no>", 1: "1<yes>", 2: "2<maybe>", 3: "1<yes>|good1</s>", 4: "1<yes>|bad0</s>"}
    np.testing.assert_array_equal(group.labels["target_probs"], np.float32([0.25, 0.5, 0.25]))
    assert group.labels["chosen_belief"] == 1
    assert [int(data[i].labels["group_id"]) for i in range(4)] == [-1, -1, -1, 0]


def test_gdpo_kto_adds_the_text_of_another_prompt(tmp_path):
    data = dataset(tmp_path, OPINIONS, "gdpo", "gdpo", preference="kto")
    assert data.slots == 3 + 3
    beliefs = {0: "0<no>", 1: "1<yes>", 2: "2<maybe>"}
    assert texts(data[2]) == {**beliefs, 3: "0<no>|good0</s>", 4: "0<no>|bad1</s>", 5: "0<no>|good1</s>"}
    different = [opinion("p0", accept_response="x"), opinion("p0", accept_response="x"), opinion("p1", accept_response="y")]
    data = dataset(tmp_path, different, "gdpo", "gdpo", preference="kto")
    assert [texts(data[i])[5][-5] for i in range(3)] == ["y", "y", "x"]


def test_gdpo_mpo_takes_the_texts_of_rows_with_the_same_prompt_and_belief(tmp_path):
    data = dataset(tmp_path, OPINIONS, "gdpo", "gdpo", preference="mpo", max_responses=4)
    assert data.slots == 3 + 4
    group = data[0]
    assert list(texts(group).values())[3:] == ["1<yes>|good1</s>"] * 2 + ["1<yes>|bad0</s>", "1<yes>|bad2</s>"]
    assert group.labels["text_scores"].tolist() == [1, 1, 0, 0]
    lonely = data[2]  # the only row of its prompt and belief
    assert list(texts(lonely).values())[3:] == ["0<no>|good0</s>", "0<no>|bad1</s>"]
    assert lonely.labels["text_scores"].tolist() == [1, 0, 0, 0]


def test_options_may_differ_between_prompts(tmp_path):
    two = opinion("p9", options=["no", "yes"], probabilities=[0.1, 0.9])
    data = dataset(tmp_path, [opinion("p0"), two], "gdpo", "gdpo")
    assert sorted(texts(data[1])) == [0, 1, 3, 4] and data[1].slots == data.slots == 5
    np.testing.assert_array_equal(data[1].labels["target_probs"], np.float32([0.1, 0.9, 0]))


def test_missing_probabilities_are_estimated_from_accepted_beliefs_a_prompt_and_group(tmp_path):
    rows = [opinion("p0", a, 2, probabilities=None) for a in (1, 1, 1, 0)]
    rows += [opinion("p0", 0, 2, probabilities=None, group="g"), opinion("p1", 2, 0)]
    data = dataset(tmp_path, rows, "gdpo", "gdpo", belief_prior=0.5)
    np.testing.assert_allclose(data[0].labels["target_probs"], np.array([1.5, 3.5, 0.5]) / 5.5, rtol=1e-6)
    np.testing.assert_allclose(data[4].labels["target_probs"], np.array([1.5, 0.5, 0.5]) / 2.5, rtol=1e-6)
    np.testing.assert_allclose(data[5].labels["target_probs"], [0.25, 0.5, 0.25])


def test_gdpo_rows_serve_other_layouts_with_belief_and_text_as_one_response(tmp_path):
    data = dataset(tmp_path, OPINIONS, "gdpo", "pair")
    assert texts(data[0]) == {0: "1<yes>good1</s>", 1: "0<no>bad0</s>"}
    assert texts(dataset(tmp_path, OPINIONS, "gdpo", "sft")[2]) == {0: "0<no>good0</s>"}


def test_max_responses_keeps_contrast(tmp_path):
    rows = [{"prompt": f"p{i}", "responses": list("abcdef"), "scores": [1, 1, 5, 1, 0, 1]} for i in range(20)]
    data = dataset(tmp_path, rows, "groups", "group", max_responses=4)
    assert data.slots == 4
    kept = [tuple(texts(data[i]).values()) for i in range(20)]
    assert all(len(k) == 4 and "c</s>" in k and "e</s>" in k and list(k) == sorted(k) for k in kept)
    assert all(data[i].labels["scores"].max() == 5 and data[i].labels["scores"].min() == 0 for i in range(20))
    assert len(set(kept)) > 1
    again, other = (dataset(tmp_path, rows, "groups", "group", max_responses=4, seed=s) for s in (0, 1))
    assert kept == [tuple(texts(again[i]).values()) for i in range(20)]
    assert kept != [tuple(texts(other[i]).values()) for i in range(20)]


@pytest.mark.parametrize(
    ("format_", "layout"), [("unpaired", "group"), ("unpaired", "pair"), ("pairs", "gdpo"), ("groups", "gdpo")]
)
def test_formats_that_cannot_serve_an_objective(tmp_path, format_, layout):
    with pytest.raises(UserError, match=f"'{format_}'"):
        dataset(tmp_path, ROWS[format_], format_, layout)


def test_bad_rows_stop_the_run_or_are_listed(tmp_path):
    rows = [GROUPS[0], GROUPS[0] | {"scores": [1]}, GROUPS[3], {"prompt": "x"}]
    with pytest.raises(UserError, match=r"rows.jsonl:2: field 'scores': 1 scores for 3 responses .*on_bad_row"):
        dataset(tmp_path, rows, "groups", "group")
    data = dataset(tmp_path, rows, "groups", "group", on_bad_row="skip")
    assert [prompt(data[i]) for i in range(len(data))] == ["<s>p0", "<s>p3"]
    listed = [(bad["where"][-1], bad["reason"][:15]) for bad in data.bad_rows]
    assert listed == [("2", "field 'scores':"), ("4", "field 'response")]
    assert "2 malformed rows skipped" in data.describe()
    one = dataset(tmp_path, rows[:2], "groups", "group", on_bad_row="skip").describe()
    assert "1 group of up to 3 responses from 2 rows of" in one and "1 malformed row skipped" in one
    with pytest.raises(UserError, match="all 1 rows are malformed"):
        dataset(tmp_path, rows[3:], "groups", "group", on_bad_row="skip")


def test_cuts_are_labels(tmp_path):
    data = dataset(tmp_path, GROUPS, "groups", "group", max_prompt_tokens=2, max_response_tokens=2)
    assert data[0].labels["truncated"].tolist() == [1, 3]
    assert dataset(tmp_path, GROUPS, "groups", "group")[0].labels["truncated"].tolist() == [0, 0]


def test_templates_may_use_group_and_context(tmp_path):
    rows = [opinion("p", group="g", context="c"), opinion("q", group="h", context=None)]
    data = dataset(tmp_path, rows, "gdpo", "sft", prompt_template="{context}/{group}/{prompt}")
    assert [prompt(data[i]) for i in (0, 1)] == ["<s>c/g/p", "<s>/h/q"]
    assert data.group_names == ("g", "h") and [int(data[i].labels["group_id"]) for i in (0, 1)] == [0, 1]
    with pytest.raises(UserError, match="data.prompt_template uses {context}, but no row"):
        dataset(tmp_path, GROUPS, "groups", "group", prompt_template="{context}{prompt}")


def test_the_fingerprint_follows_content_lengths_and_layout_but_not_speed(tmp_path):
    base = dataset(tmp_path, GROUPS, "groups", "group").fingerprint
    assert dataset(tmp_path, GROUPS, "groups", "group", workers=5, pack=False).fingerprint == base
    others = [
        dataset(tmp_path, GROUPS, "groups", "pair").fingerprint,
        dataset(tmp_path, GROUPS, "groups", "group", max_response_tokens=7).fingerprint,
        dataset(tmp_path, GROUPS, "groups", "group", prompt_template="{prompt}?").fingerprint,
        dataset(tmp_path, GROUPS[:3], "groups", "group").fingerprint,
    ]
    assert len({base, *others}) == 5


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"format": "csv"}, "data.format"),
        ({"on_bad_row": "ignore"}, "data.on_bad_row"),
        ({"chat_template": "yes"}, "data.chat_template"),
        ({"truncate_prompt": "middle"}, "data.truncate_prompt"),
        ({"max_rows": 0}, "data.max_rows"),
        ({"max_prompt_tokens": 0}, "data.max_prompt_tokens"),
        ({"max_response_tokens": -1}, "data.max_response_tokens"),
        ({"max_responses": 1}, "data.max_responses"),
        ({"workers": 0}, "data.workers"),
        ({"belief_prior": -0.1}, "data.belief_prior"),
        ({"prompt_template": "{promt}"}, "data.prompt_template: {promt} is unknown"),
        ({"prompt_template": "hello"}, "data.prompt_template: 'hello' does not use {prompt}"),
        ({"prompt_template": "{prompt"}, "data.prompt_template: .* is not a template"),
        ({"belief_template": "same"}, "data.belief_template: .* the same for every belief"),
    ],
)
def test_config_names_the_key(values, message):
    with pytest.raises(UserError, match=message):
        DataConfig(**values)


@pytest.mark.parametrize(
    ("format_", "arrangement", "slots"),
    [
        ("groups", Group(), (3, 2, 1, 2)),
        ("groups", Pair(), (2, 2)),
        ("groups", Unpaired(), (2,) * 5),
        ("groups", Sft(), (1,) * 4),
        ("gdpo", Beliefs(), (5,) * 4),
        ("gdpo", Beliefs("kto"), (6,) * 4),
    ],
)
def test_labels_are_those_that_the_arrangement_says(tmp_path, format_, arrangement, slots):
    layout = next(name for name, cls in ARRANGEMENTS.items() if type(arrangement) is cls)
    more = {"preference": arrangement.preference} if layout == "gdpo" else {}
    rows = [opinion("p0", 1, 0), opinion("p0", 1, 2), opinion("p0", 0, 1), opinion("p1", 1, 2)] if more else GROUPS
    data = dataset(tmp_path, rows, format_, layout, **more)
    assert tuple(data[i].slots for i in range(len(data))) == slots
    for i in range(len(data)):
        made = {name: (value.shape, str(value.dtype)) for name, value in data[i].labels.items()}
        assert made == arrangement.label_shapes(data[i].slots)
        assert set(data[i].per_response) == ({"scores", "characters"} if layout in ("group", "pair") else set())
    assert arrangement.responses in (None, data.slots)


def test_labels_per_response_are_padded_to_k_and_no_other(tmp_path):
    rows = [{"prompt": "p", "responses": list("abcd")[:k], "scores": [1, 2, 3, 4][:k]} for k in (2, 4)]
    data = dataset(tmp_path, rows, "groups", "group")
    batch = pack_groups([data[0]], shards=1, groups_per_shard=1, layout=RowLayout(pack=False), slots=data.slots)
    assert batch.labels["scores"].shape == batch.labels["characters"].shape == batch.mask.shape == (1, 4)
    assert batch.labels["truncated"].shape == (1, 2)  # as long as K here was, and is no axis of responses
    two = pack_groups([data[0]], shards=1, groups_per_shard=1, layout=RowLayout(pack=False))
    assert two.mask.shape == (1, 2)
    grown = pad_to(two, (*sizes(two)[:4], 4))
    assert grown.labels["scores"].tolist() == [[1, 2, 0, 0]] and grown.labels["truncated"].shape == (1, 2)
    assert grown.labels["characters"].shape == grown.mask.shape == (1, 4)


def test_what_fill_forgets_is_said(tmp_path):
    class Forgetful(Pair):
        @property
        def labels(self):
            return {**super().labels, "rank": Label("int32", ("K",))}

    made = DataConfig(train=write_jsonl(tmp_path / "rows.jsonl", PAIRS), format="pairs")
    data = GroupDataset(made, "train", Encoder(TOKENIZER, made), arrangement=Forgetful())
    with pytest.raises(ValueError, match=r"Forgetful.fill gives .* \['characters', 'scores'\], but its `labels` are .*'rank'"):
        data[0]
    assert Forgetful().key() == ("tests.data.test_arrange:test_what_fill_forgets_is_said.<locals>.Forgetful", "dpo")


def test_keys_are_those_of_runs_that_exist():
    made = [Group(), Pair(), Unpaired(), Sft(), Beliefs(), Beliefs("kto")]
    names = ["group", "pair", "unpaired", "sft", "gdpo", "gdpo"]
    assert [a.key() for a in made] == list(zip(names, ["dpo"] * 5 + ["kto"], strict=True))
    with pytest.raises(ValueError, match="'ipo' is not one of dpo, kto, mpo"):
        Beliefs("ipo")


def test_the_fingerprint_of_a_run_that_exists(tmp_path, monkeypatch):
    """Computed before arrangements were objects; checkpoints compare it, so it must stay."""
    monkeypatch.setattr(Encoder, "key", lambda self: "encoder")
    groups = dataset(tmp_path, GROUPS, "groups", "group", seed=3)
    assert groups.fingerprint == "7f9f93da8b4dc4681b892424b05144ee8c212bb15a557297ca56d75877c91b5c"
    gdpo = dataset(tmp_path, OPINIONS, "gdpo", "gdpo", preference="mpo", max_responses=4)
    assert gdpo.fingerprint == "7b3be29ddc905f5ebc27336049c219518e60e5d790c0568f598b901ff0b3665b"


def test_one_text_for_all_responses_is_no_contrast_either(tmp_path):
    rows = [
        {"prompt": "p", "responses": ["a", "a"], "scores": [1, 0]},
        {"prompt": "q", "responses": ["a", "b", "a"], "scores": [3, 2, 1]},  # best and worst say the same
        {"prompt": "r", "responses": ["a", "b"], "scores": [1, 0]},
    ]
    pairs = dataset(tmp_path, rows, "groups", "pair")
    assert len(pairs) == 1 and "2 rows without two different scores and texts dropped" in pairs.describe()
    groups = dataset(tmp_path, rows, "groups", "group")
    assert len(groups) == 3 and "1 of the groups have one score or one text for all responses" in groups.describe()
    assert len(dataset(tmp_path, rows, "groups", "unpaired")) == 3 + 2
