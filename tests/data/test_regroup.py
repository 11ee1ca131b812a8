"""Rows of one layout as rows of another."""

from __future__ import annotations

import pytest

from align_jax.data import DataConfig
from align_jax.data.formats import Example, Opinion, find_format
from align_jax.data.opened import open_data
from align_jax.data.regroup import TARGETS, ConversionCounts, held_out, joined, rows_as, usual_target
from align_jax.errors import UserError
from tests.data.toys import write_jsonl

CALL = {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {}}}]}
TALK = ({"role": "user", "content": "u"},)
GROUP = Example("p", ("a", "b", "c"), (1.0, 3.0, 2.0), group="g", context="c")
EXAMPLES = {
    "groups": GROUP,
    "talk": Example(TALK, ((CALL,), ({"role": "assistant", "content": "x"},)), (1.0, 0.0), tools=({"name": "f"},)),
    "samples": Example("p", ("a", "b"), (1.0, 2.0), tokens=((3, 2), (4, 5, 2))),
    "gdpo": Example("p", ("a", "b"), (1.0, 0.0), opinion=Opinion(("no", "yes"), (0.25, 0.75), 1, 0)),
    "completions": Example(TALK, ((CALL,),), tools=({"name": "f"},)),
    "prompts": Example("p", (), documents=({"title": "t", "text": "x"},)),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_what_is_written_is_read_again(name):
    example = EXAMPLES[name]
    to = usual_target([example])
    assert to == ("groups" if name == "talk" else name)
    (row,) = rows_as(to, [example], ConversionCounts())
    again = find_format(to).read(row)
    assert again == example


def _pair(prompt, chosen, rejected, **more):
    return Example(prompt, (chosen, rejected), (1.0, 0.0), **more)


def test_pairs_of_a_prompt_become_a_group_with_the_share_that_each_won():
    counts = ConversionCounts()
    pairs = [_pair("p", "a", "b"), _pair("q", "a", "b"), _pair("p", "a", "c"), _pair("p", "c", "b"), _pair("p", "b", "a")]
    first, second = joined(pairs, counts)
    assert first.responses == ("a", "b", "c") and first.scores == (2 / 3, 1 / 3, 1 / 2)
    assert second == pairs[1]
    assert (counts.joined, counts.repeated, counts.disagreeing) == (4, 3, 3)
    assert "4 of them joined" in counts.describe()[0] and counts.describe()[1].endswith("3 had different ones")


def test_only_rows_of_the_same_prompt_group_context_and_tools_are_joined():
    tools = ({"name": "f"},)
    pairs = [
        _pair("p", "a", "b"),
        _pair("p", "c", "d", group="g"),
        _pair("p", "e", "f", context="c"),
        _pair("p", "g", "h", tools=tools),
    ]
    assert joined(pairs, ConversionCounts()) == pairs


def test_scores_of_groups_are_averaged_and_labels_become_scores():
    counts = ConversionCounts()
    (one,) = joined([Example("p", ("a", "b"), (4.0, 1.0)), Example("p", ("a",), (2.0,))], counts)
    assert one.responses == ("a", "b") and one.scores == (3.0, 1.0) and counts.disagreeing == 1
    (one,) = joined([Example("p", ("a",), desirable=True), Example("p", ("b",), desirable=False)], counts)
    assert one.scores == (1.0, 0.0) and one.desirable is None


def test_tokens_stay_where_all_have_them():
    sampled = Example("p", ("a",), (1.0,), tokens=((3, 2),))
    (one,) = joined([sampled, Example("p", ("b",), (0.0,), tokens=((4, 2),))], ConversionCounts())
    assert one.tokens == ((3, 2), (4, 2))
    (one,) = joined([sampled, Example("p", ("b",), (0.0,))], ConversionCounts())
    assert one.tokens is None


def test_groups_taken_apart():
    counts = ConversionCounts()
    level = Example("q", ("a", "b"), (1.0, 1.0))
    assert rows_as("pairs", [GROUP, level], counts) == [
        {"prompt": "p", "group": "g", "context": "c", "chosen": "b", "rejected": "a"}
    ]
    assert counts.dropped == {"no two responses with different scores": 1} and counts.groups == 1
    rows = rows_as("unpaired", [GROUP, level, Example("r", ("x",), desirable=False)], counts)
    assert [(row["completion"], row["label"]) for row in rows] == [("a", False), ("b", True), ("c", False), ("x", False)]
    desirable = [Example("r", ("x",), desirable=False), Example("s", ("y",), desirable=True), GROUP]
    assert [row["completion"] for row in rows_as("completions", desirable, counts)] == ["y", "b"]
    assert counts.dropped["not desirable"] == 1
    assert rows_as("prompts", [level, level], counts) == [{"prompt": "q"}]


def test_what_cannot_be_written():
    counts = ConversionCounts()
    assert rows_as("groups", [Example("p", ("a",)), Example("p", ())], counts) == []
    assert counts.dropped == {"no scores; --reward-model adds them": 1, "no responses": 1}
    for to in ("samples", "gdpo"):
        with pytest.raises(UserError, match=f"--to {to}"):
            rows_as(to, [GROUP], counts)
    with pytest.raises(UserError, match="rows with beliefs stay as they are"):
        joined([EXAMPLES["gdpo"]], counts)
    assert set(TARGETS) == {"groups", "pairs", "unpaired", "completions", "samples", "prompts", "gdpo"}


def test_a_split_holds_out_prompts_whatever_their_groups():
    examples = [Example(f"p{p}", ("a",), (1.0,), group=group) for p in range(10) for group in "abcd"]
    out = {e.prompt for e, is_out in zip(examples, held_out(examples, 0.2), strict=True) if is_out}
    assert len(out) == 2 and sum(held_out(examples, 0.2)) == 8


@pytest.mark.parametrize("fraction", [0.05, 0.3, 0.9])
def test_the_held_out_prompts_are_those_of_a_fraction_in_a_config(tmp_path, fraction):
    rows = [{"prompt": f"p{i % 20}", "chosen": f"x{i}", "rejected": "y"} for i in range(40)]
    config = DataConfig(train=write_jsonl(tmp_path / "r.jsonl", rows), eval=fraction)
    source, data_format, _ = open_data(config, "eval", None)
    wanted = {data_format.read(source[i]).prompt for i in range(len(source))}
    examples = joined([_pair(row["prompt"], row["chosen"], row["rejected"]) for row in rows], ConversionCounts())
    assert {e.prompt for e, out in zip(examples, held_out(examples, fraction), strict=True) if out} == wanted
    with pytest.raises(UserError, match="1 different prompts"):
        held_out(examples[:1], 0.5)
