"""JSON files of every layout, and where their mistakes are."""

from __future__ import annotations

import gzip
import json

import pytest

from align_jax.data import open_source
from align_jax.data.sources import JsonLines, RowError
from align_jax.errors import UserError

ROWS = [{"prompt": f"p{i}\n", "list": [i]} for i in range(3)]


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(ROWS),
        json.dumps(ROWS, indent=1),
        "\ufeff" + json.dumps(ROWS),
        json.dumps({"data": ROWS}),
        json.dumps({"meta": {"a": [1]}, "rows": ROWS}, indent=4),
        "\n".join(json.dumps(row, indent=2) for row in ROWS),
        "\n\n".join(json.dumps(row) for row in ROWS) + "\r\n",
    ],
)
@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl", "rows.json.gz"])
def test_the_layout_is_seen_whatever_the_ending(tmp_path, text, name):
    path = tmp_path / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    source = open_source(str(path))
    assert [source[i] for i in range(len(source))] == ROWS
    source[0]["list"].append(9)
    assert source[0] == ROWS[0]
    assert [row for row in [open_source(str(path), max_rows=2)[1]]] == ROWS[1:2]
    assert len(open_source(str(path), max_rows=2)) == 2


def test_a_row_with_a_column_called_data_is_a_row(tmp_path):
    rows = [{"data": [1, 2], "prompt": "p"}, {"data": [{"a": 1}], "prompt": "q"}]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    assert isinstance(source := open_source(str(path)), JsonLines) and source[1] == rows[1]
    path.write_text("\n".join(map(json.dumps, rows[::-1])))
    assert [open_source(str(path))[i] for i in range(2)] == rows[::-1]


def test_a_first_line_that_is_broken_keeps_its_place(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text('{"a": \n{"a": 1}\n')
    source = open_source(str(path))
    with pytest.raises(RowError, match="not JSON"):
        source[0]
    assert source.where(0) == f"{path}:1" and source[1] == {"a": 1}


def test_half_a_character_in_a_list_is_a_bad_row(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text('[\n{"a": "\\ud83d"}, {"a": "b"}]')
    source = open_source(str(path))
    with pytest.raises(RowError, match=r"half a character \(\\ud83d\)"):
        source[0]
    assert source[1] == {"a": "b"} and source.where(1) == f"{path} row 1"


def test_a_list_of_something_else_is_not_rows(tmp_path):
    (tmp_path / "rows.json").write_text("[1, 2]")
    with pytest.raises(RowError, match="expected a JSON object per line, got list"):
        open_source(str(tmp_path / "rows.json"))[0]


def test_an_empty_list_below_data_is_empty(tmp_path):
    (tmp_path / "rows.json").write_text('{"data": []}')
    with pytest.raises(UserError, match="rows.json is empty"):
        open_source(str(tmp_path / "rows.json"))


TWICE = '{"prompt": "p", "chosen": "a", "rejected": "b", "chosen": "c"}'


@pytest.mark.parametrize(
    ("line", "key"),
    [
        (TWICE, "chosen"),
        ('{"messages": [{"role": "user", "role": "assistant", "content": "a"}]}', "role"),
        ('{"a": {"b": [{"c": 1, "c": 1}]}}', "c"),
    ],
)
def test_a_key_that_stands_twice_is_an_error_of_its_row(tmp_path, line, key):
    (tmp_path / "rows.jsonl").write_text(line + '\n{"prompt": "p"}\n')
    source = open_source(str(tmp_path / "rows.jsonl"))
    with pytest.raises(RowError, match=f"key '{key}' stands twice"):
        source[0]
    assert source[1] == {"prompt": "p"}


@pytest.mark.parametrize("document", [f"[{TWICE}]", f'{{"data": [{TWICE}]}}', f"[\n{TWICE},\n{TWICE}\n]"])
def test_a_key_that_stands_twice_in_a_document_names_the_file(tmp_path, document):
    (tmp_path / "rows.json").write_text(document)
    with pytest.raises(UserError, match=r"rows\.json: key 'chosen' stands twice"):
        open_source(str(tmp_path / "rows.json"))


@pytest.mark.parametrize("rest", ["", '{"prompt": "p"}\n'])
def test_lists_without_end_are_a_malformed_row(tmp_path, rest):
    (tmp_path / "rows.jsonl").write_text('{"a": ' + "[" * 200_000 + "\n" + rest)
    with pytest.raises(RowError, match="not JSON: lists or objects too deep"):
        open_source(str(tmp_path / "rows.jsonl"))[0]
