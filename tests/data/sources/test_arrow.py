"""Tables as they are in the world: shards that differ, types of other libraries, saved folders, files that are broken."""

from __future__ import annotations

import datetime
import decimal
import gzip
import json
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from align_jax.data import DataConfig, open_source
from align_jax.data.opened import open_data
from align_jax.data.sources import RowError
from align_jax.errors import UserError

ROWS = [{"prompt": f"p{i}", "chosen": "a", "rejected": "b", "scores": [1.0, 0.5]} for i in range(5)]


def rows_of(source):
    return [source[i] for i in range(len(source))]


def column(values, kind):
    return pa.array(values, kind)


MESSAGE = pa.struct([("b", pa.int8()), ("c", pa.string())])
TAGGED = pa.struct([("m", pa.map_(pa.string(), pa.binary()))])


@pytest.mark.parametrize(
    ("array", "values"),
    [
        (column([[("a", 1), ("b", 2)], None], pa.map_(pa.string(), pa.int64())), [{"a": 1, "b": 2}, None]),
        (column([["x"], []], pa.list_view(pa.string())), [["x"], []]),
        (column([["x"], None], pa.large_list_view(pa.large_string())), [["x"], None]),
        (column(["x", "y"], pa.large_string()), ["x", "y"]),
        (column(["x", "y"], pa.string_view()), ["x", "y"]),
        (column(["x", "x"], pa.string()).dictionary_encode(), ["x", "x"]),
        (column([[1.5, 2], [3, 4]], pa.list_(pa.float16(), 2)), [[1.5, 2.0], [3.0, 4.0]]),
        (column([b"text", b"\xff\xfe"], pa.binary()), ["text", "//4="]),
        (column([None, None], pa.null()), [None, None]),
        (column([datetime.datetime(2024, 5, 1, 12), None], pa.timestamp("us")), ["2024-05-01T12:00:00", None]),
        (column([0, 10**9], pa.timestamp("s", "UTC")), ["1970-01-01T00:00:00+00:00", "2001-09-09T01:46:40+00:00"]),
        (column([datetime.date(2024, 5, 1)], pa.date32()), ["2024-05-01"]),
        (column([datetime.timedelta(seconds=90)], pa.duration("ms")), [90.0]),
        (column([decimal.Decimal("1.5"), decimal.Decimal("2.0")], pa.decimal128(4, 1)), [1.5, 2]),
        (column([{"a": [{"b": 1, "c": None}]}], pa.struct([("a", pa.list_(MESSAGE))])), [{"a": [{"b": 1}]}]),
        (column([[{"m": [("k", b"v")]}]], pa.list_(TAGGED)), [[{"m": {"k": "v"}}]]),
        (pa.ExtensionArray.from_storage(pa.json_(), column(['{"a": [1]}', None], pa.string())), [{"a": [1]}, None]),
        (
            pa.ExtensionArray.from_storage(pa.uuid(), column([b"\0" * 16], pa.binary(16))),
            [f"{'0' * 8}-0000-0000-0000-{'0' * 12}"],
        ),
    ],
    ids=lambda value: str(value.type) if isinstance(value, pa.Array | pa.ChunkedArray) else "",
)
@pytest.mark.parametrize("kind", ["parquet", "saved"])
def test_columns_of_every_type_are_plain_values(tmp_path, array, values, kind):
    table = pa.table({"n": list(range(len(array))), "x": array})
    if kind == "parquet":
        try:
            pq.write_table(table, tmp_path / "rows.parquet")
        except pa.ArrowNotImplementedError:
            pytest.skip(f"this pyarrow writes no Parquet with {array.type}")
        source = open_source(str(tmp_path / "rows.parquet"))
    else:
        source = open_source(saved(tmp_path / "rows", table))
    assert [row["x"] for row in rows_of(source)] == values
    assert json.loads(json.dumps(rows_of(source))) == rows_of(source)


def saved(folder, table, **state):
    """A folder as `datasets.save_to_disk` writes it, of columns that it may not know."""
    folder.mkdir()
    with pa.OSFile(str(folder / "data-00000-of-00001.arrow"), "wb") as out, pa.ipc.new_stream(out, table.schema) as stream:
        stream.write_table(table)
    files = [{"filename": "data-00000-of-00001.arrow"}]
    (folder / "state.json").write_text(json.dumps({"_data_files": files, "_fingerprint": "f", "_split": None} | state))
    return str(folder)


def test_parquet_that_another_version_of_datasets_wrote_is_read_and_said(tmp_path):
    info = {"info": {"features": {"prompt": {"dtype": "string", "_type": "Value"}, "scores": {"_type": "Hologram"}}}}
    table = pa.Table.from_pylist(ROWS).replace_schema_metadata({"huggingface": json.dumps(info)})
    pq.write_table(table, path := tmp_path / "rows.parquet")
    source = open_source(str(path))
    assert rows_of(source) == ROWS and len(source.notes) == 1
    assert "another version of datasets" in source.notes[0] and "Hologram" in source.notes[0]
    datasets.Dataset.from_list(ROWS).to_parquet(path)
    assert open_source(str(path)).notes == ()


SHARDS = {
    "int here and double there": ({"s": [1, 2]}, {"s": [1.5, 2.5]}),
    "lists of int and of double": ({"s": [[1], [2]]}, {"s": [[1.5], []]}),
    "null here": ({"s": [None, None]}, {"s": ["x", "y"]}),
    "another order": ({"s": [1], "t": ["x"]}, {"t": ["y"], "s": [2]}),
    "a column less": ({"s": [1], "t": ["x"]}, {"s": [2]}),
    "structs with other keys": ({"s": [{"role": "user"}]}, {"s": [{"role": "user", "name": "n"}]}),
    "text here and number there": ({"s": ["1"]}, {"s": [1]}),
}


@pytest.mark.parametrize("kind", list(SHARDS))
def test_shards_may_differ(tmp_path, kind):
    expected = []
    for i, columns in enumerate(SHARDS[kind]):
        table = pa.table(columns)
        expected += table.to_pylist()
        pq.write_table(table, tmp_path / f"{i}.parquet")
    assert rows_of(open_source(str(tmp_path))) == expected


def test_an_empty_shard_is_none(tmp_path):
    full = pa.Table.from_pylist(ROWS)
    for name, table in (("0", full.slice(0, 0)), ("1", full), ("2", full.slice(0, 0))):
        pq.write_table(table, tmp_path / f"{name}.parquet")
    source = open_source(str(tmp_path))
    assert rows_of(source) == ROWS and source.where(4) == f"{tmp_path / '1.parquet'} row 4"
    pq.write_table(full.slice(0, 0), path := tmp_path / "none.parquet")
    with pytest.raises(UserError, match="none.parquet is empty"):
        open_source(str(path))


def test_row_groups_are_one_file(tmp_path):
    rows = [{"n": i} for i in range(1000)]
    pq.write_table(pa.Table.from_pylist(rows), path := tmp_path / "rows.parquet", row_group_size=7)
    source = open_source(str(path))
    assert rows_of(source) == rows and source.where(500) == f"{path} row 500"
    with pytest.raises(IndexError):
        source[1000]


def test_columns_of_one_name_are_refused(tmp_path):
    table = pa.table([pa.array([1]), pa.array([2])], names=["x", "x"])
    pq.write_table(table, tmp_path / "rows.parquet")
    path = Path(saved(tmp_path / "d", table)) / "data-00000-of-00001.arrow"
    with pytest.raises(UserError, match="rows.parquet: cannot be read as Parquet: Multiple matches"):
        open_source(str(tmp_path / "rows.parquet"))
    with pytest.raises(UserError, match="00001.arrow: several columns are called 'x'"):
        open_source(str(path))
    with pytest.raises(UserError, match="00001.arrow: several columns are called 'x'"):
        open_source(str(path.parent))


def test_a_shard_that_is_cut_short_is_named(tmp_path):
    for i in range(3):
        pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / f"{i}.parquet")
    whole = (tmp_path / "1.parquet").read_bytes()
    (tmp_path / "1.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="1.parquet: cannot be read as Parquet"):
        open_source(str(tmp_path))


def test_text_that_is_no_utf8_is_a_bad_row(tmp_path):
    wrong = pa.Array.from_buffers(pa.string(), 2, [None, pa.py_buffer(np.array([0, 1, 2], np.int32)), pa.py_buffer(b"a\xff")])
    pq.write_table(pa.table({"s": wrong}), path := tmp_path / "rows.parquet")
    source = open_source(str(path))
    assert source[0] == {"s": "a"}
    with pytest.raises(RowError, match="cannot be read: .*0xff"):
        source[1]


@pytest.mark.parametrize("form", ["numpy", "torch", "pandas", "arrow"])
def test_a_folder_saved_in_another_format_gives_plain_rows(tmp_path, form):
    table = datasets.Dataset.from_list(ROWS)
    table.set_format(form, columns=["scores"])
    table.save_to_disk(tmp_path / "d")
    assert rows_of(open_source(str(tmp_path / "d"))) == ROWS


def test_a_format_whose_library_is_not_there_does_not_matter(tmp_path):
    path = saved(tmp_path / "d", pa.Table.from_pylist(ROWS), _format_type="tensorflow", _format_columns=["scores"])
    assert rows_of(open_source(path)) == ROWS


def test_a_saved_split_that_was_not_asked_for_is_said(tmp_path):
    datasets.Dataset.from_list([{"n": 1}], split="test").save_to_disk(tmp_path / "saved")
    said = f"data.split train has no effect: {tmp_path / 'saved'} is the split 'test'"
    assert open_source(str(tmp_path / "saved"), split="train").notes == (said,)
    assert open_source(str(tmp_path / "saved")).notes == open_source(str(tmp_path / "saved"), split="test").notes == ()


def test_a_saved_folder_keeps_its_fingerprint_and_its_split(tmp_path):
    table = datasets.Dataset.from_list(ROWS)
    datasets.DatasetDict({"train": table, "dev": table.select([0])}).save_to_disk(tmp_path / "d")
    state = json.loads((tmp_path / "d" / "train" / "state.json").read_text())
    assert open_source(str(tmp_path / "d")).digest == state["_fingerprint"]
    assert len(open_source(str(tmp_path / "d"), which="eval", split="dev")) == 1
    with pytest.raises(UserError, match="has no split 'test'; it has train, dev; set data.eval_split"):
        open_source(str(tmp_path / "d"), which="eval")
    with pytest.raises(UserError, match="data.split: 'dev' was asked for, but .* has no splits"):
        open_source(str(tmp_path / "d" / "train"), split="dev")
    shards = datasets.Dataset.from_list(ROWS)
    shards.save_to_disk(tmp_path / "shards", num_shards=3)
    assert rows_of(open_source(str(tmp_path / "shards"))) == ROWS


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda d: (d / "data-00001-of-00002.arrow").unlink(), "data-00001-of-00002.arrow of 2 files is missing"),
        (lambda d: (d / "data-00000-of-00002.arrow").write_bytes(b"x"), "data-00000-of-00002.arrow: cannot be read as Arrow"),
        (lambda d: (d / "state.json").write_text("{"), "state.json: not what datasets.save_to_disk writes"),
    ],
)
def test_a_saved_folder_that_is_not_whole_is_named(tmp_path, spoil, message):
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "d", num_shards=2)
    spoil(tmp_path / "d")
    with pytest.raises(UserError, match=message):
        open_source(str(tmp_path / "d"))


def test_columns_that_hold_json_are_what_was_put_there(tmp_path):
    if not hasattr(datasets, "Json"):
        pytest.skip("this version of datasets has no Json columns")
    features = datasets.Features({"tools": datasets.List(datasets.Json())})
    table = datasets.Dataset.from_dict({"tools": [[{"a": 1}, {"b": "x"}]]}, features=features)
    table.to_parquet(tmp_path / "rows.parquet")
    table.save_to_disk(tmp_path / "d")
    for name in ("rows.parquet", "d"):
        assert rows_of(open_source(str(tmp_path / name))) == [{"tools": [{"a": 1}, {"b": "x"}]}]


def test_csv_texts_stay_texts(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text('\ufeffprompt,chosen,rejected,n\n"two\nlines, ""quoted""",null,NA,1\nq,,x,\n', encoding="utf-8")
    assert rows_of(open_source(str(path))) == [
        {"prompt": 'two\nlines, "quoted"', "chosen": "null", "rejected": "NA", "n": "1"},
        {"prompt": "q", "chosen": "", "rejected": "x", "n": ""},
    ]


@pytest.mark.parametrize(
    "written",
    [
        ["1", "-20", ""],
        ["1", "2.50", "1e-3"],
        ["True", "false"],
        ["007", "12"],
        ["2024-01-02 10:00:00", "2024-01-02 11:00:00"],
        ["12:30", "1"],
        ["", ""],
        ["12345678901234567890123", "1"],
        ["nan", "inf"],
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_values_of_csv_stay_as_they_are_written(tmp_path, written, packed):
    text = "".join(f"t{i}\t{value}\n" for i, value in enumerate(["x", *written])).encode()
    path = tmp_path / ("rows.tsv.gz" if packed else "rows.tsv")
    path.write_bytes(gzip.compress(text) if packed else text)
    assert [row["x"] for row in rows_of(open_source(str(path)))] == written


@pytest.mark.parametrize("answers", [("4", "5"), ("true", "false"), ("007", "4.50"), ("NA", "1e3"), ("1", ""), ("-", "-1")])
def test_answers_of_csv_may_be_numbers(tmp_path, answers):
    lines = ["prompt,completion,label", f"p,{answers[0]},True", f"8,{answers[1]},0"]
    (tmp_path / "rows.csv").write_text("\n".join(lines) + "\n")
    source, data_format, _ = open_data(DataConfig(train=str(tmp_path / "rows.csv")), "train", None)
    examples = [data_format.read(row) for row in rows_of(source)]
    assert data_format.name == "unpaired" and [e.prompt for e in examples] == ["p", "8"]
    assert [e.responses for e in examples] == [(answers[0],), (answers[1],)]
    assert [e.desirable for e in examples] == [True, False] and data_format.notes() == []


@pytest.mark.parametrize(
    ("columns", "values", "scores"),
    [
        ("prompt,response,helpfulness", "p,4,3.5", (3.5,)),
        ("context,response1,response2,overall_preference", "p,1,2,-2", (2.0, 0.0)),
        ("history,human_ref_A,human_ref_B,labels", "p,1,2,1", (1.0, 0.0)),
        ("history,human_ref_A,human_ref_B,labels", "p,1,2,0.0", (1.0, 0.0)),
    ],
)
def test_numbers_of_csv_are_read_from_text(tmp_path, columns, values, scores):
    (tmp_path / "rows.csv").write_text(f"{columns}\n{values}\n")
    source, data_format, _ = open_data(DataConfig(train=str(tmp_path / "rows.csv")), "train", None)
    assert data_format.read(source[0]).scores == scores


def test_a_cell_of_csv_may_be_long(tmp_path):
    (tmp_path / "rows.csv").write_text(f"prompt,chosen\np,{'x' * 3_000_000}\nq,y\n")
    assert [len(row["chosen"]) for row in rows_of(open_source(str(tmp_path / "rows.csv")))] == [3_000_000, 1]


@pytest.mark.parametrize("written", ["", "x", "1_0", "nan", "inf", "1e99", "1,5", "0x1"])
def test_text_of_csv_that_is_no_number_is_refused(tmp_path, written):
    (tmp_path / "rows.tsv").write_text(f"prompt\tresponse\thelpfulness\np\ta\t{written}\n")
    source, data_format, _ = open_data(DataConfig(train=str(tmp_path / "rows.tsv"), format="helpsteer2"), "train", None)
    with pytest.raises(RowError, match="'helpfulness': expected a finite number"):
        data_format.read(source[0])


def test_pairs_of_every_kind_of_file_are_recognized(tmp_path):
    rows = [{"prompt": f"p{i}", "chosen": "a", "rejected": "b"} for i in range(4)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    (tmp_path / "rows.csv").write_text("prompt,chosen,rejected\n" + "".join(f"p{i},a,b\n" for i in range(4)))
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    for kind in ("parquet", "csv", "json"):
        opened = open_data(DataConfig(train=str(tmp_path / f"rows.{kind}")), "train", None)
        assert opened.format.name == "pairs" and rows_of(opened.source) == rows
