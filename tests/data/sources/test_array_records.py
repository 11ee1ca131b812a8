"""ArrayRecord files as a source."""

from __future__ import annotations

import json

import pytest

from align_jax.data.sources import Part, RowError, open_source
from align_jax.data.written import write_rows
from align_jax.errors import UserError


def _open(path, **part):
    return open_source(str(path), Part(**part))


def test_records_are_rows(tmp_path):
    rows = [{"prompt": f"p{i} \U0001f600", "n": i} for i in range(5)]
    write_rows(rows, tmp_path / "a.array_record")
    source = _open(tmp_path / "a.array_record")
    assert [source[i] for i in (4, 0, 1, 2, 3)] == [rows[i] for i in (4, 0, 1, 2, 3)] and len(source) == 5
    assert source.where(3) == f"{tmp_path / 'a.array_record'} record 3"
    assert len(_open(tmp_path / "a.array_record", max_rows=2)) == 2
    write_rows(rows[:4], tmp_path / "b.array_record")
    assert _open(tmp_path / "b.array_record").digest != source.digest
    with pytest.raises(IndexError):
        source[5]


@pytest.mark.parametrize("record, said", [(b"\x08\x01", "not JSON"), (b"[1]", "expected a JSON object per record, got list"),
                                          (b'{"a": 1, "a": 2}', "key 'a' stands twice")])  # fmt: skip
def test_other_records_are_malformed_rows(tmp_path, record, said):
    from array_record.python.array_record_module import ArrayRecordWriter

    writer = ArrayRecordWriter(str(tmp_path / "a.array_record"), "group_size:1")
    for value in (json.dumps({"a": 1}).encode(), record):
        writer.write(value)
    writer.close()
    source = _open(tmp_path / "a.array_record")
    assert source[0] == {"a": 1}
    with pytest.raises(RowError, match=said):
        source[1]


def test_a_file_that_is_none(tmp_path):
    (tmp_path / "a.array_record").write_bytes(b"no such thing" * 99)
    with pytest.raises(UserError, match="a.array_record"):
        _open(tmp_path / "a.array_record")


def test_without_its_package_it_is_said(tmp_path, monkeypatch):
    import sys

    write_rows([{"a": 1}], tmp_path / "a.array_record")
    monkeypatch.setitem(sys.modules, "array_record.python.array_record_module", None)
    for call in (lambda: _open(tmp_path / "a.array_record"), lambda: write_rows([{"a": 1}], tmp_path / "b.array_record")):
        with pytest.raises(UserError, match="pip install array-record"):
            call()
    assert [p.name for p in tmp_path.iterdir()] == ["a.array_record"]
