"""SIGTERM and the first Ctrl-C are remembered in the main thread, and asked for nowhere else; Ctrl-C is heard at once."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import pytest
from jax.experimental import multihost_utils

from align_jax.parallel import stop as stop_module
from align_jax.parallel.stop import INTERRUPTED, StoppedPass, StopSignal, interruptible, leave_if_asked, listening

ROOT = Path(__file__).parents[2]


def test_sigterm_is_remembered_and_the_handler_before_comes_back():
    seen = []
    before = signal.signal(signal.SIGTERM, lambda *_: seen.append("before"))
    try:
        with StopSignal() as stop:
            assert not stop.requested()
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop.requested() and stop.requested()
        os.kill(os.getpid(), signal.SIGTERM)
        assert seen == ["before"]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_closed_terminal_is_a_sigterm_unless_it_is_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        with StopSignal(tell=lambda line: None) as stop:
            assert not stop.requested()
            signal.raise_signal(signal.SIGHUP)
            assert stop.requested()
        assert signal.signal(signal.SIGHUP, signal.SIG_IGN) == signal.SIG_DFL
        with StopSignal() as stop:
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_in_another_thread_it_never_fires():
    seen, handler = [], signal.getsignal(signal.SIGTERM)

    def work():
        with StopSignal() as stop:
            seen.append((stop.requested(), signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(False, handler)]


def test_the_first_ctrl_c_is_remembered_once_there_is_something_to_lose_and_the_second_is_raised():
    told, handler = [], signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        with StopSignal("this step", told.append) as stop:
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)  # nothing was asked yet: nothing is lost
            assert not stop.requested() and told == []
            signal.raise_signal(signal.SIGINT)
            assert stop.requested() and stop.cause == "Ctrl-C"
            assert told == ["stopping after this step; Ctrl-C again stops now"]
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
            assert len(told) == 1
    assert signal.getsignal(signal.SIGINT) is handler


def test_while_there_is_nothing_to_lose_ctrl_c_is_raised():
    with StopSignal(tell=lambda line: None) as stop:
        stop.requested()
        stop.idle()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert not stop.requested()


def test_an_error_is_not_hidden_by_the_ctrl_c_before_it():
    with pytest.raises(OSError, match="disk full"):
        with StopSignal(tell=lambda line: None) as stop:
            stop.requested()
            signal.raise_signal(signal.SIGINT)
            raise OSError("disk full")


def test_a_part_of_the_work_is_named_and_behind_it_nothing_is_lost():
    told = []
    with StopSignal("this step", told.append) as stop, listening() as same:
        assert same is stop
        with stop.during("this batch"):
            assert not stop.requested()
            signal.raise_signal(signal.SIGTERM)
            assert stop.requested() and told == ["stopping after this batch; Ctrl-C again stops now"]
        assert not stop.waits


@pytest.mark.parametrize("number, raised", [(signal.SIGTERM, StoppedPass), (signal.SIGINT, KeyboardInterrupt)])
def test_work_that_nobody_listens_for_listens_itself_and_ends_the_process(number, raised):
    before = signal.getsignal(number)
    with pytest.raises(raised):
        with listening() as stop:
            assert not stop.requested()
            signal.raise_signal(number)
            if stop.requested():
                raise StoppedPass
    assert signal.getsignal(number) is before


BUSY = """
import hashlib, sys
from align_jax.parallel.stop import StopSignal, cleaned_up, interruptible
with interruptible(), StopSignal("this step") as stop, cleaned_up(lambda: print("cleaned", file=sys.stderr)):
    if {asked}:
        stop.requested()
    print("busy", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)  # minutes of C code, as a compilation is: no handler of Python runs
"""


@pytest.mark.parametrize("asked, presses", [(False, 1), (True, 2)], ids=["nothing to lose", "pressed again"])
def test_ctrl_c_is_heard_although_the_main_thread_is_in_c_code(asked, presses):
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", BUSY.format(asked=asked)]
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "busy\n", process.stderr.read()
            time.sleep(0.2)  # in the C code by now
            said, began = [], time.monotonic()
            for _ in range(presses - 1):
                process.send_signal(signal.SIGINT)
                said.append(process.stderr.readline())
            process.send_signal(signal.SIGINT)
            said += process.stderr.read().splitlines(keepends=True)
            assert process.wait() == INTERRUPTED and time.monotonic() - began < 120
        finally:
            process.kill()
    asked_first = ["align-jax: stopping after this step; Ctrl-C again stops now\n"] if asked else []
    assert said == [*asked_first, "cleaned\n", "align-jax: interrupted\n"]


def test_a_remembered_ctrl_c_that_the_thread_hears_late_ends_nothing(monkeypatch):
    """The batch is done, and nothing is waited for any more, when the thread gets to hear of it."""
    left, late, hear = [], threading.Event(), StopSignal.hear
    monkeypatch.setattr(stop_module, "leave", lambda *_: left.append("the process"))
    monkeypatch.setattr(StopSignal, "hear", lambda stop: late.wait(60) and hear(stop))
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt, match="stopped after"), interruptible(), StopSignal(tell=lambda line: None) as stop:
        with stop.during("this batch"):
            assert not stop.requested()
            signal.raise_signal(signal.SIGINT)
            assert stop.requested()
        assert not stop.waits
        late.set()
    assert left == [] and stop._heard.is_set() and time.monotonic() - began < 60


def test_a_remembered_sigterm_that_the_thread_hears_late_has_no_deadline():
    def deadlines():
        (reader, writer), found = socket.socketpair(), []
        writer.send(bytes([signal.SIGTERM]))
        writer.close()
        stop_module._listen(reader, found)
        for deadline in found:
            deadline.cancel()
        return len(found)

    with StopSignal(tell=lambda line: None) as stop:
        assert deadlines() == 1  # nothing to lose: it has to be gone soon
        stop.requested()
        signal.raise_signal(signal.SIGTERM)
        assert deadlines() == 0
        stop.idle()
        assert deadlines() == 0


WORKING = """
import time
from align_jax.parallel.stop import GRACE_SECONDS, StopSignal, interruptible
with interruptible(), StopSignal(tell=lambda line: None) as stop:
    stop.requested()
    print("busy", flush=True)
    end = time.monotonic() + GRACE_SECONDS + 0.5
    while time.monotonic() < end:  # Python code: the main thread takes the signal before the other one hears it
        pass
    print(stop.requested(), flush=True)
"""


def test_what_the_main_thread_remembers_is_waited_for():
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", WORKING], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "busy\n", process.stderr.read()
        process.send_signal(signal.SIGINT)
        out, said = process.communicate(timeout=300)
    assert out == "True\n" and said.splitlines()[-1].startswith("KeyboardInterrupt")


DROPPED = """
import time
from align_jax.parallel.stop import interruptible
class Dropped:
    def __del__(self):
        print("busy", flush=True)
        time.sleep(60)  # ended by KeyboardInterrupt, which Python drops here
with interruptible():
    Dropped()
    time.sleep(60)
"""


def test_a_ctrl_c_that_python_drops_ends_the_process_all_the_same():
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", DROPPED], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "busy\n", process.stderr.read()
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=300)[1] == "align-jax: interrupted\n" and process.returncode == INTERRUPTED


def test_a_pass_that_keeps_nothing_is_left_between_its_batches():
    leave_if_asked()  # no work around it
    with pytest.raises(StoppedPass), StopSignal() as stop:
        leave_if_asked()
        assert not stop.waits  # nothing is lost: the next Ctrl-C stops at once
        stop.requested()  # from here on something is
        leave_if_asked()
        assert stop.waits
        signal.raise_signal(signal.SIGTERM)
        leave_if_asked()
    with StopSignal(), pytest.raises(SystemExit) as ended:
        leave_if_asked()
        signal.raise_signal(signal.SIGTERM)
    assert ended.value.code == 143


def test_of_several_processes_the_numbers_of_questions_only_grow(monkeypatch):
    """The preemption service has all stop at one number: a signal that counted anew would be past it, or never reach it."""
    asked = []
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    reached = lambda number: asked.append(number) or len(asked) == 3  # noqa: E731
    monkeypatch.setattr(multihost_utils, "reached_preemption_sync_point", reached)
    for _ in range(2):
        with StopSignal() as stop:
            stop.requested()
            stop.requested()
    assert stop.heard and len(asked) == 3 and asked == list(range(asked[0], asked[0] + 3))
