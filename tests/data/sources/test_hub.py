"""Data sets of the hub: what is handed to its client, streamed rows, and errors that say what to choose."""

from __future__ import annotations

import datetime
import json

import datasets
import pytest

from align_jax import network
from align_jax.data import open_source
from align_jax.errors import UserError

ROWS = [{"prompt": f"p{i}", "n": i} for i in range(7)]


@pytest.fixture
def calls(monkeypatch):
    """What the client was called with; it has ROWS."""
    made = []

    def load(path, name=None, *, split, streaming=False, revision=None):
        made.append((path, name, split, streaming, revision))
        table = datasets.Dataset.from_list([row | {"subset": name, "revision": revision} for row in ROWS])
        return table.to_iterable_dataset() if streaming else table

    monkeypatch.setattr(datasets, "load_dataset", load)
    return made


def rows_of(source):
    return [source[i] for i in range(len(source))]


def test_a_hub_id_loads_with_split_subset_and_revision(calls):
    assert [row["n"] for row in rows_of(open_source("some/data"))] == list(range(7))
    source = open_source("some/data", which="eval", subset="en", revision="v1.0", max_rows=2)
    assert rows_of(source) == [row | {"subset": "en", "revision": "v1.0"} for row in ROWS[:2]]
    assert source.where(1) == "some/data (en, test, v1.0) row 1"
    assert calls == [("some/data", None, "train", False, None), ("some/data", "en", "test", False, "v1.0")]


def test_streamed_rows_are_kept_by_all_that_chooses_them(calls, tmp_path):
    def streamed(**more):
        source = open_source("some/data", streaming=True, spool_dir=tmp_path, **more)
        assert source.notes == ()
        return rows_of(source)

    assert [row["n"] for row in streamed(max_rows=4)] == [0, 1, 2, 3]
    assert len(streamed(max_rows=2)) == 2  # not the four kept before
    assert len(streamed()) == 7
    assert streamed(subset="en")[0]["subset"] == "en"
    assert streamed(subset="de")[0]["subset"] == "de"
    assert streamed(revision="refs/pr/1")[0]["revision"] == "refs/pr/1"
    before = len(calls)
    assert streamed(subset="de")[0]["subset"] == "de" and len(calls) == before  # kept
    assert {file.name for file in tmp_path.iterdir()} >= {"some--data-train-all.jsonl", "some--data-de-train-all.jsonl"}
    assert not list(tmp_path.glob("*.tmp"))


def test_streamed_times_are_text(monkeypatch, tmp_path):
    at = datetime.datetime(2024, 5, 1, 12, 30, tzinfo=datetime.UTC)
    rows = [{"at": at, "day": at.date(), "raw": b"abc", "took": datetime.timedelta(seconds=1.5)}]
    stream = datasets.Dataset.from_list(rows).to_iterable_dataset()
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: stream)
    source = open_source("some/data", streaming=True, spool_dir=tmp_path)
    row = source[0]
    assert row["at"].startswith("2024-05-01T12:30:00") and row["day"].startswith("2024-05-01")
    assert row["raw"] == "abc" and row["took"] == 1.5 and json.loads(json.dumps(row)) == row
    whole = datasets.Dataset.from_list(rows)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: whole)
    assert open_source("some/data")[0] == row


def raising(monkeypatch, error):
    monkeypatch.setattr(network, "PAUSES", ())

    def load(*_, **__):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ConnectionError("offline"), "some/data: neither a file nor .*: offline"),
        (
            ValueError("Config name is missing.\nPlease pick one among the available configs: ['en', 'de']\nExample of usage"),
            "some/data has several configurations: en, de; set data.subset to one of them",
        ),
        (
            ValueError("BuilderConfig 'fr' not found. Available: ['en', 'de']"),
            "some/data has no configuration 'fr'; data.subset may be en, de",
        ),
        (
            ValueError("Unknown split \"train\". Should be one of ['train_prefs', 'test_prefs']."),
            "some/data has no split 'train'; it has train_prefs, test_prefs; set data.split to one of them",
        ),
        (ValueError("Bad split: train. Available splits: ['a', 'b']"), "it has a, b; set data.split"),
    ],
)
def test_an_error_of_the_hub_says_what_to_choose(monkeypatch, error, message):
    raising(monkeypatch, error)
    with pytest.raises(UserError, match=message):
        open_source("some/data", subset="fr" if "fr" in str(error) else None)


def test_a_revision_that_cannot_be_had_is_named(monkeypatch):
    raising(monkeypatch, FileNotFoundError("no such revision"))
    with pytest.raises(UserError, match=r"at revision 'v9' \(data.revision\): no such revision"):
        open_source("some/data", revision="v9")


def test_the_messages_are_those_of_the_client(tmp_path):
    """What the installed `datasets` says of a folder, which it treats as it does a repository of the hub."""
    from align_jax.data.sources import Part
    from align_jax.data.sources.hub import open_hub

    for name in ("en", "de"):
        (tmp_path / f"{name}.jsonl").write_text('{"a": 1}\n')
    lines = "".join(f"- config_name: {name}\n  data_files: {name}.jsonl\n" for name in ("en", "de"))
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n{lines}---\n")
    for part, message in (
        (Part(), "several configurations: en, de; set data.subset"),
        (Part(subset="fr"), "no configuration 'fr'; data.subset may be en, de"),
        (Part(subset="en", which="eval"), "no split 'test'; it has train; set data.eval_split"),
    ):
        with pytest.raises(UserError, match=message):
            open_hub(str(tmp_path), part, None)
