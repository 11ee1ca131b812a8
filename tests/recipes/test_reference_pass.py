"""The reference pass as a user sees it: stopped, it keeps what it has; the same command computes the rest, to the same bits."""

from __future__ import annotations

import re
import signal
import time

import numpy as np
import pytest

from align_jax import terminal
from align_jax.recipes.setup import Setup
from align_jax.scoring.reference import known
from tests.processes import finish, start_two_programs
from tests.recipes.test_train import train, world  # noqa: F401

BATCHES = 5  # of 8 rows
FIVE_STEPS = ("--train.steps", BATCHES, "--data.eval", "null")


class Watched:
    """The scorer of the pass: counts batches, and may do something else before one."""

    def __init__(self, monkeypatch):
        self.batches, self.before = 0, lambda number: None
        under = Setup.under

        def counted(setup, weights):
            real = under(setup, weights)

            class Scorer:
                mesh = real.mesh

                @staticmethod
                def batch(batch):
                    self.batches += 1
                    self.before(self.batches)
                    return real.batch(batch)

            return Scorer

        monkeypatch.setattr(Setup, "under", counted)


@pytest.fixture
def scorer(monkeypatch):
    return Watched(monkeypatch)


def table(folder):
    (file,) = folder.iterdir()
    return np.load(file)


@pytest.fixture(scope="module")
def expected(world):  # noqa: F811
    """The table of a pass that came to its end; then the run is stopped, since no training is needed."""
    folder, config = world
    with pytest.MonkeyPatch.context() as patch:
        Watched(patch).before = stop_in(BATCHES, signal.SIGTERM)
        assert ended(config, "--run.dir", folder / "run", "--reference.cache_dir", folder / "once", *FIVE_STEPS) == 143
    return table(folder / "once")


def stop_in(batch, number):
    return lambda count: signal.raise_signal(number) if count == batch else None


@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_stopped_it_keeps_its_batches_and_goes_on_to_the_same_bits(world, expected, scorer, capsys, number, status):  # noqa: F811
    folder, config = world
    run, cache = folder / f"run-{number}", folder / f"cache-{number}"
    more = ("--run.dir", run, "--reference.cache_dir", cache, *FIVE_STEPS)
    scorer.before = stop_in(2, number)
    assert ended(config, *more) == status
    said = capsys.readouterr().err
    cause = "Ctrl-C" if number == signal.SIGINT else "SIGTERM"
    assert "stopping after this batch of reference log-probs" in said
    assert f"stopped by {cause}: 16 of 40 rows have their reference log-probs, which are kept; the same command" in said
    assert scorer.batches == 2 and known(table(cache)).sum() == 16 and not run.exists()
    scorer.before = stop_in(BATCHES, number)
    assert ended(config, *more) == status
    (file,) = cache.iterdir()
    said = capsys.readouterr().err
    assert f"reference log-probs: 16 of 40 rows are there already, from {file}" in said
    assert scorer.batches == BATCHES
    np.testing.assert_array_equal(table(cache), expected)


def ended(config, *more):
    """The exit status of a command that is stopped."""
    try:
        return train(config, *more)
    except SystemExit as error:
        return error.code


def test_before_the_first_batch_it_stops_at_once(world, scorer, capsys):  # noqa: F811
    folder, config = world
    scorer.before = stop_in(1, signal.SIGTERM)
    assert ended(config, "--run.dir", folder / "none", "--reference.cache_dir", folder / "empty", *FIVE_STEPS) == 143
    assert "stopped by SIGTERM; nothing is lost that was made" in capsys.readouterr().err
    assert not list((folder / "empty").iterdir())


def test_piped_it_says_how_far_it_is(world, scorer, capsys, monkeypatch):  # noqa: F811
    folder, config = world
    monkeypatch.setattr(terminal, "PLAIN_SECONDS", 0.05)
    said, line = [], re.compile(r"^align-jax: reference log-probs: 32 of 40 rows, \d\d:\d\d left", re.M)

    def heard(count):
        for _ in range(6000):
            said.append(capsys.readouterr().err)
            if count < BATCHES or line.search("".join(said)):
                break
            time.sleep(0.02)
        stop_in(BATCHES, signal.SIGTERM)(count)

    scorer.before = heard
    options = ("--run.dir", folder / "piped", "--reference.cache_dir", folder / "said", "--log.progress", "true")
    assert ended(config, *options, *FIVE_STEPS) == 143
    assert line.search("".join(said)), said


_SLOW = """
import pathlib, sys, time
from align_jax.scoring.scorer import FixedScorer
real, begun = FixedScorer.batch, []
def slow(self, batch):
    begun.append(1)
    pathlib.Path(sys.argv[1], f"{len(begun)}-{__import__('os').environ['JAX_PROCESS_ID']}").touch()
    time.sleep(0.5)
    return real(self, batch)
FixedScorer.batch = slow
from align_jax.cli import main
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.slow
def test_two_processes_stop_after_the_same_batch_and_go_on_together(world, expected, tmp_path):  # noqa: F811
    folder, config = world
    command = ["train", config, "--run.dir", tmp_path / "run", "--reference.cache_dir", tmp_path / "cache", *FIVE_STEPS,
               "--train.groups_per_step", 4, "--train.steps", 10, "--mesh.data", 4]  # fmt: skip
    marks, again = tmp_path / "marks", tmp_path / "again"
    marks.mkdir(), again.mkdir()
    processes = start_two_programs(_SLOW, [marks, *command])
    while not (marks / "2-1").exists():
        assert processes[1].poll() is None, processes[1].stderr.read()
        time.sleep(0.05)
    processes[1].send_signal(signal.SIGTERM)  # one of them is enough
    said = [process.communicate(timeout=600)[1] for process in processes]
    assert [process.returncode for process in processes] == [143, 143], said
    assert "stopped by SIGTERM: " in said[0]
    kept = int(known(table(tmp_path / "cache")).sum())
    assert 8 <= kept < 40 and len(list(marks.iterdir())) == 2 * (kept // 4)
    said = finish(start_two_programs(_SLOW, [again, *command]))
    assert f"{kept} of 40 rows are there already" in said[0]
    assert len(list(again.iterdir())) == 2 * (40 - kept) // 4
    np.testing.assert_allclose(table(tmp_path / "cache"), expected, atol=1e-4)
