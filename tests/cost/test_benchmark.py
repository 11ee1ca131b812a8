"""What a device holds, where it has no allocator that says so."""

import os

from align_jax.cost import benchmark


def test_a_container_with_less_memory_than_its_host_has_that(tmp_path, monkeypatch):
    limits = [tmp_path / "memory.max", tmp_path / "memory.limit_in_bytes"]
    monkeypatch.setattr(benchmark, "_CONTAINER_LIMITS", limits)
    host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert benchmark.host_memory() == host
    limits[1].write_text("8192\n")
    assert benchmark.host_memory() == 8192
    limits[1].write_text("9223372036854771712\n")  # cgroups 1: no limit
    assert benchmark.host_memory() == host
    limits[0].write_text("max\n")  # cgroups 2
    assert benchmark.host_memory() == host
