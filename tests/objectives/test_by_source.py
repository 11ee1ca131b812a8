"""Metrics of each data set of a mixture are those of its groups alone, and the loss is that of all."""

from __future__ import annotations

import numpy as np
import pytest

from align_jax.batch import GroupLabels
from align_jax.objectives import DPO, KTO, Objective
from align_jax.objectives.by_source import BySource, told_apart
from align_jax.training.step import group_metrics

RNG = np.random.default_rng(0)


def labels(rows, ids, **more):
    mask = np.ones((len(ids), 2), bool)
    ref, logps = RNG.normal(-20, 3, (2, 8, 2)).astype(np.float32)
    labels = {"ref_logps": ref[rows], "source_id": np.asarray(ids), **more}
    return logps[rows], GroupLabels(mask, np.full(mask.shape, 3), labels)


def mean(entry):
    return float(np.sum(entry[0]) / np.sum(entry[1]))


def test_every_data_set_has_the_metrics_of_its_groups():
    ids = np.asarray([0, 2, 0, 0, 2, 2, 2, 0])
    logps, batch = labels(slice(None), ids)
    found = group_metrics(logps, batch, BySource(DPO(), ("a", "b", "c")))
    plain = group_metrics(logps, batch, DPO())
    assert all(np.array_equal(found[name][i], plain[name][i]) for name in plain for i in (0, 1))
    for number, source in ((0, "a"), (2, "c")):
        own = ids == number
        part = GroupLabels(batch.mask[own], batch.lengths[own], {k: v[own] for k, v in batch.labels.items()})
        alone = group_metrics(logps[own], part, DPO())
        for name in ("loss", "rewards/accuracies", "rewards/margins"):
            assert mean(found[f"source/{source}/{name}"]) == pytest.approx(mean(alone[name]), rel=1e-6)
    assert float(np.sum(found["source/b/loss"][1])) == 0


def test_what_others_ask_an_objective_is_answered_by_the_one_inside():
    inner = KTO()
    outer = told_apart(inner, ("a", "b"))
    assert (outer.arrangement, outer.head, outer.needs_reference) == (inner.arrangement, inner.head, inner.needs_reference)
    logps, batch = labels(slice(None), [0] * 8, desirable=np.ones(8, bool))
    np.testing.assert_array_equal(outer.statistics(logps, batch), inner.statistics(logps, batch))
    assert told_apart(inner, ()) is inner and isinstance(outer, Objective)
