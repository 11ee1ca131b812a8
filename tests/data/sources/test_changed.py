"""A file that is changed, shrinks or vanishes while it is read is named; one that was only touched is read on."""

import os

import pytest

from align_jax.data.sources.json_files import open_json
from align_jax.errors import UserError

ROWS = '{"prompt": "a"}\n{"prompt": "b"}\n'


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(ROWS)
    return path


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda path: path.unlink(), r"rows.jsonl is gone, and was in use"),
        (lambda path: os.truncate(path, 16), "rows.jsonl was changed while it was in use: it had 32 bytes, and has 16 now"),
        (lambda path: path.write_text(ROWS.replace("b", "c")), "rows.jsonl was changed while it was in use"),
    ],
)
def test_a_file_that_changes_is_named(file, change, message):
    source = open_json(file)
    assert source[1] == {"prompt": "b"}
    change(file)
    if file.exists():
        os.utime(file, (1, 1))
    for _ in range(2):
        with pytest.raises(UserError, match=message):
            source[0]


def test_a_file_that_was_touched_or_put_back_is_read_on(file):
    source = open_json(file)
    os.utime(file, (1, 1))
    assert source[0] == {"prompt": "a"}
    file.unlink()
    file.write_text(ROWS)
    assert source[1] == {"prompt": "b"}
