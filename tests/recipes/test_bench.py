"""`align-jax bench` on tiny models: what it counts, and what it refuses."""

import json
import re

import numpy as np
import pytest

from align_jax.cli import main
from align_jax.cost import benchmark
from align_jax.cost.compilations import so_far
from align_jax.cost.flops import batch_flops, forward_flops, keys_per_position, peak_flops
from align_jax.data import make_groups
from align_jax.errors import UserError
from align_jax.models import ModelConfig
from align_jax.recipes import bench as recipe

CONFIG = """
model:
  config: {vocab_size: 64, width: 32, mlp_width: 48, layers: 2, heads: 4, kv_heads: 2, head_size: 8}
  dtype: float32
objective: {name: mpo, beta: 0.1}
optimizer: {name: adamw, learning_rate: 1.0e-3}
train: {steps: 10, groups_per_step: 2}
bench: {prompt_tokens: 9, response_tokens: 6, responses: 4, steps: 2, recommend: false}
"""
MODEL = ModelConfig(vocab_size=64, width=32, mlp_width=48, layers=2, heads=4, kv_heads=2, head_size=8)


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "bench.yaml"
    path.write_text(CONFIG)
    return str(path)


def run(capsys, *argv):
    assert main(["bench", *argv]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.slow
def test_json_has_what_other_tools_read(config, capsys):
    (values,) = run(capsys, config, "--json", "--bench.recommend", "true")
    assert values["useful_tokens_per_step"] == 2 * 4 * (9 + 6)
    assert values["padding"] == 0
    forward = forward_flops(MODEL, [8, 8], [[6] * 4] * 2)
    assert values["flops_least"] == 3 * forward.total
    # The program also computes what masks hide and the logits twice, but no more than that.
    assert 1 <= values["flops_done"] / values["flops_least"] < 1.3
    for key in ("step_seconds", "useful_tokens_per_second", "peak_memory_bytes", "model_flops_utilization", "peak_flops"):
        assert values[key] > 0, key
    assert values["useful_tokens_per_second"] * np.mean(values["step_seconds_all"]) == pytest.approx(120, rel=0.01)
    assert values["remat_recommended"] == "none"
    assert values["compilations"] + values["compilations_cached"] >= 1


@pytest.mark.slow
def test_numbers_are_printed_before_other_policies_are_compiled(config, capsys, monkeypatch):
    before = []

    def recommendation(self, state, batch):
        before.append(capsys.readouterr().out)
        chosen = {"remat": "full", "remat_recommended": "none"}
        return {"remat_memory_bytes": {"none": 1 << 20}, "memory_limit_bytes": 4 << 20, **chosen}

    monkeypatch.setattr(recipe._Bench, "recommendation", recommendation)
    assert main(["bench", config, "--bench.recommend", "true"]) == 0
    (table,) = before
    assert "useful tokens" in table and "rematerialization" not in table
    shares = re.search(r"beside the least +(.*) of the least FLOPs, in the largest shape", table)[1]
    assert "0.0% of computed positions" in table and "padding" not in shares
    after = capsys.readouterr().out
    assert re.fullmatch(r"rematerialization +none 1 MiB, of 4 MiB; recommended model.remat: none \(now full\)\n", after)


LENGTHS = [(9, (6, 3)), (4, (5, 1)), (7, (2, 2)), (3, (8, 40)), (5, (1, 1)), (2, (4, 3))]


@pytest.fixture
def lengths(tmp_path):
    path = tmp_path / "lengths.jsonl"
    path.write_text("".join(json.dumps({"prompt": p, "responses": r}) + "\n" for p, r in LENGTHS))
    return str(path)


@pytest.mark.slow
def test_random_tokens_of_real_lengths_are_packed_and_counted_as_training_would(config, lengths, capsys):
    given = (
        "--bench.lengths",
        lengths,
        "--train.groups_per_step",
        "6",
        "--data.max_response_tokens",
        "8",
        "--bench.steps",
        "1",
    )
    assert main(["bench", config, *given, "--json"]) == 0
    printed = capsys.readouterr()
    (values,) = (json.loads(line) for line in printed.out.splitlines())
    cut = [(p, [min(n, 8) for n in r]) for p, r in LENGTHS]
    least = forward_flops(MODEL, [p - 1 for p, _ in cut], [r for _, r in cut])
    assert values["flops_least"] == 3 * least.total
    assert values["useful_tokens_per_step"] == sum(p + n for p, r in cut for n in r)
    assert (values["attention"], values["packed"]) == ("xla", True) and values["padding"] < 0.5
    assert values["useful_utilization"] == values["model_flops_utilization"] > 0
    # By its definition: the layers of all positions, the head of all in response rows.
    assert values["model_flops_utilization_padded"] > values["useful_utilization"] * (1 + values["padding"] / 2)
    assert f"bench.lengths: {lengths}: 6 prompts of 5 tokens, 12 answers of 4 tokens" in printed.err


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--bench.lengths", "ultrafedback"], "bench.lengths ultrafedback: no such file, .*did you mean ultrafeedback"),
        (["--bench.lengths", "hh", "--objective.name", "gdpo"], "a prompt and its answers do not say what objective gdpo"),
        (
            ["--bench.lengths", "hh", "--bench.prompt_tokens", "8", "--bench.response_tokens", "8"],
            "give it, or bench.prompt_tokens",
        ),
    ],
)
def test_lengths_that_cannot_be_are_refused(config, arguments, message, capsys):
    assert main(["bench", config, *arguments]) == 2
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.slow
def test_a_sweep_has_a_line_for_every_k_and_a_fit(config, capsys):
    *results, fit = run(capsys, config, "--json", "--sweep", "K=2,4,8", "--model.rows_per_chunk", "2")
    assert [r["responses"] for r in results] == [2, 4, 8]
    assert [r["useful_tokens_per_step"] for r in results] == [2 * k * 15 for k in (2, 4, 8)]
    assert set(fit["fit"]) == {"base", "slope", "r_squared"}


@pytest.mark.slow
def test_memory_does_not_grow_with_k_in_chunks(config, capsys):
    more = ("--bench.response_tokens", "64", "--model.head_chunk", "128", "--model.rows_per_chunk", "4", "--bench.steps", "1")
    results = run(capsys, config, "--json", "--sweep", "K=8,64", *more)[:2]
    small, large = (r["peak_memory_bytes"] for r in results)
    whole = run(capsys, config, "--json", "--sweep", "K=64", *more, "--model.rows_per_chunk", "128")[0]["peak_memory_bytes"]
    assert large < 1.3 * small  # the batch itself is in it, and weighs something beside so small a model
    assert whole > 2 * large


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--sweep", "N=2"], "--sweep: 'N=2' is not K= and positive numbers"),
        (["--sweep", "K=2,x"], "--sweep: 'K=2,x' is not K="),
        (["--bench.groups", "3", "--train.accumulation_steps", "2"], "bench.groups: 3 is not a multiple of 2"),
        (["--bench.prompt_tokens", "100000"], "are more than the model's context"),
        (["--objective.name", "dpo", "--bench.responses", "3"], "bench.responses: 3, but objective dpo takes pairs"),
        (["--objective.name", "gdpo"], "random tokens are for set and pair objectives"),
        (["--bench.prompt_tokens", "null"], "give bench.prompt_tokens and bench.response_tokens, or neither"),
    ],
)
def test_what_cannot_be_measured_is_refused(config, capsys, argv, message):
    assert main(["bench", config, *argv]) == 2
    assert message in capsys.readouterr().err


def test_operations_of_a_batch_are_those_of_its_lengths():
    prompts, responses = [[1] * 5, [2] * 3], [[[3] * 4, [4] * 2], [[5] * 6]]
    batch = make_groups(prompts, responses)
    assert batch_flops(MODEL, batch) == forward_flops(MODEL, [4, 2], [[4, 2], [6]])


def test_a_position_costs_what_its_products_do():
    c = MODEL
    layer = 2 * (2 * c.width * c.heads * c.head_size + 2 * c.width * c.kv_heads * c.head_size + 3 * c.width * c.mlp_width)
    position = c.layers * layer + 2 * c.width * c.vocab_size
    assert keys_per_position(c) == position // (4 * c.layers * c.heads * c.head_size)


def test_peaks_are_known_by_the_beginning_of_a_device_kind():
    assert peak_flops("NVIDIA H200 NVL") == 989e12
    assert peak_flops("TPU v5 lite") == 197e12 and peak_flops("TPU v5") == 459e12
    assert peak_flops("cpu") is None


def test_the_first_policy_that_fits_is_recommended():
    assert benchmark.recommend({"none": 30, "dots": 20, "full": 10}, 20) == "dots"
    assert benchmark.recommend({"none": "does not compile", "dots": 20, "full": 10}, 15) == "full"
    with pytest.raises(UserError, match="model.rows_per_chunk"):
        benchmark.recommend({"none": 30}, 20)


def test_the_fit_of_a_line_is_exact():
    fit = benchmark.linear_fit([1.0, 2, 4], [3.0, 5, 9])
    assert (fit["base"], fit["slope"], fit["r_squared"]) == pytest.approx((1, 2, 1))


def test_compilations_are_counted():
    import jax

    before = so_far()
    jax.jit(lambda x: x * 3.25 + 17)(np.ones(7, np.float32)).block_until_ready()
    assert (so_far() - before).programs >= 1
