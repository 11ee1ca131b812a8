"""Eight fake CPU devices, set before JAX starts, so that every parallel path runs on any machine."""

import os
from pathlib import Path

import pytest

os.environ["JAX_PLATFORMS"] = "cpu"
_FLAG = "--xla_force_host_platform_device_count"
if _FLAG not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FLAG}=8".strip()
# Nearly all the time of the tests is compilation, so most optimizations are left out, also by the processes that tests start.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(autouse=True, scope="session")
def _eight_devices():
    """They are made here, before a test changes the flags that JAX reads once."""
    import jax

    assert jax.device_count() == 8


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory):
    """Reference log-probs that tests compute are not the user's; what was compiled is."""
    before = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "align_jax" / "xla"
    home = tmp_path_factory.mktemp("cache")
    (home / "align_jax").mkdir()
    before.mkdir(parents=True, exist_ok=True)
    (home / "align_jax" / "xla").symlink_to(before)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(home))
        yield


@pytest.fixture(autouse=True, scope="module")
def _few_mappings():
    """Every compiled program maps memory, and a process that has too many mappings (65,530 on Linux) dies in the compiler."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > 20_000:
        import jax

        jax.clear_caches()
