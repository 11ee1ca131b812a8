"""Labelled answers as rows of format gdpo: what is set against what, and the distribution of each prompt."""

from __future__ import annotations

import numpy as np
import pytest

from align_jax.data import DataConfig
from align_jax.data.formats.example import Example, Opinion
from align_jax.data.formats.gdpo import BeliefRows
from align_jax.data.stances import Stance, accepted_answers, opinion_rows
from align_jax.data.targets import posterior

OPTIONS = ("no", "yes", "maybe")


@pytest.mark.parametrize(
    ("example", "accepted"),
    [
        (Example("p", ("a", "b"), (1.0, 0.0), opinion=Opinion(OPTIONS, None, 0, 1)), [True, False]),
        (Example("p", ("a", "b", "c"), (1.0, 5.0, 4.0)), [False, True, True]),
        (Example("p", ("a", "b"), (2.0, 2.0)), [True, True]),
        (Example("p", ("a",), desirable=False), [False]),
        (Example("p", ("a",)), [True]),
    ],
)
def test_which_answers_people_agree_with(example, accepted):
    assert accepted_answers(example) == accepted


def made(examples, labels, **config):
    """Rows of answers labelled `(belief, sure)`; None is not labelled."""
    stances = []
    for i, (example, beliefs) in enumerate(zip(examples, labels, strict=True)):
        for k, label in enumerate(beliefs):
            if label is not None:
                belief, sure = label
                values = np.full(3, (1 - sure) / 2)
                values[belief] = sure
                stances.append(Stance(i, k, accepted_answers(example)[k], values))
    return opinion_rows(examples, [OPTIONS] * len(examples), stances, DataConfig(**config))


def test_an_answer_is_set_against_one_of_another_belief():
    examples = [
        Example("p", ("a0", "a1", "a2"), (9.0, 1.0, 2.0)),  # its own row has a rejected one of another belief
        Example("p", ("b0", "b1"), (1.0, 0.0)),  # its own has the same: another answer to the prompt
        Example("q", ("c0", "c1"), (1.0, 0.0), group="g"),  # nobody answers otherwise: the rejected one of the row
        Example("r", ("d0",)),  # nothing at all
        Example("p", ("e0",)),  # people's answers, without rejected ones
    ]
    labels = [[(0, 0.9), (0, 0.8), (1, 0.7)], [(1, 0.6), (1, 0.9)], [(2, 0.9), (2, 0.9)], [(0, 0.9)], [(1, 1.0)]]
    rows, notes, alone = made(examples, labels)
    against = [(row["accept_response"], row["reject_response"]) for row in rows]
    assert against == [("a0", "a2"), ("b0", "a0"), ("c0", "c1"), ("e0", "a1")]  # the others in turn
    assert notes == [
        "1 row is set against a rejected answer of the same belief: no other answer to the prompt has another belief"
    ]
    assert alone == 1 and [row.get("group") for row in rows] == [None, None, "g", None]
    assert rows[0]["accept_choice"] == "no" and rows[0]["reject_choice_id"] == 1
    assert rows[1]["belief_posterior"] == pytest.approx([0.2, 0.6, 0.2])


def test_an_answer_is_never_set_against_its_own_text():
    same, other = Example("p", ("a", "a"), (1.0, 0.0)), Example("q", ("a", "a", "b"), (1.0, 0.0, 0.0))
    rows, notes, alone = made([same, other], [[(0, 0.9)] * 2, [(0, 0.9)] * 3])
    assert alone == 1 and [(row["accept_response"], row["reject_response"]) for row in rows] == [("a", "b")]
    assert notes[0].startswith("1 row is set against")


def test_the_distribution_counts_accepted_answers_by_their_posterior():
    examples = [
        Example("p", ("a", "b"), (1.0, 0.0)),
        Example("p", ("c", "d"), (1.0, 0.0)),
        Example("q", ("e", "f"), (1.0, 0.0)),
    ]
    labels = [[(0, 0.8), (1, 1.0)], [(1, 0.6), (0, 1.0)], [(2, 1.0), (0, 1.0)]]
    rows, _, _ = made(examples, labels, belief_prior=0.5)
    known = posterior(np.array([0.8 + 0.2, 0.1 + 0.6, 0.1 + 0.2]), 0.5)
    for row in rows[:2]:
        np.testing.assert_allclose(row["probabilities"], known.mean, atol=1e-6)
        np.testing.assert_allclose((row["probabilities_low"], row["probabilities_high"]), known.interval(), atol=1e-6)
        assert row["answers"] == 2
    assert rows[2]["answers"] == 1 and rows[2]["probabilities"] == pytest.approx([0.2, 0.2, 0.6])
    read = BeliefRows().read(rows[0])
    assert (read.opinion.accepted, read.opinion.rejected, read.opinion.answers) == (0, 1, 2)
    shrunk, notes, _ = made(examples, labels, target_shrink="overall")
    assert "p* of 2 prompts (no, yes, maybe) is shrunk" in notes[0] and shrunk[2]["probabilities"] != rows[2]["probabilities"]
