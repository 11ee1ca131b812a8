"""A digest is of the rows that are there, so that a cache never takes fewer of them for more."""

from __future__ import annotations

import gzip
import hashlib
import json
from pathlib import Path

import datasets
import pytest

from align_jax.data import DataConfig, open_source
from align_jax.data.opened import open_data
from align_jax.data.sources import given_rows

ROWS = [{"n": i} for i in range(6)]


@pytest.mark.parametrize("kind", ["jsonl", "json", "jsonl.gz", "csv", "parquet", "shards", "given", "saved"])
def test_the_digest_follows_the_rows_that_are_there(tmp_path, kind):
    path = written(tmp_path, kind)
    whole = open_source(path).digest
    assert open_source(path, max_rows=6).digest == open_source(path, max_rows=9).digest == whole
    digests = {open_source(path, max_rows=n).digest for n in (1, 4, 5)}
    assert len(digests | {whole}) == 4
    assert open_source(path, max_rows=4).digest in digests


def test_the_digest_of_a_whole_file_is_that_of_its_bytes(tmp_path):
    for kind in ("jsonl", "json"):
        path = written(tmp_path, kind)
        assert open_source(path).digest == hashlib.sha256(Path(path).read_bytes()).hexdigest()


def written(folder, kind):
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    path = folder / f"rows.{kind}"
    if kind == "given":
        return given_rows(ROWS, "data.train")
    if kind == "shards":
        for half in range(2):
            (folder / f"{half}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS[half::2]))
        return str(folder)
    if kind == "saved":
        datasets.Dataset.from_list(ROWS).save_to_disk(path)
    elif kind == "parquet":
        datasets.Dataset.from_list(ROWS).to_parquet(path)
    elif kind == "csv":
        path.write_text("n\n" + "".join(f"{row['n']}\n" for row in ROWS))
    elif kind == "json":
        path.write_text(json.dumps(ROWS))
    else:
        path.write_bytes(gzip.compress(lines.encode()) if kind.endswith("gz") else lines.encode())
    return str(path)


def test_a_limit_is_another_digest():
    rows = given_rows([{"prompt": f"p{i}", "chosen": "a", "rejected": "b"} for i in range(5)], "data.train")
    found = [open_data(DataConfig(train={"path": rows, **more}), "train", None) for more in ({}, {"limit": 4}, {"limit": 3})]
    assert len({opened.source.digest for opened in found}) == 3
