"""Rows that are given in Python: what is taken, and what is refused with what to give instead."""

from __future__ import annotations

import datetime

import datasets
import numpy as np
import pandas
import pytest

from align_jax.config import Config
from align_jax.data import open_source
from align_jax.data.sources import given_rows
from align_jax.errors import UserError

ROWS = [{"prompt": f"p{i}", "chosen": "a", "rejected": "b"} for i in range(3)]


def rows_of(given, **part):
    source = open_source(given_rows(given, "data.train"), **part)
    return [source[i] for i in range(len(source))]


def test_lists_tuples_and_data_sets_are_taken():
    assert rows_of(ROWS) == rows_of(tuple(ROWS)) == rows_of(datasets.Dataset.from_list(ROWS)) == ROWS
    assert rows_of(ROWS, max_rows=2) == ROWS[:2]
    assert rows_of(datasets.Dataset.from_list(ROWS).with_format("numpy")) == ROWS


def test_values_of_numpy_and_times_become_plain():
    row = {"scores": np.array([1.5, 2]), "label": np.bool_(True), "n": np.int64(3), "at": datetime.datetime(2024, 1, 2)}
    assert rows_of([row]) == [{"scores": [1.5, 2.0], "label": True, "n": 3, "at": "2024-01-02T00:00:00"}]
    assert rows_of([{"x": np.float32(0.5), "t": pandas.Timestamp("2024-01-02"), "no": pandas.NaT}]) == [
        {"x": 0.5, "t": "2024-01-02T00:00:00", "no": None}
    ]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"train": ROWS, "test": ROWS}, r"data.train: a dict with train, test; give one of these, as in rows\['train'\]"),
        (datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)}), "a DatasetDict with train; give one of these"),
        (datasets.Dataset.from_list(ROWS).to_iterable_dataset(), "IterableDataset is read once; give its hub id"),
        (pandas.DataFrame(ROWS), r"got DataFrame; a table's rows are its to_dict\('records'\)"),
        ([1, 2], "expected a path, a list of dicts"),
        ([{"a": object()}], "plain values .* a value of type builtins.object"),
    ],
)
def test_what_cannot_be_given_says_what_can(rows, message):
    with pytest.raises(UserError, match=message):
        given_rows(rows, "data.train")
    with pytest.raises(UserError, match=message):
        Config.of({"data": {"train": rows}})


def test_rows_have_no_splits():
    with pytest.raises(UserError, match="data.split: 'dev' was asked for, but python-rows-.* has no splits"):
        rows_of(ROWS, split="dev")
    with pytest.raises(UserError, match="data.subset: 'en' was asked for"):
        rows_of(ROWS, subset="en")
