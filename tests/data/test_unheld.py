"""What a format does not hold is said with its count."""

from __future__ import annotations

import pytest

from align_jax.data.formats import Example, Opinion
from align_jax.data.regroup import ConversionCounts, rows_as, usual_target
from align_jax.data.unheld import unheld
from align_jax.errors import UserError

PAIR = Example("p", ("a", "b"), (1.0, 0.0))
SCORED = Example("p", ("a", "b"), (9.5, 3.25))
GROUP = Example("p", ("a", "b", "c", "d"), (1.0, 3.0, 2.0, 0.0))
LABELLED = Example("p", ("a",), desirable=True)
COMPLETION = Example("p", ("a",))
SAMPLED = Example("p", ("a", "b"), (1.0, 0.0), tokens=((3, 2), (4, 2)))
BELIEF = Example("p", ("a", "b"), (1.0, 0.0), opinion=Opinion(("no", "yes"), (0.25, 0.75), 1, 0))


@pytest.mark.parametrize(
    ("to", "examples", "said"),
    [
        ("groups", [PAIR, SCORED, GROUP, LABELLED], []),
        ("pairs", [PAIR], []),
        ("pairs", [PAIR, SCORED], ["scores or labels of 1 row "]),
        (
            "pairs",
            [GROUP, GROUP, SCORED],
            ["scores or labels of 3 rows ", "4 responses of 2 rows are left out; the best and the"],
        ),
        ("pairs", [LABELLED], []),  # becomes no row, which is counted as that
        ("unpaired", [PAIR, LABELLED], []),
        ("unpaired", [SCORED, GROUP], ["scores or labels of 2 rows "]),
        ("completions", [COMPLETION], []),
        ("completions", [Example("p", ("a", "b"))], []),
        ("completions", [PAIR, LABELLED], ["scores or labels of 2 rows ", "1 response of 1 row is left out"]),
        ("prompts", [GROUP, COMPLETION], ["scores or labels of 1 row ", "5 responses of 2 rows are left out"]),
        ("groups", [SAMPLED, PAIR], ["sampled are left out of 1 row;"]),
        ("samples", [SAMPLED], []),
        ("gdpo", [BELIEF], []),
        ("pairs", [BELIEF, PAIR], ["beliefs and their probabilities of 1 row "]),
    ],
)
def test_each_loss_is_counted(to, examples, said):
    lines = unheld(to, examples)
    assert len(lines) == len(said) and all(line.startswith(f"--to {to}: ") for line in lines)
    assert all(part in line for part, line in zip(said, lines, strict=True)), lines


@pytest.mark.parametrize(
    "examples", [[PAIR, SCORED, GROUP, LABELLED], [COMPLETION, Example("q", ("a", "b"))], [SAMPLED], [BELIEF]]
)
def test_the_usual_format_loses_nothing(examples):
    to, counts = usual_target(examples), ConversionCounts()
    assert unheld(to, examples) == [] and rows_as(to, examples, counts) and not counts.dropped


@pytest.mark.parametrize(
    "others", [[PAIR, GROUP], [LABELLED, PAIR], [BELIEF, BELIEF], [SAMPLED, SAMPLED], [Example("p", ())] * 2]
)
def test_where_no_format_holds_all_one_has_to_be_named(others):
    for examples in ([COMPLETION, *others], [*others, COMPLETION]):
        with pytest.raises(UserError, match=r"(2 rows).*completions \(1 row\).*--to"):
            usual_target(examples)
