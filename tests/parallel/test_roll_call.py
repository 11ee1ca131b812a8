"""Processes meet: who is missing is said, who was told other things is named, and all hear why the job does not begin."""

import re
import socket
import threading
import time

import pytest

from align_jax.errors import UserError
from align_jax.parallel import roll_call
from align_jax.parallel.facts import PACKAGES, differences, facts_of_process, named
from align_jax.parallel.launched import Launch
from align_jax.parallel.roll_call import LOST, FailedElsewhere, MissingProcess, hello_of, receive_first, report
from tests.processes import free_address


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(roll_call, "_TIMES", (0.3, 0.9, 5.0))
    monkeypatch.setattr(roll_call, "LINGER_SECONDS", 2.0)
    monkeypatch.setattr(roll_call, "_TAKEN_SECONDS", 0.5)


def _meet(hellos, limit=60.0, address=None):
    """What each process found or raised, and what each said: `{process: result}`, `{process: lines}`."""
    found, said, address = {}, {}, address or free_address()

    def one(place, index, number, facts, failed=None):
        launch, lines = Launch(address, number, index), said.setdefault(place, [])
        try:
            meet = receive_first if index == 0 else report
            found[place] = meet(launch, hello_of(launch, facts, failed), limit, lines.append)
        except UserError as error:
            found[place] = error

    threads = [threading.Thread(target=one, args=(place, *hello)) for place, hello in enumerate(hellos)]
    for thread in threads:
        thread.start()
        time.sleep(0.02)
    for thread in threads:
        thread.join(120)
    return found, said


def test_three_meet_and_the_port_is_free_again():
    address = free_address()
    found, said = _meet([(2, 3, {"a": 1}), (0, 3, {"a": 1}), (1, 3, {"a": 1})], address=address)
    assert sorted(found[1]) == [1, 2] and found[0][1]["process"] == found[2][1]["process"] == 0
    assert {1: found[1][1][1]["process"], 2: found[1][2][1]["process"]} == {1: 1, 2: 2} and said == {0: [], 1: [], 2: []}
    with socket.create_server(("", int(address.rpartition(":")[2]))):  # as JAX's service does, while the wires stay
        wire, _ = found[0]
        found[1][2][0].send({"there": 1})
        assert wire.receive() == [{"there": 1}]


def test_a_difference_is_named_key_by_key_on_all():
    facts = {"config train.steps": 4, "config run.seed": 3, "jax": "0.10"}
    other = {**facts, "config train.steps": 6, "config more": None, "jax": "0.12"}
    found, _ = _meet([(0, 3, facts), (1, 3, facts), (2, 3, other)])
    expected = (
        "the processes were told different things; start all alike: config more: not set on processes 0, 1, None on process 2; "
        "config train.steps: 4 on processes 0, 1, 6 on process 2; jax: '0.10' on processes 0, 1, '0.12' on process 2"
    )
    assert {str(error) for error in found.values()} == {expected} and len(found) == 3


def test_one_that_does_not_come_is_waited_for_and_named():
    began = time.monotonic()
    found, said = _meet([(0, 3, {}), (2, 3, {})], limit=4.0)
    assert time.monotonic() - began < 20
    assert all(isinstance(error, MissingProcess) and error.status == LOST == 75 for error in found.values())
    # Process 2, with the same limit, may have given up, and gone, a moment before.
    assert re.match("process(es)? 1(, 2)? of 3 did not come to localhost:", str(found[0]))
    assert any(re.match("waiting at localhost:.* for process 1 of 3, for [0-9]", line) for line in said[0])
    assert any("waiting with process 0 at localhost:" in line for line in said[1])


def test_a_first_one_that_is_not_there_is_named_with_the_address():
    found, said = _meet([(1, 2, {})], limit=2.5)
    assert isinstance(found[0], MissingProcess) and "process 0 of 2 did not answer at localhost:" in str(found[0])
    assert "refused" in said[0][0] and "waiting for process 0 of 2 at localhost:" in said[0][0]


@pytest.mark.parametrize("failing", [0, 1])
def test_one_that_failed_before_it_came_is_what_all_end_with(failing, monkeypatch):
    monkeypatch.setattr(roll_call, "LINGER_SECONDS", 60.0)
    hellos = [(0, 2, {}), (1, 2, {})]
    hellos[failing] = (failing, 2, {}, "data.train: no such file")
    found, _ = _meet(hellos)
    for error in found.values():
        assert isinstance(error, FailedElsewhere) or failing == 0
        assert f"process {failing} of 2" in str(error) and str(error).endswith("failed: data.train: no such file")


@pytest.mark.parametrize(
    "hellos, message",
    [
        ([(0, 3, {}), (1, 3, {}), (1, 3, {})], "JAX_PROCESS_ID: 1 is taken twice"),
        ([(0, 3, {}), (0, 3, {})], "JAX_PROCESS_ID: 0 is taken twice"),
        ([(0, 3, {}), (1, 2, {})], "JAX_NUM_PROCESSES: 3 on process 0 of 3"),
    ],
)
def test_places_that_cannot_be(hellos, message):
    found, _ = _meet(hellos)
    assert all(message in str(error) for error in found.values()), found


@pytest.mark.parametrize("sent", [b"PRI * HTTP/2.0\r\n\r\n", b"{}\n", b"[" * 5000 + b"\n", b'{"process": "x"}\n', b"\xff\n"])
def test_another_program_at_the_port_is_said_and_does_no_harm(sent):
    address, said, found = free_address(), [], []
    first, second = Launch(address, 2, 0), Launch(address, 2, 1)
    meeting = lambda: receive_first(first, hello_of(first, {}), 600.0, said.append)  # noqa: E731
    thread = threading.Thread(target=lambda: found.append(_ended(meeting)))
    thread.start()
    assert _until(lambda: _open(first))
    with socket.create_connection(("localhost", first.port), 60) as stranger:
        stranger.sendall(sent)
        assert _until(lambda: any("but is no process of this version of align-jax" in line for line in said)), said
        _, other = report(second, hello_of(second, {}), 600.0, said.append)
        thread.join(120)
    assert sorted(found[0]) == [1] and other["process"] == 0


def _until(true):
    return any(true() or time.sleep(0.02) for _ in range(3000))


def _open(launch):
    try:
        socket.create_connection(("localhost", launch.port), 60).close()
    except OSError:
        return False
    return True


def _ended(work):
    try:
        return work()
    except UserError as error:
        return error


def test_a_port_that_another_program_has():
    with socket.create_server(("", 0)) as taken:
        launch = Launch(f"localhost:{taken.getsockname()[1]}", 2, 0)
        with pytest.raises(UserError, match=r"JAX_COORDINATOR_ADDRESS: port \d+ of .* another program has it"):
            receive_first(launch, hello_of(launch, {}), 1.0)


def test_facts_name_versions_and_the_code():
    facts = facts_of_process()
    assert set(PACKAGES) < set(facts) and facts["jax"][0].isdigit() and facts["align-jax"].startswith("0.")
    assert differences({0: facts, 1: facts}) == []
    assert len(differences({0: {str(i): i for i in range(100)}, 1: {}})) == 13


def test_processes_are_spelled_in_ranges():
    assert named([1]) == "process 1" and named([0, 1]) == "processes 0, 1" and named([0, 2, 3, 4, 9]) == "processes 0, 2-4, 9"
