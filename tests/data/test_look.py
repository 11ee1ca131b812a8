"""Every row is read once before the first group is made, and what the evaluation needs to know of it is kept."""

from __future__ import annotations

import collections
import dataclasses

import numpy as np
import pytest

from align_jax.data import BatchLoader, DataConfig, Encoder, GroupDataset, RowLayout, opened, prompts
from align_jax.data.arrange import Beliefs, Group, Pair, Sft, Unpaired
from align_jax.data.encode import plain_key
from align_jax.data.look import Look
from align_jax.errors import UserError
from tests.data.toys import char_tokenizer, opinion, write_jsonl

TOKENIZER = char_tokenizer()
GROUPS = [{"prompt": f"p{i % 7}", "responses": ["a", "bb", "c"], "scores": [0, i % 3, 1]} for i in range(40)]
OPINIONS = [opinion(f"p{i % 7}", i % 3, (i + 1) % 3, probabilities=None) for i in range(40)]


@pytest.fixture
def reads(monkeypatch):
    """How often each row of every source that is opened is read."""
    counts = collections.Counter()

    def counting(open_source):
        def wrapped(*args, **kwargs):
            source = open_source(*args, **kwargs)
            kind = type(source)

            class Counted(kind):
                def __getitem__(self, index):
                    counts[index] += 1
                    return kind.__getitem__(self, index)

            source.__class__ = Counted
            return source

        return wrapped

    monkeypatch.setattr(opened, "open_source", counting(opened.open_source))
    return counts


CASES = [
    ("groups", GROUPS, Group()),
    ("groups", GROUPS, Pair()),
    ("groups", GROUPS, Unpaired()),
    ("groups", GROUPS, Sft()),
    ("gdpo", OPINIONS, Beliefs()),
    ("gdpo", OPINIONS, Beliefs("kto")),
    ("gdpo", OPINIONS, Beliefs("mpo")),
]


@pytest.mark.parametrize("format_, rows, arrangement", CASES, ids=lambda x: type(x).__name__ if not isinstance(x, str) else x)
def test_rows_are_read_once_before_the_first_group(tmp_path, reads, format_, rows, arrangement):
    config = DataConfig(train=write_jsonl(tmp_path / "rows.jsonl", rows), format=format_, prompt_template="Q: {prompt}")
    data = GroupDataset(config, "train", Encoder(TOKENIZER, config), arrangement=arrangement)
    assert dict(reads) == dict.fromkeys(range(len(rows)), 1)
    reads.clear()
    loader = BatchLoader(data, shards=1, groups_per_step=2, layout=RowLayout(pack=False), workers=1, prefetch=1)
    assert not reads and len(data.prompt_ids) == len(data.unit_ids) == len(data)
    next(loader)
    # made ahead: a few batches of two groups, each of at most two rows (with those of a set, eight)
    assert 0 < sum(reads.values()) <= 2 * 4 * (9 if arrangement == Beliefs("mpo") else 2)


def test_prompts_are_read_once(tmp_path, reads):
    path = write_jsonl(tmp_path / "rows.jsonl", [*GROUPS, {"prompt": "p1"}])
    found, bad, _ = prompts.distinct_prompts(DataConfig(train=path, format="groups", on_bad_row="skip"), "train", tmp_path)
    assert dict(reads) == dict.fromkeys(range(41), 1)
    assert [row["prompt"] for row in found] == [f"p{i}" for i in range(7)] and len(bad) == 1


def test_malformed_rows_are_read_once_too(tmp_path, reads):
    path = write_jsonl(tmp_path / "rows.jsonl", [GROUPS[0], {"prompt": "x"}, GROUPS[1]])
    config = DataConfig(train=path, format="groups", on_bad_row="skip")
    data = GroupDataset(config, "train", Encoder(TOKENIZER, config), arrangement=Group())
    assert dict(reads) == {0: 1, 1: 1, 2: 1} and len(data) == 2 and len(data.bad_rows) == 1


def test_a_format_that_cannot_serve_is_refused_before_any_row_is_read(tmp_path, reads):
    config = DataConfig(train=write_jsonl(tmp_path / "rows.jsonl", [{"prompt": "p"}]), format="prompts")
    with pytest.raises(UserError, match="data.format 'prompts' has no responses"):
        GroupDataset(config, "train", Encoder(TOKENIZER, config), arrangement=Group())
    assert not reads


def test_prompts_and_units_are_numbered_by_what_they_are(tmp_path):
    columns = [("b", "", ""), ("a", "", ""), ("b", "g", ""), ("b", "", "c"), ("a", "", ""), ("é", "", "")]
    rows = [{**GROUPS[0], "prompt": p, "group": group, "context": context} for p, group, context in columns]
    rows[1:1] = [{**GROUPS[0], "prompt": "A", "scores": [1, 1, 1]}]  # dropped by pairs: its prompt has no number
    config = DataConfig(train=write_jsonl(tmp_path / "rows.jsonl", rows), format="groups")
    data = GroupDataset(config, "train", Encoder(TOKENIZER, config), arrangement=Pair())
    examples = [data.example_of(i) for i in range(len(data))]
    assert len(data) == 6
    # in the order of the texts, as numpy sorts them: the bootstrap's draws depend on it
    texts = [repr((e.prompt, e.context)) for e in examples]
    np.testing.assert_array_equal(data.prompt_ids, np.unique(texts, return_inverse=True)[1])
    keys = [plain_key(e) for e in examples]
    assert [[a == b for b in keys] for a in keys] == (data.unit_ids[:, None] == data.unit_ids).tolist()


def test_a_look_keeps_no_example():
    look, seen = Look(), []

    class Example:
        prompt, group, context, opinion, tools, documents = "p", "", "", None, None, None
        responses, source, left_out = (), "", 0

        def __del__(self):
            seen.append("gone")

    for _ in look.at((i, Example()) for i in range(3)):
        pass
    del _
    assert seen == ["gone"] * 3 and look.rows == [0, 1, 2]


def test_what_is_cut_is_said_of_a_sample_before_a_step(tmp_path):
    rows = [{"prompt": "p" * 9, "responses": ["a" * n, "b"], "scores": [1, 0]} for n in (2, 30, 40)]
    config = DataConfig(train=write_jsonl(tmp_path / "rows.jsonl", rows), max_response_tokens=8)
    data = GroupDataset(config, "train", Encoder(char_tokenizer(), config), arrangement=Group())
    assert data.cut == "of all 3 groups 2 with a response that is cut to 8 tokens (data.max_response_tokens)"
    config = dataclasses.replace(config, max_prompt_tokens=4)
    both = GroupDataset(config, "train", Encoder(char_tokenizer(), config), arrangement=Group())
    assert both.cut.startswith("of all 3 groups 3 with a prompt that is cut to 4 tokens (data.max_prompt_tokens) and 2 with")
    config = dataclasses.replace(config, max_prompt_tokens=64, max_response_tokens=64)
    assert GroupDataset(config, "train", Encoder(char_tokenizer(), config), arrangement=Group()).cut == ""


@pytest.mark.parametrize(
    ("probabilities", "target", "said"),
    [
        ([None] * 3, "auto", "no row has `probabilities`: p* is estimated from the beliefs that rows accept, 1.5 rows"),
        ([None, [0.5, 0.3, 0.2], [0.5, 0.3, 0.2]], "auto", "1 row has no `probabilities`: p* is estimated from the beliefs"),
        ([[0.5, 0.3, 0.2]] * 3, "estimate", "p* is estimated from the beliefs that rows accept, 1.5 rows a prompt (median)"),
        ([[0.5, 0.3, 0.2]] * 3, "auto", ""),
    ],
)
def test_an_estimated_distribution_is_said_to_be_one(tmp_path, probabilities, target, said):
    rows = [opinion("ppq"[i], i, (i + 1) % 3, probabilities=p) for i, p in enumerate(probabilities)]
    config = DataConfig(train=write_jsonl(tmp_path / "rows.jsonl", rows), target=target)
    notes = GroupDataset(config, "train", Encoder(TOKENIZER, config), arrangement=Beliefs()).notes
    estimated = [note for note in notes if "estimated" in note]
    assert len(estimated) == bool(said) and all(note.startswith(said) for note in estimated)
