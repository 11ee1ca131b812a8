"""Whether a TPU machine is one of several, where its launcher says nothing in the environment."""

from __future__ import annotations

import http.server
import threading

import pytest

from align_jax.parallel import launched


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine with a TPU and a metadata server, whose answer is the list."""
    answers, asked = [], []

    class Metadata(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.headers["Metadata-Flavor"])
            self.send_response(200 if answers else 404)
            self.end_headers()
            self.wfile.write(answers[0].encode() if answers else b"")

        def log_message(self, *_):
            pass

    for name in ("JAX_COORDINATOR_ADDRESS", "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "MEGASCALE_NUM_SLICES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("TPU_WORKER_HOSTNAMES", raising=False)
    monkeypatch.delenv("TPU_SKIP_MDS_QUERY", raising=False)
    (tmp_path / "accel0").touch()
    monkeypatch.setattr(launched, "Path", lambda path: tmp_path if path == "/dev" else tmp_path / "none")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Metadata)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(launched, "METADATA", f"http://127.0.0.1:{server.server_port}/hosts")
    launched._hosts_of_tpu_vm.cache_clear()
    yield answers, asked, tmp_path
    launched._hosts_of_tpu_vm.cache_clear()
    server.shutdown()
    server.server_close()


def test_a_slice_of_several_machines_is_found_by_the_metadata_server(machine):
    answers, asked, _ = machine
    answers.append("unknown:unknown:10.0.0.1,unknown:unknown:10.0.0.2")
    assert launched.launched_on_several_hosts() and launched.launched_on_several_hosts()
    assert asked == ["Google"]  # once


def test_a_machine_alone_is_alone(machine):
    answers, asked, _ = machine
    answers.append("unknown:unknown:10.0.0.1")
    assert not launched.launched_on_several_hosts() and asked == ["Google"]


def test_where_nobody_answers_the_machine_is_alone(machine):
    assert not launched.launched_on_several_hosts()


def test_the_environment_is_asked_first(machine, monkeypatch):
    _, asked, _ = machine
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "localhost")
    assert not launched.launched_on_several_hosts()
    monkeypatch.setenv("MEGASCALE_NUM_SLICES", "2")  # two slices of one machine each
    assert launched.launched_on_several_hosts() and asked == []


@pytest.mark.parametrize("without", ["tpu", "query"])
def test_nobody_is_asked_on_a_machine_without_a_tpu_or_where_that_is_forbidden(machine, monkeypatch, without):
    answers, asked, devices = machine
    answers.append("a,b")
    (devices / "accel0").unlink() if without == "tpu" else monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    assert not launched.launched_on_several_hosts() and asked == []
