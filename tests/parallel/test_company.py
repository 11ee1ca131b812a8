"""While a job runs: a process that fails tells all, a lost one is noticed, and a good end is none of both."""

import socket
import sys
import threading
import time

import pytest

from align_jax.errors import UserError
from align_jax.parallel import company
from align_jax.parallel.company import Company, advising
from align_jax.parallel.launched import Launch
from align_jax.parallel.roll_call import LOST
from align_jax.parallel.wire import Wire

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # how a process ends here


class World:
    """Three processes in one: their companies, and how each ended."""

    def __init__(self, monkeypatch, capfd):
        self._capfd, self.ended, self._mine = capfd, {}, threading.local()
        self.people = [{"process": i, "of": 3, "host": f"host{i}", "pid": 10 + i} for i in range(3)]
        pairs = {i: [Wire(end) for end in socket.socketpair(socket.AF_UNIX)] for i in (1, 2)}
        self.wires = {0: {i: (pairs[i][0], self.people[i]) for i in (1, 2)}}
        self.wires |= {i: {0: (pairs[i][1], self.people[0])} for i in (1, 2)}
        world = self

        class Owned(Company):
            def _depart(self, status, said=""):
                world.ended.setdefault(self._launch.index, (status, said))
                if self._launch.index == 0:
                    world.last = set(world.ended)
                for wire, _ in self._wires.values():
                    wire.close()
                raise SystemExit  # quiet in a thread

        self.companies = [Owned(Launch("host0:1", 3, i), self.people[i], self.wires[i], "align-jax train a") for i in range(3)]

    def wait(self, *processes):
        until = time.monotonic() + 60
        while not set(processes) <= set(self.ended) and time.monotonic() < until:
            time.sleep(0.01)
        return [self.ended.get(i) for i in processes]

    def kill(self, i):
        self.companies[i]._ended = True  # a dead one says nothing
        for wire, _ in self.wires[i].values():
            wire.socket.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def world(monkeypatch, capfd):
    monkeypatch.setattr(company, "_GRACE", 0.1)
    monkeypatch.setattr(company, "_FIRST", 0.05)
    return World(monkeypatch, capfd)


@pytest.mark.parametrize("victim", [0, 2])
def test_a_lost_process_is_named_with_what_is_kept_and_what_to_start(world, victim):
    with advising(lambda: "the newest checkpoint is run/checkpoints/4"):
        began = time.monotonic()
        world.kill(victim)
        others = [i for i in range(3) if i != victim]
        expected = (
            f"process {victim} of 3 (host{victim}, pid 1{victim}) is lost; the newest checkpoint is run/checkpoints/4; "
            "start all 3 processes again: align-jax train a"
        )
        assert world.wait(*others) == [(LOST, expected)] * 2 and time.monotonic() - began < 20


@pytest.mark.parametrize("failing", [0, 1])
def test_one_that_fails_says_so_and_all_end_with_its_status(world, failing, capfd):
    with pytest.raises(SystemExit), world.companies[failing].guarding("train", lambda: None):
        raise UserError("disk: full")
    assert capfd.readouterr().err == "align-jax train: disk: full\n"
    line = f"process {failing} of 3 (host{failing}, pid 1{failing}) failed: disk: full"
    assert world.ended[failing] == (2, "")
    assert world.wait(*(i for i in range(3) if i != failing)) == [(2, line)] * 2


def test_the_same_error_on_all_is_said_once_by_each(world, capfd, monkeypatch):
    monkeypatch.setattr(company, "_GRACE", 60.0)  # an error of the same cause comes, however slow the machine

    def one(i):
        with pytest.raises(SystemExit), world.companies[i].guarding("train", lambda: None):
            raise UserError("train.steps: wrong")

    threads = [threading.Thread(target=one, args=(i,), daemon=True) for i in range(3)]
    for thread in threads:
        thread.start()
    assert {status for status, _ in world.wait(0, 1, 2)} == {2} and {said for _, said in world.ended.values()} == {""}
    assert capfd.readouterr().err.splitlines() == ["align-jax train: train.steps: wrong"] * 3


def test_where_nobody_reads_stderr_any_more_all_end_the_same(world, monkeypatch):
    class Closed:
        def write(self, text):
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stderr", Closed())
    with pytest.raises(SystemExit), world.companies[1].guarding("train", lambda: None):
        raise UserError("disk: full")
    assert [status for status, _ in world.wait(0, 1, 2)] == [2] * 3


def test_an_error_of_the_connections_is_not_told_when_another_process_is_the_cause(world, capfd):
    def broken():
        with world.companies[0].guarding("train", lambda: None):
            raise RuntimeError("Gloo AllGather failed: connection closed by peer")

    threading.Thread(target=broken, daemon=True).start()
    time.sleep(0.1)
    world.kill(1)
    (status, said), _ = world.wait(0, 2)
    assert status == LOST and said.startswith("process 1 of 3 (host1, pid 11) is lost; start all")
    assert capfd.readouterr().err == ""


def test_a_bug_of_one_has_its_traceback_there_and_a_line_elsewhere(world, capfd, monkeypatch):
    monkeypatch.setattr(company, "_BROKEN", 0.1)
    with pytest.raises(SystemExit), world.companies[1].guarding("train", lambda: None):
        raise KeyError("oops")
    assert "Traceback" in capfd.readouterr().err
    assert world.wait(0, 2) == [(1, "process 1 of 3 (host1, pid 11) failed: KeyError: 'oops'")] * 2


def test_ctrl_c_twice_ends_all_and_one_that_all_agreed_on_ends_in_order(world):
    with pytest.raises(KeyboardInterrupt), world.companies[1].guarding("train", lambda: None):
        raise KeyboardInterrupt("stopped after this step")
    with pytest.raises(SystemExit), world.companies[2].guarding("train", lambda: None):
        raise KeyboardInterrupt
    assert world.wait(0) == [(130, "process 2 of 3 (host2, pid 12) failed: interrupted")] and 1 not in world.ended


def test_after_a_good_end_nothing_is_lost(world):
    for i in (1, 2, 0):
        with world.companies[i].guarding("train", lambda: None):
            pass
        world.kill(i)
    time.sleep(0.2)
    assert world.ended == {} and all(one.ended for one in world.companies)


def test_what_jax_finds_is_said_where_nobody_else_saw_it(world, monkeypatch):
    left = []
    monkeypatch.setattr(company, "_DEPART", 0.05)
    monkeypatch.setattr(company, "_BROKEN", 0.05)
    monkeypatch.setattr(company, "leave", lambda line, status: left.append((line, status)))
    world.companies[1].gave_up()
    ((line, status),) = left
    assert status == LOST
    assert line.startswith("the 3 processes do not reach one another any more (seen by process 1); start all 3")
