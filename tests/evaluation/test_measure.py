"""What a format's data are evaluated as, and what objectives see of scored responses."""

from __future__ import annotations

import numpy as np
import pytest

from align_jax.batch import GroupLabels
from align_jax.data.formats import FORMATS
from align_jax.errors import UserError
from align_jax.evaluation import Responses
from align_jax.evaluation.measure import evaluated_as, measure
from align_jax.evaluation.table import table_of
from align_jax.objectives import DPO, GDPO, KTO, MPO, NCA, SFT, Reward


@pytest.mark.parametrize(
    ("trained", "data_format", "expected"),
    [
        (None, "groups", MPO(beta=0.1)),
        (MPO(beta=0.3, alpha=2.0), "samples", MPO(beta=0.3, alpha=2.0)),  # what is trained, with all its options
        (NCA(beta=0.3), "ultrafeedback", MPO(beta=0.3)),
        (MPO(beta=0.3), "pairs", DPO(beta=0.3)),
        (SFT(), "unpaired", KTO(beta=0.1)),
        (GDPO(preference="kto"), "gdpo", GDPO(preference="kto")),
        (DPO(beta=0.5), "gdpo", GDPO(beta=0.5)),
        (Reward(center=0.1), "pairs", Reward(center=0.1)),
    ],
)
def test_what_data_are_evaluated_as(trained, data_format, expected):
    assert evaluated_as(trained, data_format) == expected


def test_every_format_with_responses_is_evaluated_as_an_objective():
    found = {name: type(evaluated_as(None, name)).name for name, one in FORMATS.items() if one.responses != 0}
    assert found == {name: one.evaluated_as for name, one in FORMATS.items() if one.responses != 0} and len(found) >= 6
    with pytest.raises(UserError, match="data.format 'prompts' has no responses to evaluate on"):
        evaluated_as(MPO(), "prompts")


class OnlyMine(type(FORMATS["pairs"])):
    """Data that nothing but the objective that is trained can read."""

    evaluated_as = None


class AsSFT(OnlyMine):
    evaluated_as = "sft"


def test_a_format_may_leave_it_to_what_is_trained():
    assert evaluated_as(DPO(beta=0.7), f"{__name__}:OnlyMine") == DPO(beta=0.7)
    assert evaluated_as(DPO(beta=0.7), f"{__name__}:AsSFT") == SFT()  # which has no beta
    with pytest.raises(UserError, match="OnlyMine' is evaluated as what is trained on it; give the objective section"):
        evaluated_as(None, f"{__name__}:OnlyMine")


def test_objectives_see_labels_and_no_tokens():
    rng = np.random.default_rng(0)
    logps, ref = rng.normal(-9, 2, (2, 4, 3)).astype(np.float32)
    mask = np.array([[1, 1, 1], [1, 1, 0], [1, 1, 1], [1, 0, 0]], bool)
    labels = {"scores": rng.normal(size=(4, 3)).astype(np.float32), "ref_logps": ref}
    responses = Responses(np.arange(4), np.where(mask, logps, 0), mask, np.full((4, 3), 5), labels)
    seen = responses.group_labels
    assert isinstance(seen, GroupLabels) and seen.scores is labels["scores"] and not hasattr(seen, "tokens")
    direct = MPO()(responses.logps, GroupLabels(mask, responses.lengths, labels))
    means = measure(responses, MPO(), np.arange(4)).means()
    assert direct.keys() - means.keys() == {"loss/squared"}
    for name, (total, weight) in ((name, direct[name]) for name in means if name in direct):
        assert means[name] == pytest.approx(float(total.sum() / weight.sum()), rel=1e-6), name


def test_metrics_of_each_data_set_stand_beside_those_of_groups_of_people():
    metrics = {"rewards/accuracies": (np.asarray([1.0, 0, 1, 1]), np.ones(4)), "kl/reference": (np.ones(4), np.ones(4))}
    groups, sources = np.asarray([0, 1, 0, 1]), np.asarray([0, 0, 0, 1])
    table = table_of(metrics, np.arange(4), groups, ("g", "h"), source_ids=sources, source_names=("x", "y"))
    means = table.means()
    assert means["source/x/rewards/accuracies"] == pytest.approx(2 / 3) and means["source/y/rewards/accuracies"] == 1
    assert means["rewards/accuracies/worst_group"] == 0.5 and "source/x/kl/reference" not in means
