"""What the environment says of several processes: contradictions and gaps are named before anything starts."""

import pytest

from align_jax.errors import UserError
from align_jax.parallel import launched
from align_jax.parallel.launched import Launch, find_launch, roughly


@pytest.fixture
def environment(monkeypatch):
    """Sets the three variables: `environment(address, number, index)`, None is not set."""
    for name in ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "TPU_WORKER_HOSTNAMES", "JAX_LOCAL_DEVICE_IDS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(launched, "_detected", lambda address, number, index, devices: (address, number, index, None))

    def given(*values):
        for name, value in zip((launched.ADDRESS, launched.NUMBER, launched.INDEX), values, strict=True):
            monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)

    return given


@pytest.mark.parametrize(
    "values, message",
    [
        ((None, "2", None), "JAX_NUM_PROCESSES=2 in the environment without JAX_COORDINATOR_ADDRESS"),
        ((None, "2", "1"), "JAX_NUM_PROCESSES=2 and JAX_PROCESS_ID=1 in the environment without"),
        ((None, None, "1"), "JAX_PROCESS_ID=1 in the environment without"),
        (("host", "2", "0"), "'host' has no port; give HOST:PORT of the first process, such as host:1234"),
        (("host:", "2", "0"), "'' in 'host:' is no port"),
        (("host:99999", "2", "0"), "'99999' in 'host:99999' is no port"),
        (("host:1e3", "2", "0"), "'1e3' in 'host:1e3' is no port"),
        (("fe80::1", "2", "0"), "has no port"),
        (("host:1", "2", "2"), "JAX_PROCESS_ID: 2 must be below JAX_NUM_PROCESSES=2: processes are numbered 0 ... 1"),
        (("host:1", "two", "0"), "JAX_NUM_PROCESSES: 'two' in the environment is not a number"),
        (("host:1", "2", "-1"), "JAX_PROCESS_ID: '-1' in the environment is not a number"),
        (("host:1", "²", "0"), "JAX_NUM_PROCESSES: '²' in the environment is not a number"),
        (("host:1", "9" * 5000, "0"), "is not a number"),
        (("host:1", "0", None), "JAX_NUM_PROCESSES: 0 processes"),
        (("host:1", "2", None), "JAX_PROCESS_ID missing in the environment, and no launcher says it"),
        (("host:1", None, None), "JAX_NUM_PROCESSES and JAX_PROCESS_ID missing"),
    ],
)
def test_what_cannot_be_is_named(environment, values, message):
    environment(*values)
    with pytest.raises(UserError) as caught:
        find_launch()
    assert message in str(caught.value)


def test_what_can_be(environment):
    environment("[fe80::1]:12", "2", "1")
    found = find_launch()
    assert found == Launch("[fe80::1]:12", 2, 1) and (found.host, found.port) == ("fe80::1", 12)
    for alone in ((None, None, None), (None, "1", "0"), (None, "1", None)):
        environment(*alone)
        assert find_launch() is None


def test_one_with_a_wrong_number_still_knows_whom_to_tell(environment):
    environment("host:1", "2", "2")
    assert roughly() == Launch("host:1", 2, 2)
    environment("host:1", "two", "1")
    assert roughly() == Launch("host:1", 2, 1)


def test_a_launcher_that_jax_knows_says_the_rest(monkeypatch, environment):
    environment(None, None, None)
    monkeypatch.setenv("SLURM_NTASKS", "4")
    monkeypatch.setattr(launched, "_detected", lambda *given: ("node1:4567", 4, 3, [3]) if given == (None,) * 4 else None)
    assert find_launch() == Launch("node1:4567", 4, 3, (3,))
