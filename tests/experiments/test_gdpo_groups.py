"""What is concluded of several groups, on made-up measurements; and the mixtures' targets."""

import numpy as np
import pytest

from align_jax.experiments.gdpo import groups
from tests.experiments.made_up import judged, measurements

pytest.importorskip("matplotlib")


@pytest.mark.parametrize(
    "own, mixture, seeds, word",
    [
        (0.02, 0.02, 3, "holds"),
        (0.2, 0.02, 3, "fails"),  # groups are not told apart
        (0.02, 0.2, 3, "fails"),
        (0.045, 0.02, 3, "unclear"),
        (0.02, 0.02, 1, "unclear"),
    ],
)
def test_groups_and_their_unseen_mixture_decide(own, mixture, seeds, word):
    def values(cell):
        distance = (own + 0.005 * cell.settings["seed"]) if cell.settings["arm"] == groups.DECIDES else 0.4
        return {"named": [distance, 0.3, 0.3, distance], "mixed": [distance, mixture, mixture, distance]}

    assert judged(groups.EXPERIMENT, measurements(groups.EXPERIMENT, values, seeds), seeds) == word


def test_mixing_must_be_nearer_than_one_answer_to_all():
    def values(cell):
        near = 0.03 if cell.settings["arm"] == groups.DECIDES else 0.02
        return {"named": [0.03, 0.02, 0.02, 0.03], "mixed": [0.03, near, near, 0.03]}

    assert judged(groups.EXPERIMENT, measurements(groups.EXPERIMENT, values)) == "fails"


def test_the_best_without_a_group_is_half_of_both():
    near = [groups.survey.distance((a, 0.5 - a, 0.5 - a, a), own) for a in (0.3, 0.4) for own in groups.OWN.values()]
    assert groups.without_group() == pytest.approx(0.394, abs=5e-4) and groups.without_group() < np.mean(near)


@pytest.mark.parametrize("parts", range(groups.PARTS + 1))
def test_a_mixture_is_the_weighted_sum_of_its_groups(parts):
    other, one, both = (groups.topics(5, n) for n in (0, groups.PARTS, parts))
    for a, b, mixed in zip(one, other, both, strict=True):
        assert a.name == b.name == mixed.name
        expected = (parts * np.asarray(a.probs) + (3 - parts) * np.asarray(b.probs)) / 3
        np.testing.assert_allclose(mixed.probs, expected)
        assert sum(mixed.probs) == pytest.approx(1)
        assert mixed.group == f"city {parts} street {3 - parts}"
        assert np.argmax(a.probs) == np.argmin(b.probs)  # opposed


def test_names_of_audiences_are_words_of_the_world(tmp_path):
    from transformers import AutoTokenizer

    from align_jax.experiments import opinions

    opinions.write_tokenizer(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    for parts in range(groups.PARTS + 1):
        text = groups.TEMPLATE.format(group=groups.audience(parts), prompt="what do people here think about zoo visits ?")
        assert tokenizer.unk_token_id not in tokenizer(text)["input_ids"]
