"""The attention backend is decided once, for rows and program alike, and a user is told where it is not the device's own."""

from __future__ import annotations

import dataclasses
import datetime
import re
import types

import jax
import numpy as np
import pytest

import align_jax
from align_jax.config import Config
from align_jax.cost.length_data import GroupLengths, LengthData
from align_jax.errors import UserError
from align_jax.files import write_whole
from align_jax.models.attention import backends
from align_jax.recipes import setup as job
from align_jax.recipes.bench import bench
from align_jax.recipes.models import starting_model
from align_jax.recipes.say import speaking
from align_jax.recipes.setup import Setup, on_its_day

SHAPE = {"vocab_size": 64, "width": 32, "mlp_width": 48, "layers": 2, "heads": 4, "kv_heads": 2, "head_size": 8}


@pytest.fixture
def gpu(monkeypatch):
    """A setup as it would be on a GPU with a cuDNN: `gpu(attention, **shape)`."""
    monkeypatch.setattr(backends.cudnn_kernels, "installed", lambda: 91002)
    monkeypatch.setattr(backends, "_capability", lambda: 9.0)
    device = types.SimpleNamespace(platform="gpu")
    names = ("data", "fsdp", "tensor")
    mesh = types.SimpleNamespace(devices=np.array([[[device]]]), shape=dict.fromkeys(names, 1), axis_names=names)

    def make(attention="auto", dtype="bfloat16", data=None, sequence=1, **shape):
        model = {"config": SHAPE | shape, "dtype": dtype, "attention": attention}
        values = {"model": model, "objective": {"name": "mpo"}, "data": data or {}, "run": {"dir": "unused"}}
        values["mesh"] = {"sequence": sequence}
        config = Config.of(values)
        return Setup(config, mesh, starting_model(config))

    return make


def test_rows_and_program_get_one_backend(gpu, capsys):
    for setup, backend in ((gpu(), "cudnn"), (gpu(head_size=12), "xla"), (gpu("xla"), "xla"), (gpu("triton"), "triton")):
        assert (setup.backend, setup.scorer.attention) == (backend, backend)
        assert setup.layout.pack == (backend != "cudnn")
    assert capsys.readouterr().err.count("model.attention") == 1


# The width of LLaMA-3-8B: a position costs as much as tens of thousands of attended keys.
WIDE = dict(vocab_size=128256, width=4096, mlp_width=14336, layers=2, heads=32, kv_heads=8, head_size=128)


def test_packing_is_weighed_against_a_slower_attention_on_a_gpu(gpu, capsys):
    with speaking(quiet=False):
        setup = gpu(**WIDE)
        assert (setup.backend, setup.layout.pack) == ("xla", True)
    assert capsys.readouterr().err == (
        "align-jax: model.attention: auto takes xla: rows hold several prompts and responses (data.pack)\n"
    )
    for others in (gpu(data={"pack": False}, **WIDE), gpu("cudnn", **WIDE), gpu(data={"max_prompt_tokens": 10**5}, **WIDE)):
        assert (others.backend, others.layout.pack) == ("cudnn", False)


def test_rows_are_packed_on_a_tpu(gpu, capsys):
    with speaking(quiet=False):
        for data, attention, backend in (({}, "auto", "pallas"), ({"pack": False}, "auto", "splash"), ({}, "splash", "splash")):
            setup = gpu(attention, data=data)
            setup.mesh.devices.flat[0].platform = "tpu"
            assert (setup.backend, setup.layout.pack) == (backend, backend == "pallas")
    assert capsys.readouterr().err == (
        "align-jax: model.attention: auto takes pallas: rows hold several prompts and responses (data.pack)\n"
    )


def test_rows_that_are_cut_need_a_backend_that_takes_them(gpu, capsys):
    with speaking(quiet=False):
        for platform, data, backend in (("gpu", {}, "xla"), ("tpu", {"pack": False}, "pallas")):
            setup = gpu(data=data, sequence=24, width=96)
            setup.mesh.devices.flat[0].platform = platform
            assert (setup.backend, setup.scorer.sequence) == (backend, 24)
            assert setup.layout.multiple % 48 == 0
            said = f"align-jax: model.attention: {backend}, for rows that are cut over mesh.sequence: 24 devices\n"
            assert capsys.readouterr().err == said
    for name in ("cudnn", "splash"):
        with pytest.raises(UserError, match=f"model.attention: '{name}' takes whole rows, and mesh.sequence: 2 cuts them; set"):
            gpu(name, sequence=2).backend  # noqa: B018
    with pytest.raises(UserError, match="mesh.sequence: 24 and mesh.fsdp: 1 cut weights in 24 parts, .* width 100"):
        gpu(sequence=24, width=100).backend  # noqa: B018


def test_a_job_says_once_why_it_is_slower(gpu, capsys):
    with speaking(quiet=False):
        setup = gpu(head_size=12)
        with speaking(quiet=False):
            for _ in range(2):
                assert dataclasses.replace(setup).backend == "xla"
    said = capsys.readouterr().err
    assert said == (
        "align-jax: model.attention: auto takes xla here, which is slower: cuDNN's kernels take head sizes that are "
        "multiples of 8 up to 256, this model has 12\n"
    )
    with speaking(quiet=False):
        assert dataclasses.replace(setup).backend == "xla"
    assert capsys.readouterr().err == said  # another job
    with speaking(quiet=True):
        assert dataclasses.replace(setup).backend == "xla"
    assert capsys.readouterr().err == ""


def test_idle_devices_are_told_but_not_those_of_a_cpu(monkeypatch, capsys):
    config = Config.of({"model": {"config": SHAPE, "dtype": "float32"}, "objective": {"name": "mpo"}})
    with speaking(quiet=False):
        Setup.of(config)
        assert capsys.readouterr().err == ""
        monkeypatch.setattr("jax.default_backend", lambda: "tpu")
        Setup.of(config)
    said = "align-jax: mesh: data 1 x fsdp 1 x tensor 1 uses 1 of 8 devices, and the others are idle"
    assert capsys.readouterr().err.startswith(said)


@pytest.mark.parametrize(
    "gib, said",
    [
        (0.00001, "the model does not fit a device: weights, gradients and two moments take 0.000"),
        (0.003, "by an estimate more do not fit a device"),
        (1.0, ""),
    ],
)
def test_memory_that_holds_not_even_the_model_is_told_from_memory_that_holds_some_rows(gib, said, capsys):
    batch = types.SimpleNamespace(tokens=np.zeros((1, 64, 16), np.int32), prompt_tokens=np.zeros((1, 1, 8), np.int32))
    values = {"model": {"config": SHAPE, "dtype": "float32"}, "objective": {"name": "mpo"}, "mesh": {"memory_gib": gib}}
    with speaking(quiet=False):
        Setup.of(Config.of(values)).say_chunks(batch)
    err = capsys.readouterr().err
    assert said in err and (said or not err) and err.count("at a time") == bool(said)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"head_size": 12}, "take head sizes that are multiples of 8"),
        ({"dtype": "float32"}, "model.dtype bfloat16 or float16, got float32"),
        ({"sliding_window": 100}, r"no kernel for a sliding window \(100 tokens\)"),
    ],
)
def test_a_backend_that_was_asked_for_is_refused_before_anything_is_compiled(gpu, options, message):
    with pytest.raises(UserError, match=f"'cudnn' cannot be used: .*{message}.*; set model.attention: auto"):
        _ = gpu("cudnn", **options).backend


@pytest.mark.parametrize(
    "window, data, backend",
    [
        (4096, {"max_prompt_tokens": 1024, "max_response_tokens": 1024}, "cudnn"),  # 1024 and 2048 positions
        (4096, {"max_prompt_tokens": 2048, "max_response_tokens": 2048}, "xla"),
        (600, {"max_prompt_tokens": 128, "max_response_tokens": 1}, "cudnn"),  # samples of 128 tokens are scored, too
        (300, {"max_prompt_tokens": 128, "max_response_tokens": 1}, "xla"),
        (4096, {"max_prompt_tokens": 10**6}, "xla"),
        (None, {"max_prompt_tokens": 10**6}, "cudnn"),
    ],
)
def test_a_window_matters_where_rows_are_longer(gpu, window, data, backend):
    assert gpu(data=data, sliding_window=window).backend == backend


def test_the_day_is_that_of_the_runs_start(tmp_path, monkeypatch):
    class Later(datetime.date):
        @classmethod
        def today(cls):
            return cls(2031, 5, 6)

    values = {"model": {"config": SHAPE}, "objective": {"name": "mpo"}, "run": {"dir": str(tmp_path / "run")}}
    first = on_its_day(Config.of(values))
    assert first.data.date == datetime.date.today().isoformat()
    write_whole(tmp_path / "config.yaml", first.to_yaml())
    (tmp_path / "run").mkdir()
    (tmp_path / "config.yaml").rename(tmp_path / "run" / "config.yaml")
    monkeypatch.setattr(job.datetime, "date", Later)
    assert on_its_day(Config.of(values)).data.date == first.data.date  # resumed, years later
    assert on_its_day(Config.of(values | {"run": {"dir": str(tmp_path / "other")}})).data.date == "2031-05-06"
    assert on_its_day(Config.of(values | {"data": {"date": "2024-07-26"}})).data.date == "2024-07-26"
    # Another day is no other run.
    assert Config.of(values | {"run": {}}).run.dir == Config.of(values | {"run": {}, "data": {"date": "2024-07-26"}}).run.dir


NARROW = dict(vocab_size=64, width=64, mlp_width=64, layers=2, heads=16, kv_heads=16, head_size=128)
SHORT, LONG = [GroupLengths(60, (200, 20, 30, 90))] * 8, [GroupLengths(1000, (1000, 990))] * 8


@pytest.mark.parametrize("shape, lengths, backend", [(WIDE, SHORT, "xla"), (NARROW, SHORT, "cudnn"), (WIDE, LONG, "cudnn")])
def test_lengths_decide_how_rows_are_filled_on_a_gpu(shape, lengths, backend, gpu, capsys):
    setup = gpu(data={"max_prompt_tokens": 1024, "max_response_tokens": 1024}, **shape)
    data = LengthData(lengths, setup.config.data, setup.objective)
    with speaking(quiet=False):
        loader = setup.loader(data)
        assert (setup.backend, setup.scorer.attention) == (backend, backend)
    assert next(loader).packed == setup.layout.pack == (backend == "xla")
    said = capsys.readouterr().err
    ratio = float(re.search(r"rows packed for xla take (\d+\.\d\d) of the time of one response a row for cudnn", said)[1])
    assert (ratio < 1) == (backend == "xla") == ("auto takes xla: rows hold several" in said)


def test_what_cudnn_cannot_do_needs_no_estimate(gpu, capsys):
    setup = gpu(sliding_window=100, **WIDE)
    with speaking(quiet=False):
        loader = setup.loader(LengthData(SHORT, setup.config.data, setup.objective))
    assert (setup.backend, next(loader).packed) == ("xla", True)
    said = capsys.readouterr().err
    assert said.count("model.attention") == 1 and "cuDNN has no kernel for a sliding window (100 tokens)" in said


@pytest.mark.parametrize("job", [align_jax.train, bench])
def test_jobs_refuse_64_bits_before_anything_is_read(job, tmp_path):
    told = {"model": {"path": "nowhere"}, "data": {"train": "nowhere.jsonl"}, "objective": {"name": "dpo"}}
    jax.config.update("jax_enable_x64", True)
    try:
        with pytest.raises(UserError, match="jax_enable_x64 is on"):
            job(Config.of(told, f"run.dir={tmp_path / 'run'}"))
    finally:
        jax.config.update("jax_enable_x64", False)
