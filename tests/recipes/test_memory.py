"""Too little memory: one line with what did not fit and which keys make it smaller."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from align_jax.config import Config
from align_jax.errors import UserError
from align_jax.recipes.announced import AnnouncedStep
from align_jax.recipes.memory import memory_explained, of_pass, of_training

GPU = "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 12.34GiB. [tf-allocator-allocation-error='']\nmore"
TPU = "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 20.48G of 15.75G hbm."


@pytest.mark.parametrize("text, said", [(GPU, "allocate 12.34GiB"), (TPU, "Used 20.48G of 15.75G hbm"),
                                        ("RESOURCE_EXHAUSTED: no space\nx", "no space")])  # fmt: skip
def test_what_did_not_fit_is_said_with_what_to_change(text, said):
    with pytest.raises(UserError, match=rf"out of memory on .*: {said}\. Change one of: score.batch_rows: 32 \(now 64\)"):
        with memory_explained(lambda: of_pass("score.batch_rows", 64, "other")):
            raise jax.errors.JaxRuntimeError(text)


def test_other_errors_pass():
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"), memory_explained(lambda: pytest.fail("asked")):
        raise jax.errors.JaxRuntimeError("INTERNAL: RESOURCE")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    tokens: jax.Array
    prompt_tokens: jax.Array


def test_a_training_step_that_does_not_fit_names_its_sizes_and_the_compilers_plan():
    config = Config.of({"model": {"path": "m"}, "data": {"train": "t"}, "objective": {"name": "dpo"}, "train": {"steps": 1}})
    batch = Batch(jnp.ones((1, 16, 128)), jnp.ones((1, 8, 64)))
    compiled = jax.jit(lambda state, batch: (state + 1, {"loss": jnp.sum(jnp.sort(batch.tokens.ravel()))}))

    class Exhausted:
        lower = compiled.lower

        def __call__(self, state, batch):
            raise jax.errors.JaxRuntimeError(GPU)

    step = AnnouncedStep(Exhausted())
    with pytest.raises(UserError) as caught:
        with memory_explained(lambda: of_training(config, step.tokens, step.planned())):
            step(jnp.ones(2**20), batch)
    said = str(caught.value)
    for part in (
        "allocate 12.34GiB",
        "By its own analysis the compiled step needs 0.00",  # 8 MiB of state, in and out
        "A microbatch (1 a step) has 16 response rows of 128 tokens and 8 prompt rows of 64",
        "train.accumulation_steps: 2 (now 1; the same gradient, half the rows)",
        "train.groups_per_step: 4 (now 8)",
        "model.remat: full (now none",
        "model.rows_per_chunk: 4 (now auto)",
        "data.max_prompt_tokens and data.max_response_tokens (now 512 and 512)",
    ):
        assert part in said
    step = AnnouncedStep(lambda state, batch: 1 / 0)
    assert step.tokens is None and step.planned() == ""
