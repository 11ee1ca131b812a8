"""What a killed export leaves beside its folder, and what the next one does with it."""

import os
import socket
import subprocess
import sys

import pytest

from align_jax.errors import UserError
from align_jax.hf.folder import clear_left, written_whole

WRITES = """
import os, pathlib, signal, sys
from align_jax.hf import folder
out, where = pathlib.Path(sys.argv[1]), sys.argv[2]
if where == "between":
    rename = pathlib.Path.rename
    def renamed(self, target):
        found = rename(self, target)
        os.kill(os.getpid(), signal.SIGKILL)
    pathlib.Path.rename = renamed
with folder.written_whole(out) as made:
    (made / "config.json").write_text("new")
    if where == "within":
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("where", ["within", "between"])
def test_the_next_export_mends_what_a_killed_one_left(where, tmp_path, capsys):
    out = tmp_path / "model"
    out.mkdir()
    (out / "config.json").write_text("old")
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    assert subprocess.run([sys.executable, "-c", WRITES, out, where], env=environment).returncode == -9
    left = sorted(path.name for path in tmp_path.iterdir() if path.name.startswith("."))
    assert [name.rpartition(".")[2] for name in left] == {"within": ["tmp"], "between": ["old", "tmp"]}[where]
    assert out.exists() == (where == "within")
    clear_left(out)
    assert os.listdir(tmp_path) == ["model"] and (out / "config.json").read_text() == "old"
    said = capsys.readouterr().err
    assert "which an export left that was killed" in said and ("which is back" in said) == (where == "between")
    with written_whole(out) as made:
        (made / "config.json").write_text("new")
    assert os.listdir(tmp_path) == ["model"] and (out / "config.json").read_text() == "new"


def test_of_two_exports_at_a_time_the_second_says_so(tmp_path):
    out = tmp_path / "model"
    taken = "holds a model by now, of another export at the same time"
    with pytest.raises(UserError, match=taken), written_whole(out) as second:
        (second / "config.json").write_text("second")
        with written_whole(out) as first:
            (first / "config.json").write_text("first")
    assert os.listdir(tmp_path) == ["model"] and (out / "config.json").read_text() == "first"


def test_what_is_being_written_or_anothers_is_left_alone(tmp_path, capsys):
    out = tmp_path / "model"
    others = [f".model.{name}" for name in ("elsewhere-01234567.tmp", "01234567.tmp", f"{socket.gethostname()}-0123.tmp")]
    others.append(f".models.{socket.gethostname()}-01234567.tmp")
    for name in others:
        (tmp_path / name).mkdir()
    with written_whole(out) as made:
        clear_left(out)
        assert made.is_dir()
    assert sorted(os.listdir(tmp_path)) == sorted(["model", *others]) and capsys.readouterr().err == ""
