"""Which files are which split: the same as `datasets` finds, and every key is honoured, refused or said."""

from __future__ import annotations

import json

import datasets
import pytest
from datasets.data_files import DataFilesDict, get_data_patterns

from align_jax.data import DataConfig, open_source
from align_jax.data.opened import open_data
from align_jax.data.sources.splits import splits_of
from align_jax.errors import UserError
from tests.data.toys import write_jsonl

LAYOUTS = [
    ["data/train-0000.parquet", "data/test-0000.parquet"],
    ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet", "data/test-00000-of-00001.parquet"],
    ["data/random-00000-of-00001.jsonl", "data/train-00000-of-00001.jsonl", "data/test.jsonl"],
    ["train/a.parquet", "train/b.parquet", "valid/a.parquet"],
    ["train.jsonl", "test.jsonl"],
    ["training.jsonl", "evaluation.jsonl"],
    ["my-train-1.csv", "dev.csv", "extra.csv"],
    ["a_val_2.json", "b.val.json"],
    ["x/train_1/a.jsonl", "x/y/testing/b.jsonl"],
    ["data-train/deep/er/a.jsonl", "data-test/train.jsonl"],
    ["trainer.jsonl", "latest.jsonl", "contest.jsonl"],
    ["Train.jsonl", "TEST.jsonl"],
    ["train2.jsonl", "2train.jsonl", "test_train.jsonl"],
    ["train/validation/a.jsonl"],
    ["train_part/test.jsonl", "other/a.jsonl"],
    ["a.jsonl", "b.jsonl"],
    ["train.jsonl.gz", "test.jsonl.gz"],
    ["data/train-00000-of-00001-abc.parquet", "data/test-00000-of-00001-abc.parquet"],
    ["sub/data/train-00000-of-00001.parquet", "sub/data/dev-00000-of-00001.parquet"],
    ["train sft.jsonl", "test sft.jsonl"],
]


@pytest.mark.parametrize("files", LAYOUTS, ids=lambda files: files[0])
def test_splits_are_those_that_datasets_finds(tmp_path, files):
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    found = DataFilesDict.from_patterns(get_data_patterns(str(tmp_path)), str(tmp_path))
    theirs = {str(split): sorted(str(file).removeprefix(f"{tmp_path}/") for file in named) for split, named in found.items()}
    ours = splits_of(files) or {"train": sorted(files)}
    assert ours == theirs


def folder(tmp_path, **splits):
    """A folder with a file for each name; its rows say where they are from."""
    for name, kind in splits.items():
        path = tmp_path / f"{name}.{kind}"
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, [{"from": name, "n": i} for i in range(2)])
    return str(tmp_path)


def write(path, rows):
    if path.suffix == ".parquet":
        datasets.Dataset.from_list(rows).to_parquet(path)
    elif path.suffix in (".csv", ".tsv"):
        by = "," if path.suffix == ".csv" else "\t"
        path.write_text("\n".join(by.join(map(str, line)) for line in [rows[0], *(row.values() for row in rows)]))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=1))
    else:
        write_jsonl(path, rows)


def names_in(source):
    return sorted({source[i]["from"] for i in range(len(source))})


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "tsv", "parquet"])
def test_a_split_of_a_folder_is_read_alone(tmp_path, kind):
    path = folder(tmp_path, **{"data/train-0000": kind, "data/train-0001": kind, "data/test-0000": kind, "data/dev": kind})
    train = open_source(path)
    assert names_in(train) == ["data/train-0000", "data/train-0001"] and len(train) == 4 and train.notes == ()
    assert "train-0001" in train.where(2) and train[3] == {"from": "data/train-0001", "n": "1" if kind in ("csv", "tsv") else 1}
    assert names_in(open_source(path, which="eval")) == ["data/test-0000"]
    assert names_in(open_source(path, split="validation")) == ["data/dev"]
    assert open_source(path, which="eval").digest != train.digest
    assert len(open_source(path, max_rows=3)) == 3
    with pytest.raises(UserError, match="has no split 'gold'; it has train, validation, test; set data.eval_split"):
        open_source(path, which="eval", split="gold")


def test_a_folder_without_splits_is_read_whole(tmp_path):
    path = folder(tmp_path, a="jsonl", b="jsonl")
    for part in ({}, {"split": "train"}, {"which": "eval"}, {"which": "eval", "split": "train"}):
        assert names_in(source := open_source(path, **part)) == ["a", "b"]
        key = "data.eval_split" if part.get("which") else "data.split"
        said = f"{path}: no name of its 2 files tells of a split; {key} train: all are read"
        assert source.notes == ((said,) if part.get("split") else ())
    assert "data.eval_split test has no effect" in open_source(path, which="eval", split="test").notes[0]
    with pytest.raises(UserError, match="data.split: 'validation' was asked for, but .* has no splits"):
        open_source(path, split="validation")


def test_the_only_split_is_read_and_said_unless_another_was_asked_for(tmp_path):
    path = folder(tmp_path, **{"train-0": "parquet"})
    source = open_source(path, which="eval")
    assert names_in(source) == ["train-0"] and "has no split 'test', only 'train': that is read" in source.notes[0]
    with pytest.raises(UserError, match="has no split 'test'; it has train; set data.eval_split"):
        open_source(path, which="eval", split="test")


def test_files_that_are_left_out_are_named(tmp_path):
    path = folder(tmp_path, train="parquet", **{"test": "parquet", "more": "parquet", "train.old": "jsonl"})
    notes = open_source(path).notes
    assert any("more.parquet of no split by its name: not read" in note for note in notes)
    assert any("only its .parquet files are read, and not train.old.jsonl" in note for note in notes)
    assert names_in(open_source(path)) == ["train"]


def test_hidden_files_and_descriptions_hold_no_rows(tmp_path):
    path = folder(tmp_path, a="jsonl", **{".cache/b": "jsonl", "__pycache__/c": "jsonl"})
    (tmp_path / "dataset_info.json").write_text("{}")
    assert names_in(source := open_source(path)) == ["a"] and source.notes == ()


README = """---
license: mit
configs:
- config_name: main
  data_files:
  - split: train
    path: [main/x*.jsonl, main/deep/**]
  - split: test
    path: main/held.jsonl
- config_name: extra
  data_files: extra/*
{default}---
# Words
"""


@pytest.fixture
def card(tmp_path):
    names = ("main/x1", "main/x2", "main/deep/er/y", "main/held", "extra/z", "loose")
    folder(tmp_path, **dict.fromkeys(names, "jsonl"))
    return tmp_path


def test_the_header_of_a_readme_says_which_files_are_which(card):
    (card / "README.md").write_text(README.format(default="  default: true\n"))
    assert names_in(open_source(str(card), subset="main")) == ["main/deep/er/y", "main/x1", "main/x2"]
    assert names_in(open_source(str(card), subset="main", which="eval")) == ["main/held"]
    assert names_in(open_source(str(card))) == ["extra/z"]  # the default
    loaded = datasets.load_dataset(str(card), "main", cache_dir=str(card / ".cache"))
    assert {split: sorted(set(rows["from"])) for split, rows in loaded.items()} == {
        "train": ["main/deep/er/y", "main/x1", "main/x2"], "test": ["main/held"]
    }  # fmt: skip
    with pytest.raises(UserError, match="no configuration 'other'; data.subset may be main, extra"):
        open_source(str(card), subset="other")
    with pytest.raises(UserError, match="no split 'validation'; it has train, test"):
        open_source(str(card), subset="main", split="validation")


def test_one_of_several_configurations_is_chosen(card):
    (card / "README.md").write_text(README.format(default=""))
    with pytest.raises(UserError, match="has 2 configurations: main, extra; set data.subset to one of them"):
        open_source(str(card))


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("configs: 3", "configs must be a list"),
        ("configs: [\n", "its header is not YAML"),
        ("configs:\n- config_name: a\n  data_files:\n  - path: x", "configuration 'a': expected split and path"),
        ("configs:\n- config_name: a\n  data_files:\n  - split: train\n    path: absent/*", "no file matches .* 'train'"),
    ],
)
def test_a_header_that_is_none_is_named(card, header, message):
    (card / "README.md").write_text(f"---\n{header}\n---\n")
    with pytest.raises(UserError, match=message):
        open_source(str(card))


def test_a_readme_without_configurations_has_names_decide(tmp_path):
    path = folder(tmp_path, train="jsonl", test="jsonl")
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\nA text\n---\n")
    assert names_in(open_source(path)) == ["train"]
    with pytest.raises(UserError, match="data.subset: 'a' was asked for, but .* has no configurations"):
        open_source(path, subset="a")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"split": "validation"}, "data.split: 'validation' was asked for, but .*, a single file, has no splits"),
        ({"subset": "en"}, "data.subset: 'en' was asked for, but .* has no configurations"),
        ({"revision": "main"}, "data.revision: 'main' was asked for, but .* is no data set of the hub"),
    ],
)
def test_a_key_that_a_file_cannot_honour_is_refused(tmp_path, values, message):
    path = write_jsonl(tmp_path / "rows.jsonl", [{"prompt": "p", "chosen": "a", "rejected": "b"}])
    with pytest.raises(UserError, match=message):
        open_data(DataConfig(train=path, **values), "train", None)
    for usual in ({}, {"split": "train"}, {"eval_split": "test"}, {"max_rows": 1}):
        assert open_data(DataConfig(train=path, **usual), "train", None).source.notes == ()


def test_keys_of_the_other_data_set_and_streaming_of_a_file_are_said(tmp_path):
    rows = [{"prompt": f"p{i}", "chosen": "a", "rejected": "b"} for i in range(4)]
    path, other = (write_jsonl(tmp_path / f"{name}.jsonl", rows) for name in "ab")
    notes = open_data(DataConfig(train=path, streaming=True), "train", None).source.notes
    assert len(notes) == 1 and "data.streaming true has no effect: " in notes[0]
    notes = open_data(DataConfig(train=path, eval=other, subset="en"), "eval", None).source.notes
    assert len(notes) == 1 and "data.subset en has no effect" in notes[0]
    notes = open_data(DataConfig(train=path, eval=0.5, eval_split="dev"), "eval", None).source.notes
    assert notes == ("data.eval_split dev has no effect: data.eval is a fraction of data.train",)


def test_an_empty_folder_is_named(tmp_path):
    with pytest.raises(UserError, match="a folder with neither Parquet, JSONL"):
        open_source(str(tmp_path))


def test_capitals_count_as_the_words_of_splits(tmp_path):
    path = folder(tmp_path, Train="jsonl", Test="jsonl", VALID="jsonl")
    assert names_in(train := open_source(path)) == ["Train"] and train.notes == ()
    assert names_in(open_source(path, split="train")) == ["Train"]
    assert names_in(open_source(path, which="eval")) == ["Test"]
    assert names_in(open_source(path, split="validation")) == ["VALID"]
    # names that the hub knows decide first, and what they leave is said
    other = folder(tmp_path / "other", train="jsonl", TEST="jsonl")
    assert names_in(found := open_source(other)) == ["train"] and "TEST.jsonl of no split by its name" in found.notes[0]
