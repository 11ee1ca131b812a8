"""Sources: the same rows from every kind of file, random access, places for messages."""

from __future__ import annotations

import gzip
import json

import datasets
import pytest

from align_jax.data import open_source
from align_jax.data.sources import RowError
from align_jax.errors import UserError
from tests.data.toys import write_jsonl

ROWS = [{"prompt": f"p{i}", "n": i, "list": [i, i + 0.5]} for i in range(7)]


def rows_of(source):
    return [source[i] for i in range(len(source))]


KINDS = ["jsonl", "json", "json list", "json data", "gz", "arrow", "parquet", "parquet folder", "saved", "saved dict"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file_gives_the_same_rows(tmp_path, kind):
    table = datasets.Dataset.from_list(ROWS)
    if kind in ("jsonl", "json"):
        path = write_jsonl(tmp_path / f"d.{kind}", ROWS)
    elif kind in ("json list", "json data"):
        path = tmp_path / "d.json"
        path.write_text(json.dumps(ROWS if kind == "json list" else {"version": 1, "data": ROWS}, indent=2))
    elif kind == "arrow":
        table.save_to_disk(tmp_path / "saved")
        (path := tmp_path / "d.arrow").write_bytes((tmp_path / "saved" / "data-00000-of-00001.arrow").read_bytes())
    elif kind == "gz":
        path = tmp_path / "d.jsonl.gz"
        path.write_bytes(gzip.compress("\n".join(json.dumps(r) for r in ROWS).encode()))
    elif kind == "parquet":
        table.to_parquet(path := tmp_path / "d.parquet")
    elif kind == "parquet folder":
        path = tmp_path / "d"
        path.mkdir()
        table.select(range(3)).to_parquet(path / "a.parquet")
        table.select(range(3, 7)).to_parquet(path / "b.parquet")
    elif kind == "saved":
        table.save_to_disk(path := tmp_path / "d")
    else:
        datasets.DatasetDict({"train": table, "test": table.select([0])}).save_to_disk(path := tmp_path / "d")
    source = open_source(str(path), split="train")
    assert rows_of(source) == ROWS
    assert source[5] == ROWS[5] and source[1] == ROWS[1]
    assert str(path) in source.where(1) and source.where(0) != source.where(1)
    assert len(open_source(str(path), split="train", max_rows=2)) == 2
    assert open_source(str(path), split="train").digest == source.digest


def test_the_digest_is_of_the_content(tmp_path):
    a, b = (open_source(write_jsonl(tmp_path / f"{n}.jsonl", ROWS[:k]), split="train") for n, k in (("a", 7), ("b", 6)))
    c = open_source(write_jsonl(tmp_path / "c.jsonl", ROWS), split="train")
    assert a.digest == c.digest != b.digest


def test_broken_lines_have_their_place(tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_bytes(b'{"a": 1}\n\n{"a": \n[1]\n\xff\xfe\n')
    source = open_source(str(path), split="train")
    assert [source.where(i).rsplit(":", 1)[1] for i in range(len(source))] == ["1", "3", "4", "5"]  # blank lines do not count
    assert source[0] == {"a": 1}
    with pytest.raises(RowError, match="not JSON"):
        source[1]
    with pytest.raises(RowError, match="expected a JSON object per line, got list"):
        source[2]
    with pytest.raises(RowError, match="not JSON"):
        source[3]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("d.jsonl", b"", "d.jsonl is empty"),
        ("d.xlsx", b"a,b", "d.xlsx: .xlsx extension; expected .jsonl"),
        ("d.csv", b"a,b\n1,2,3\n", "d.csv: cannot be read as CSV: .*Expected 2 columns, got 3"),
        ("d.csv", b"a,b,a\n1,2,3\n", "d.csv: several columns are called 'a'"),
        ("d.csv", b"a,b\n", "d.csv is empty; it has no rows"),
        ("d.csv", b"", "d.csv: cannot be read as CSV"),
        ("d.arrow", b"nonsense", "d.arrow: cannot be read as Arrow"),
        ("d.jsonl", '{"a": 1}'.encode("utf-16"), "d.jsonl: text in UTF-16; write it as UTF-8: iconv -f UTF-16"),
        ("d.json", '[{"a": 1}]'.encode("utf-16-le"), "d.json: text in UTF-16; write it as UTF-8"),
        ("d.json", b"[]", "d.json is empty; expected a list"),
        ("d.parquet", b"nonsense", "d.parquet: cannot be read as Parquet"),
        ("d.jsonl.gz", b"nonsense", "d.jsonl.gz: not a whole gzip file"),
        ("d.jsonl.gz", gzip.compress(b"{}" * 99, mtime=0)[:-9], "d.jsonl.gz: not a whole gzip file"),
        ("absent.jsonl", None, "absent.jsonl: no such file or folder"),
        ("folder/readme.txt", b"", "folder: a folder with neither Parquet"),
    ],
)
def test_what_cannot_be_opened_is_named(tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        open_source(str(path.parent if path.suffix == ".txt" else path), split="train")


def test_a_split_that_is_not_there_is_named(tmp_path):
    datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)}).save_to_disk(tmp_path / "d")
    with pytest.raises(UserError, match="no split 'test'; it has train"):
        open_source(str(tmp_path / "d"), split="test")


def test_a_mistyped_path_is_not_asked_for_at_the_hub(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)
    for path in ("data/trian", "a/b/c"):
        with pytest.raises(UserError, match=f"{path}: no such file or folder"):
            open_source(path)
