"""Options for the TPU's compiler: where they are given, who decides, and that libtpu knows their names."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align_jax.parallel.mesh import make_mesh
from align_jax.parallel.tpu_flags import TPU_OPTIONS, compiler_options


def mesh_of(platform: str, count: int):
    return SimpleNamespace(devices=np.array([SimpleNamespace(platform=platform)] * count))


def test_several_tpus_have_options_and_nothing_else_has(monkeypatch):
    monkeypatch.delenv("LIBTPU_INIT_ARGS", raising=False)
    assert compiler_options(mesh_of("tpu", 4)) == TPU_OPTIONS
    assert compiler_options(mesh_of("tpu", 1)) is None
    assert compiler_options(mesh_of("gpu", 4)) is None
    assert compiler_options(make_mesh(1, 8, 1)) is None


def test_what_the_user_names_is_the_users(monkeypatch):
    name = "xla_jf_spmd_threshold_for_windowed_einsum_mib"
    monkeypatch.setenv("LIBTPU_INIT_ARGS", f"--xla_enable_async_all_gather --{name}=0")
    assert compiler_options(mesh_of("tpu", 4)).keys() == TPU_OPTIONS.keys() - {name, "xla_enable_async_all_gather"}
    monkeypatch.setenv("LIBTPU_INIT_ARGS", " ".join(f"--{name}=false" for name in TPU_OPTIONS))
    assert compiler_options(mesh_of("tpu", 4)) is None


@pytest.mark.slow
@pytest.mark.parametrize("topology", ["v5e:2x2", "v6e:2x2", "v5p:2x2x1"])
def test_libtpu_knows_every_option(topology):
    pytest.importorskip("libtpu", reason="compiling for TPUs needs libtpu: pip install 'align-jax[tpu]'")
    from align_jax.cost.topology import topology_devices

    where = jax.NamedSharding(make_mesh(1, 4, 1, devices=topology_devices(topology)), jax.P("fsdp"))
    x = jax.ShapeDtypeStruct((512, 512), jnp.bfloat16, sharding=where)

    def compiled(options):
        return jax.jit(lambda a, b: a @ b, compiler_options=options, out_shardings=where).lower(x, x).compile()

    assert "all-gather" in compiled(TPU_OPTIONS).as_text()
    with pytest.raises(jax.errors.JaxRuntimeError, match="xla_tpu_no_such_option"):
        compiled({"xla_tpu_no_such_option": True})
