"""Checkpoints: what is saved comes back, on any mesh; damage and failed writes lose nothing and are named."""

from __future__ import annotations

import gc
import logging
import os
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
import time
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from align_jax.errors import UserError
from align_jax.training.checkpoint import Checkpointer, DamagedCheckpointWarning, flatten_names
from align_jax.training.read_checkpoint import CheckpointReader


def _state(step: int, width: int = 8):
    params = {
        "embed": jnp.arange(16 * width, dtype=jnp.float32).reshape(16, width) * 0.1 + step,
        "layers": {"q": jnp.full((2, width, 4), step + 0.5, jnp.bfloat16)},
    }
    return {"params": params, "opt_state": optax.adamw(1e-3).init(params), "step": jnp.int32(step)}


def _abstract(state, sharding=None):
    sharding = sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), state)


def _assert_equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A folder with checkpoints of steps 1 and 2, to be copied."""
    folder = tmp_path_factory.mktemp("saved") / "checkpoints"
    checkpointer = Checkpointer(folder)
    for step in (1, 2):
        checkpointer.save(step, _state(step), {"iterator": {"row": step}, "config": "a: 1"}, {"loss": 1.0 / step})
    checkpointer.close()
    return folder


@pytest.fixture
def folder(saved, tmp_path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "checkpoints"))


def test_a_save_takes_no_part_in_the_agreement_on_when_to_stop(tmp_path, monkeypatch):
    """Orbax would ask by the step's number, and a SIGTERM that came during a save be lost to the loop, which counts anew."""
    asked = []
    monkeypatch.setattr(multihost_utils, "reached_preemption_sync_point", lambda number: asked.append(number) or False)
    with Checkpointer(tmp_path / "checkpoints", keep=1) as checkpointer:
        for step in (1, 2, 3):
            checkpointer.save(step, _state(step), {})
    assert not asked


def test_roundtrip_of_arrays_and_json(folder):
    checkpointer = Checkpointer(folder)
    assert checkpointer.steps() == [1, 2] and checkpointer.latest_step() == 2
    state, extra = checkpointer.restore(_abstract(_state(0)))
    _assert_equal(state, _state(2))
    assert extra == {"iterator": {"row": 2}, "config": "a: 1"}
    older, extra = checkpointer.restore(_abstract(_state(0)), step=1)
    _assert_equal(older, _state(1))
    assert extra["iterator"] == {"row": 1}


def test_an_empty_folder_has_nothing_to_restore(tmp_path):
    checkpointer = Checkpointer(tmp_path / "new")
    assert checkpointer.restore(_abstract(_state(0))) is None
    assert checkpointer.latest_step() is None and checkpointer.steps() == []


def test_a_restart_on_another_mesh(tmp_path):
    one = jax.make_mesh((2, 4), ("data", "fsdp"))
    two = jax.make_mesh((4, 2), ("fsdp", "tensor"))
    value = np.arange(64.0, dtype=np.float32).reshape(8, 8)
    before = {"w": jax.device_put(value, NamedSharding(one, PartitionSpec("fsdp", "data")))}
    checkpointer = Checkpointer(tmp_path)
    checkpointer.save(1, before, {})
    target = NamedSharding(two, PartitionSpec("tensor", "fsdp"))
    after, _ = checkpointer.restore(_abstract(before, target))
    assert after["w"].sharding == target
    np.testing.assert_array_equal(after["w"], value)


def test_names_are_the_same_for_a_dict_and_an_nnx_state():
    class Model(nnx.Module):
        def __init__(self):
            self.norm = nnx.Param(jnp.ones(3))

    names = list(flatten_names({"params": nnx.state(Model()), "step": jnp.int32(0)})[0])
    assert (
        names
        == list(flatten_names({"params": {"norm": jnp.ones(3)}, "step": jnp.int32(0)})[0])
        == ["params.norm", "step"]
    )
    with pytest.raises(ValueError, match="two tensors of the state are named 'a.b'"):
        flatten_names({"a": {"b": 1}, "a.b": 2})


def test_a_subset_is_read_without_the_optimizer(folder):
    wanted = {"params": jax.tree.map(lambda x: x.astype(jnp.float32), _state(0)["params"])}
    state, _ = Checkpointer(folder, read_only=True).restore(_abstract(wanted), subset=True)
    _assert_equal(state["params"]["embed"], _state(2)["params"]["embed"])
    np.testing.assert_array_equal(state["params"]["layers"]["q"], np.full((2, 8, 4), 2.5, np.float32))


def test_arrays_may_be_donated_right_after_save(tmp_path):
    checkpointer = Checkpointer(tmp_path, keep=10)
    advance = jax.jit(lambda x: x + 1, donate_argnums=0)
    array = jnp.zeros((512, 512))
    for step in range(4):
        checkpointer.save(step, {"w": array}, {})
        for _ in range(5):
            array = advance(array)
    checkpointer.wait()
    for step in range(4):
        state, _ = checkpointer.restore({"w": array}, step=step)
        np.testing.assert_array_equal(state["w"], np.full((512, 512), 5.0 * step, np.float32))


@pytest.mark.parametrize(
    "mode, losses, kept", [("min", [3, 1, 2, 4, 5], [1, 3, 4]), ("max", [3, 9, None, 4, 5], [1, 3, 4])]
)
def test_keeps_the_newest_and_the_best(tmp_path, mode, losses, kept):
    checkpointer = Checkpointer(tmp_path, keep=2, best_metric="loss", best_mode=mode)
    for step, loss in enumerate(losses):
        checkpointer.save(step, {"w": jnp.ones(2)}, {}, {} if loss is None else {"loss": loss})
    checkpointer.wait()
    assert checkpointer.steps() == kept


def test_the_best_survives_a_restart_and_nan_is_never_best(tmp_path):
    for step, loss in enumerate([1.0, float("nan"), 2.0, 3.0, 4.0]):
        checkpointer = Checkpointer(tmp_path, keep=1, best_metric="loss")
        checkpointer.save(step, {"w": jnp.ones(2)}, {}, {"loss": loss})
        checkpointer.close()
    assert checkpointer.steps() == [0, 4]


def _damage(path: Path, how: str) -> None:
    data = path.read_bytes()
    if how == "delete":
        path.unlink()
    elif how == "truncate":
        path.write_bytes(data[: len(data) // 2])
    else:
        path.write_bytes(data[:-30] + bytes([data[-30] ^ 1]) + data[-29:])


def _largest(folder: Path) -> Path:
    return max((file for file in folder.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)


@pytest.mark.parametrize("how", ["delete", "truncate", "flip a bit"])
@pytest.mark.parametrize("what", ["tensors", "extra/metadata", "state/_METADATA", "state/manifest.ocdbt"])
def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_is_used(folder, what, how):
    path = _largest(folder / "2" / "state") if what == "tensors" else folder / "2" / what
    if what != "tensors" and how == "flip a bit":
        path.write_bytes(b"\x84" + path.read_bytes()[1:])
    else:
        _damage(path, how)
    checkpointer = Checkpointer(folder, best_metric="loss")
    with pytest.warns(DamagedCheckpointWarning, match=rf"{folder}/2 is damaged and not used: \w+") as caught:
        state, extra = checkpointer.restore(_abstract(_state(0)))
    assert len([w for w in caught if w.category is DamagedCheckpointWarning]) == 1
    _assert_equal(state, _state(1))
    assert extra["iterator"] == {"row": 1} and checkpointer.steps() == [1]
    checkpointer.save(2, _state(2), {"iterator": {"row": 2}})
    checkpointer.close()
    with warnings.catch_warnings():
        warnings.simplefilter("error", DamagedCheckpointWarning)
        _assert_equal(Checkpointer(folder).restore(_abstract(_state(0)))[0], _state(2))
    assert (folder / "damaged-2").is_dir()


def test_a_bit_flip_in_a_tensor_is_named(folder):
    _damage(_largest(folder / "2" / "state"), "flip a bit")
    with pytest.warns(DamagedCheckpointWarning, match="checksum differs|Error|error"):
        Checkpointer(folder).restore(_abstract(_state(0)))
    with pytest.raises(UserError, match=r"/2 is damaged: .*; choose one of \[1, 2\]"):
        Checkpointer(folder).restore(_abstract(_state(0)), step=2)


def test_a_checkpoint_under_another_steps_name_is_not_used(folder):
    shutil.copytree(folder / "1", folder / "7")
    named = "7 is damaged .* the checkpoint of step 1"
    with Checkpointer(folder) as checkpointer, pytest.warns(DamagedCheckpointWarning, match=named):
        found = checkpointer.restore(_abstract(_state(0)))
    assert found[1]["iterator"]["row"] == 2


def test_a_checkpoint_that_replaces_the_one_that_is_read_is_taken(saved, tmp_path, monkeypatch):
    folder = tmp_path / "training"
    shutil.copytree(saved / "1", folder / "1")
    real = CheckpointReader._check_files

    def replaced(self, which):
        if which.name == "1":
            shutil.rmtree(folder / "1")
            shutil.copytree(saved / "2", folder / "2")
        real(self, which)

    monkeypatch.setattr(CheckpointReader, "_check_files", replaced)
    with Checkpointer(folder, read_only=True) as checkpointer, pytest.warns(DamagedCheckpointWarning):
        assert checkpointer.restore(_abstract(_state(0)))[1]["iterator"]["row"] == 2


def test_when_all_are_damaged_training_does_not_start_over(folder):
    for step in "12":
        (folder / step / "extra" / "metadata").write_text("{")
    with pytest.warns(DamagedCheckpointWarning), pytest.raises(UserError, match=r"none of the checkpoints \[1, 2\]"):
        Checkpointer(folder).restore(_abstract(_state(0)))


def test_an_unfinished_folder_is_not_a_checkpoint(folder):
    shutil.copytree(folder / "2", folder / "3.orbax-checkpoint-tmp")
    assert Checkpointer(folder, read_only=True).latest_step() == 2
    assert (folder / "3.orbax-checkpoint-tmp").exists()


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda s: s["params"].update(embed=jnp.zeros((16, 4))),
            r"'params.embed' has shape \(16, 8\), the run has \(16, 4\)",
        ),
        (lambda s: s["params"].update(lora=jnp.zeros(3)), r"no tensor 'params.lora' of shape \(3,\)"),
        (lambda s: s["params"].pop("embed"), "has a tensor 'params.embed' that the run does not"),
        (
            lambda s: s["params"].update(embed=jnp.zeros((16, 8), jnp.bfloat16)),
            "'params.embed' is float32, the run has bfloat16",
        ),
    ],
)
def test_another_models_checkpoint_is_refused(folder, change, message):
    state = _state(0)
    change(state)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserError, match=rf"{folder}/2.*{message}"):
            Checkpointer(folder).restore(_abstract(state))


def test_user_errors_name_the_value(folder, tmp_path):
    checkpointer = Checkpointer(folder)
    with pytest.raises(UserError, match=r"no checkpoint of step 7 .* there are \[1, 2\]"):
        checkpointer.restore(_abstract(_state(0)), step=7)
    with pytest.raises(UserError, match="checkpoint of step 2 already exists"):
        checkpointer.save(2, _state(2), {})
    with pytest.raises(ValueError, match="must be JSON"):
        checkpointer.save(3, _state(3), {"iterator": object()})
    with pytest.raises(UserError, match="keep: 0"):
        Checkpointer(tmp_path, keep=0)
    with pytest.raises(UserError, match="best_mode: 'best'"):
        Checkpointer(tmp_path, best_mode="best")
    with pytest.raises(UserError, match="nowhere does not exist"):
        Checkpointer(tmp_path / "nowhere", read_only=True)


def test_a_full_disk_is_an_error_and_earlier_checkpoints_stay(tmp_path):
    state = {"w": jnp.asarray(np.random.default_rng(0).normal(size=(512, 512)).astype(np.float32))}
    checkpointer = Checkpointer(tmp_path, keep=1, best_metric="loss")
    checkpointer.save(1, state, {}, {"loss": 1.0})
    checkpointer.wait()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    try:
        checkpointer.save(2, state, {}, {"loss": 0.5})
        with pytest.raises(UserError, match=r"checkpoint of step 2 to .*File too large.*steps \[1\] are intact"):
            checkpointer.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert checkpointer.steps() == [1]
    checkpointer.save(3, state, {}, {"loss": 2.0})
    checkpointer.close()
    assert Checkpointer(tmp_path, best_metric="loss").steps() == [1, 3]


_KILLED = """
    import sys
    import jax.numpy as jnp
    from align_jax.training.checkpoint import Checkpointer

    checkpointer = Checkpointer(sys.argv[1], keep=2)
    first = (checkpointer.latest_step() or 0) + 1
    for step in range(first, 10_000):
        checkpointer.save(step, {"w": jnp.full((256, 1024), step, jnp.float32)}, {"row": step})
"""


def test_sigkill_at_any_moment_leaves_a_readable_newest(tmp_path):
    folder = tmp_path / "checkpoints"
    for round_, delay in enumerate((0.013, 0.171)):
        reached = Checkpointer(folder).latest_step() or 0
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(_KILLED), str(folder)],
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 600
        while (Checkpointer(folder, read_only=True).latest_step() or 0) < reached + 2:
            assert process.poll() is None and time.monotonic() < deadline, f"round {round_}: the child saved nothing"
            time.sleep(0.02)
        time.sleep(delay)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        with warnings.catch_warnings():
            warnings.simplefilter("error", DamagedCheckpointWarning)
            state, extra = Checkpointer(folder).restore({"w": jnp.zeros((256, 1024))})
        np.testing.assert_array_equal(state["w"], np.full((256, 1024), extra["row"], np.float32))


@pytest.mark.parametrize(
    "keep, every, steps, left",
    [
        (2, None, [3, 7, 11], [7, 11]),
        (2, 10, [10, 20, 23, 27], [20, 27]),
        (1, 10, [10, 20, 23], [23]),
        (3, 10, [3, 7, 11], [3, 7, 11]),
        (3, 50, [60, 120, 123, 150, 151], [123, 150, 151]),
        (5, 10, [1, 2, 3], [1, 2, 3]),
    ],
)
def test_those_of_every_stay_rather_than_others(tmp_path, keep, every, steps, left):
    with Checkpointer(tmp_path, keep=keep, every=every) as checkpointer:
        for step in steps:
            checkpointer.save(step, {"w": jnp.zeros(2)}, {})
    assert Checkpointer(tmp_path, read_only=True).steps() == left


def test_the_best_step(tmp_path):
    with Checkpointer(tmp_path, keep=9, best_metric="loss") as checkpointer:
        assert checkpointer.best_step() is None
        for step, loss in ((1, 2.0), (2, 1.0), (3, 1.0), (4, 3.0)):
            checkpointer.save(step, {"w": jnp.zeros(2)}, {}, {"loss": loss})
    assert Checkpointer(tmp_path, best_metric="loss", read_only=True).best_step() == 3
    assert Checkpointer(tmp_path, best_metric="loss", best_mode="max", read_only=True).best_step() == 4


def test_a_full_disk_is_one_line_and_no_traceback(tmp_path, monkeypatch):
    gc.collect()  # Checkpointers that other tests left open take their filters with them
    absl, heard, text = logging.getLogger("absl"), [], "RESOURCE_EXHAUSTED: Error writing x [os_error_code='28']"
    handler = logging.Handler()
    handler.emit = heard.append
    absl.addHandler(handler)
    filters = list(absl.filters)
    log = lambda: absl.handle(absl.makeRecord("absl", logging.ERROR, "/lib/orbax/future.py", 1, text, (), None))  # noqa: E731
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, {"w": jnp.ones(2000)}, {})
        checkpointer.wait()
        real = checkpointer._manager.wait_until_finished

        def full():
            real()
            log()
            raise ValueError(text)

        checkpointer.save(2, {"w": jnp.ones(2000)}, {})
        monkeypatch.setattr(checkpointer._manager, "wait_until_finished", full)
        with pytest.raises(UserError, match=r"failed: No space left on device \([\d.]+ GB are free, a checkpoint takes 8e-06"):
            checkpointer.wait()
        monkeypatch.undo()
    absl.removeHandler(handler)
    assert heard == [] and set(absl.filters) <= set(filters)  # behind it errors are heard again
