"""The hub: a busy network is tried again, and said; what another try does not help is an error at once."""

import datasets
import huggingface_hub
import pytest

from align_jax import network
from align_jax.data.sources.base import Part
from align_jax.data.sources.hub import open_hub
from align_jax.errors import UserError
from align_jax.hf.files import resolve_folder
from align_jax.network import may_pass, retried


class Fails:
    """Fails so many times, then answers."""

    def __init__(self, times, error, answer="found"):
        self.calls, self._times, self._error, self._answer = 0, times, error, answer

    def __call__(self, *_, **__):
        self.calls += 1
        if self.calls <= self._times:
            raise self._error
        return self._answer


class Response:
    def __init__(self, status_code):
        self.status_code = status_code


def _of_server(status):
    error = OSError(f"status {status}")
    error.response = Response(status)
    return error


@pytest.fixture
def slept(monkeypatch):
    pauses = []
    monkeypatch.setattr(network.time, "sleep", pauses.append)
    return pauses


def test_a_model_is_fetched_again_where_the_network_failed_twice(tmp_path, slept, monkeypatch, capsys):
    fetch = Fails(2, ConnectionError("reset by peer\nmore"), str(tmp_path))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    assert resolve_folder("some/model") == tmp_path and fetch.calls == 3 and slept == [1, 4]
    said = capsys.readouterr().err.splitlines()
    assert said == [f"align-jax: some/model: ConnectionError: reset by peer; trying again in {n} s" for n in (1, 4)]
    monkeypatch.setattr(huggingface_hub, "snapshot_download", Fails(9, ConnectionError("reset by peer")))
    with pytest.raises(UserError, match="'some/model' is no folder here.*ConnectionError: reset by peer"):
        resolve_folder("some/model")
    assert slept[2:] == [1, 4, 10]


def test_a_data_set_likewise(slept, monkeypatch):
    load = Fails(2, _of_server(503), datasets.Dataset.from_list([{"prompt": "a"}]))
    monkeypatch.setattr(datasets, "load_dataset", load)
    assert len(open_hub("some/data", Part(), None)) == 1 and load.calls == 3


@pytest.mark.parametrize(
    "error, passes",
    [
        (_of_server(404), False),
        (_of_server(401), False),
        (_of_server(429), True),
        (TimeoutError(), True),
        (type("ReadTimeout", (Exception,), {})(), True),
        (ValueError("unknown split"), False),
        (huggingface_hub.errors.OfflineModeIsEnabled("offline"), False),
        (OSError(2, "No such file"), False),
    ],
)
def test_what_another_try_helps(error, passes, slept):
    assert may_pass(error) == passes
    try:
        raise OSError("not found in the cache") from error
    except OSError as wrapped:
        assert may_pass(wrapped) == passes
    work = Fails(1, error)
    if passes:
        assert retried(work, "it") == "found"
    else:
        with pytest.raises(type(error)):
            retried(work, "it")
    assert work.calls == 1 + passes
