"""JSONL in and out: every bad line by file and number, and nothing lost when a run ends early."""

from __future__ import annotations

import json

import pytest

from align_jax.errors import UserError
from align_jax.files import ResultsFile
from align_jax.generation.prompts import read_prompts


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize(
    "content, message",
    [
        ("", "prompts.jsonl is empty"),
        ('{"prompt": "a"}\n{"prompt": \n', "prompts.jsonl:2: not valid JSON"),
        ('{"prompt": "a"}\n\n[1]\n', "prompts.jsonl:3: expected a JSON object"),
        ('{"text": "a"}', "prompts.jsonl:1: no `prompt`; the columns are text"),
        ('{"prompt": ""}', "prompts.jsonl:1: `prompt` must be text or messages"),
        ('{"prompt": [{"role": "user"}]}', "prompts.jsonl:1: `prompt` must be text or messages"),
        ('{"prompt": [{"role": "user", "content": null}]}', "prompts.jsonl:1: `prompt` must be text or messages"),
        ('{"prompt": "a", "_index": 1}', "prompts.jsonl:1: the column '_index'"),
        (b'{"prompt": "a"}\n\xff\n', "prompts.jsonl:2: not UTF-8"),
    ],
)
def test_bad_prompts(tmp_path, content, message):
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message) as caught:
        read_prompts(path)
    assert "\n" not in str(caught.value)


def test_missing_prompts(tmp_path):
    with pytest.raises(UserError, match="generate.prompts: cannot read .*nowhere.*: No such file"):
        read_prompts(tmp_path / "nowhere")


def test_a_byte_order_mark_is_no_part_of_the_prompts(tmp_path):
    (tmp_path / "p.jsonl").write_bytes(b'\xef\xbb\xbf{"prompt": "a"}\n')
    assert [row.values for row in read_prompts(tmp_path / "p.jsonl")] == [{"prompt": "a"}]


def test_prompts_keep_their_columns_and_lines(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "a\u2028b", "id": 7}\n\n{"prompt": [{"role": "user", "content": "c"}]}\n')
    first, second = read_prompts(path)
    assert first.values == {"prompt": "a\u2028b", "id": 7} and first.where.endswith("prompts.jsonl:1")
    assert second.where.endswith("prompts.jsonl:3")


def test_results_come_in_the_order_of_the_prompts(tmp_path):
    path = tmp_path / "new" / "out.jsonl"
    with ResultsFile(path, {"seed": 1}, 3) as results:
        for index in (2, 0, 1):
            results.write(index, {"prompt": str(index)})
    assert rows_of(path) == [{"prompt": "0"}, {"prompt": "1"}, {"prompt": "2"}]
    with ResultsFile(path, {"seed": 1}, 3) as again:
        assert again.done == {0, 1, 2}
    assert len(rows_of(path)) == 3


def test_an_interrupted_file_is_continued(tmp_path):
    path = tmp_path / "out.jsonl"
    with pytest.raises(KeyboardInterrupt), ResultsFile(path, {"seed": 1}, 3) as results:
        results.write(2, {"prompt": "c"})
        results.write(1, {"prompt": "b"})
        raise KeyboardInterrupt
    with open(path, "ab") as file:
        file.write(b'{"_index": 0, "prom')  # killed while writing
    with ResultsFile(path, {"seed": 1}, 3) as results:
        assert results.done == {1, 2} and results.kept_as is None
        results.write(0, {"prompt": "a"})
    assert rows_of(path) == [{"prompt": "a"}, {"prompt": "b"}, {"prompt": "c"}]


def test_results_of_other_settings_are_kept_apart(tmp_path):
    path = tmp_path / "out.jsonl"
    for seed in (1, 2):
        with ResultsFile(path, {"seed": seed}, 1) as results:
            assert results.done == set()
            assert results.kept_as == (None if seed == 1 else tmp_path / "out.jsonl.1")
            results.write(0, {"seed": seed})
    assert rows_of(path) == [{"seed": 2}] and rows_of(tmp_path / "out.jsonl.1") == [{"seed": 1}]


@pytest.mark.parametrize("changed", ["0\n", "0\n1", "0\nno JSON\n", '{"_index": 7}\n', "2\n"])
def test_a_file_that_was_changed_since_is_kept_apart_and_made_again(tmp_path, changed):
    path = tmp_path / "out.jsonl"
    with ResultsFile(path, {"seed": 1}, 2) as results:
        results.write(0, {"a": 0}), results.write(1, {"a": 1})
    path.write_text(changed.replace("0", '{"a": 0}', 1))
    with ResultsFile(path, {"seed": 1}, 2) as again:
        assert again.done == set() and again.kept_as == tmp_path / "out.jsonl.1"
        again.write(0, {"a": 0}), again.write(1, {"a": 1})
    assert rows_of(path) == [{"a": 0}, {"a": 1}]


def test_an_output_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="generate.output: cannot write"):
        ResultsFile(tmp_path / "file" / "out.jsonl", {}, 1)
    (tmp_path / "runs").mkdir()
    with pytest.raises(UserError, match="generate.output: cannot write .*runs: it is a folder"):
        ResultsFile(tmp_path / "runs", {}, 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "runs"]


def test_two_jobs_do_not_write_one_file(tmp_path):
    path = tmp_path / "out.jsonl"
    with ResultsFile(path, {"seed": 1}, 2) as results:
        with pytest.raises(UserError, match=r"generate.output: .*out.jsonl is in use by process \d+ on .*; wait for it"):
            ResultsFile(path, {"seed": 2}, 2)
        results.write(0, {"a": 1})
        results.write(1, {"a": 2})
    assert [path.name for path in tmp_path.glob("*.lock")] == []
    assert ResultsFile(path, {"seed": 1}, 2).done == {0, 1}  # nobody holds it any more
