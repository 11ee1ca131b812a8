"""The list of a checkpoint's files: what is missing, cut or changed is named before anything is read."""

import json
import os

import jax
import jax.numpy as jnp
import pytest

from align_jax.errors import UserError
from align_jax.training import manifest
from align_jax.training.checkpoint import Checkpointer, DamagedCheckpointWarning
from align_jax.training.manifest import MANIFEST, DamagedFileError, check_files, write_manifest


def _write(folder, names=("a", "state/ocdbt.process_0/d/x", "state/ocdbt.process_1/d/y")):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(os.urandom(1000))
    write_manifest(folder)
    return folder


def _flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda path: path.unlink(), "state/ocdbt.process_1/d/y is missing"),
        (lambda path: os.truncate(path, 500), "state/ocdbt.process_1/d/y has 500 bytes, 1000 were written"),
        (_flip, r"state/ocdbt.process_1/d/y is not what was written \(its checksum differs\)"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, damage, message):
    assert check_files(_write(tmp_path))
    damage(tmp_path / "state/ocdbt.process_1/d/y")
    with pytest.raises(DamagedFileError, match=message):
        check_files(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"hash": "xxh3_64"}', '{"hash": "xxh3_64", "files": {"a": 3}}'])
def test_a_damaged_list_is_named(tmp_path, text):
    _write(tmp_path)
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(DamagedFileError, match="its file manifest.json cannot be read"):
        check_files(tmp_path)


def test_every_file_is_the_share_of_one_process(tmp_path):
    _write(tmp_path)
    _flip(tmp_path / "state/ocdbt.process_0/d/x")
    found = []
    for part in range(2):
        try:
            found.append(check_files(tmp_path, part, 2))
        except DamagedFileError:
            found.append(False)
    assert sorted(found) == [False, True]


def test_of_files_that_others_wrote_beyond_a_limit_only_the_size_is_known(tmp_path, monkeypatch):
    monkeypatch.setattr(manifest, "MOST_OF_OTHERS", 999)
    listed = json.loads((_write(tmp_path) / MANIFEST).read_text())["files"]
    assert {name for name, (_, value) in listed.items() if value is None} == {"state/ocdbt.process_1/d/y"}
    _flip(tmp_path / "state/ocdbt.process_1/d/y")
    assert check_files(tmp_path)  # the tensors have checksums of their own


@pytest.fixture
def folder(tmp_path):
    with Checkpointer(tmp_path / "checkpoints") as checkpointer:
        for step in (1, 2):
            checkpointer.save(step, {"w": jnp.arange(3000.0) + step}, {})
    return tmp_path / "checkpoints"


WANTED = {"w": jax.ShapeDtypeStruct((3000,), jnp.float32, sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0]))}


def test_every_file_of_a_checkpoint_is_listed_and_found_when_it_is_damaged(folder):
    for name in ("_CHECKPOINT_METADATA", "commit_success.txt"):  # not listed, and not needed
        (folder / "2" / name).unlink(missing_ok=True)
    listed = json.loads((folder / "2" / MANIFEST).read_text())["files"]
    there = {path.relative_to(folder / "2").as_posix() for path in (folder / "2").rglob("*") if path.is_file()}
    assert set(listed) == there - {MANIFEST}
    for name, (size, _) in listed.items():
        if size:
            whole = (folder / "2" / name).read_bytes()
            _flip(folder / "2" / name)
            with pytest.raises(UserError, match=f"/2 is damaged: .*its file {name} is not what was written"):
                Checkpointer(folder, read_only=True).restore(WANTED, step=2)
            (folder / "2" / name).write_bytes(whole)
    assert float(Checkpointer(folder, read_only=True).restore(WANTED)[0]["w"][0]) == 2


def test_without_a_list_the_tensors_are_checked_alone_and_that_is_said_once(folder, caplog):
    for step in (1, 2):
        (folder / str(step) / MANIFEST).unlink()
    checkpointer = Checkpointer(folder)
    for _ in range(2):
        assert float(checkpointer.restore(WANTED)[0]["w"][0]) == 2
    assert caplog.text.count("has no list of its files (an earlier version wrote it)") == 1
    data = max((folder / "2/state").rglob("*"), key=lambda path: path.stat().st_size if path.is_file() else 0)
    _flip(data)
    with pytest.warns(DamagedCheckpointWarning, match="/2 is damaged and not used"):
        assert float(checkpointer.restore(WANTED)[0]["w"][0]) == 1


def test_steps_that_stay_for_ever(tmp_path):
    with Checkpointer(tmp_path, keep=1, forever=3) as checkpointer:
        for step in range(1, 9):
            checkpointer.save(step, {"w": jnp.ones(2)}, {})
    assert checkpointer.steps() == [3, 6, 8]
