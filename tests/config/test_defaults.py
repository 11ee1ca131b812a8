"""Defaults that depend on the rest of the config, and which of them make another run."""

from __future__ import annotations

import copy

import pytest
import yaml

from align_jax.config import Config, load_config
from align_jax.config.began import of_run
from align_jax.config.identity import difference, identity

BASE = {"model": {"path": "a/model"}, "data": {"train": "rows.jsonl"}, "objective": {"name": "dpo"}}


@pytest.mark.parametrize(("objective", "rate"), [("dpo", 1e-6), ("mpo", 1e-6), ("sft", 2e-5), ("reward", 1e-5)])
def test_the_learning_rate_is_usual_for_the_objective(objective, rate):
    assert Config.of(BASE, f"objective.name={objective}").optimizer.learning_rate == rate
    assert Config.of(BASE, f"objective.name={objective}", "optimizer.name=lion").optimizer.learning_rate == rate
    given = Config.of(BASE, f"objective.name={objective}", "optimizer.learning_rate=3e-4")
    assert given.optimizer.learning_rate == 3e-4


def test_another_objective_takes_its_own_rate_unless_one_was_given():
    assert Config.of(Config.of(BASE), "objective.name=sft").optimizer.learning_rate == 2e-5
    given = Config.of(BASE, "optimizer.learning_rate=3e-4")
    assert Config.of(given, "objective.name=sft").optimizer.learning_rate == 3e-4


def test_the_format_by_its_columns_and_by_name_are_one_run():
    auto, named = Config.of(BASE), Config.of(BASE, "data.format=groups")
    assert auto.run.dir == named.run.dir and difference(auto.to_dict(), named.to_dict()) is None
    assert difference(named.to_dict(), Config.of(BASE, "data.format=pairs").to_dict())[0] == "data.format"


def test_what_is_held_out_makes_another_run_and_a_file_to_evaluate_on_does_not():
    whole, file = Config.of(BASE), Config.of(BASE, "data.eval=eval.jsonl")
    tenth, fifth = Config.of(BASE, "data.eval=0.1"), Config.of(BASE, "data.eval=0.2")
    assert whole.run.dir == file.run.dir and len({c.run.dir for c in (whole, tenth, fifth)}) == 3
    assert difference(whole.to_dict(), file.to_dict()) is None
    assert difference(tenth.to_dict(), fifth.to_dict()) == ("data.eval", 0.1, 0.2)
    assert difference(file.to_dict(), tenth.to_dict())[0] == "data.eval"


def test_a_key_that_came_later_makes_no_other_run_at_its_default():
    before = Config.of(BASE).to_dict()
    del before["model"]["chat_template"]
    assert identity(before) == identity(Config.of(BASE).to_dict())
    assert identity(before) != identity(Config.of(BASE, "model.chat_template=chat.jinja").to_dict())


@pytest.mark.parametrize(
    "key", ["model.revision", "data.subset", "data.revision", "optimizer.schedule_steps", "optimizer.decayed"]
)
def test_a_run_of_before_goes_on_without_the_keys_that_came_later(key):
    now = Config.of({"model": {"path": "some/model"}, **BASE}).to_dict()
    before = copy.deepcopy(now)
    section, _, name = key.partition(".")
    del before[section][name]
    before["data"] |= {"split": "train", "eval_split": "test"}  # as the defaults were written
    assert identity(before) == identity(now) and difference(before, now) is None


def test_what_decays_is_part_of_a_run_and_one_of_before_decayed_embeddings():
    now = Config.of(BASE, "optimizer.weight_decay=0.1")
    matrices, embeddings = (Config.of(now, f"optimizer.decayed={which}") for which in ("matrices", "embeddings"))
    assert len({identity(config.to_dict()) for config in (now, matrices, embeddings)}) == 3
    assert difference(now.to_dict(), embeddings.to_dict()) is None
    assert difference(now.to_dict(), matrices.to_dict()) == ("optimizer.decayed", "embeddings", "matrices")


def test_ordered_levels_by_the_range_are_the_run_of_before():
    base = {**BASE, "objective": {"name": "ordered_mpo"}}
    now = Config.of(base).to_dict()
    before = copy.deepcopy(now)
    del before["objective"]["levels_by"], before["objective"]["thresholds"]
    assert identity(before) == identity(now)
    other = Config.of(base, "objective.levels_by=thresholds", "objective.thresholds=[3, 7]")
    assert identity(other.to_dict()) != identity(now) and Config.of(other).objective.thresholds == [3, 7]


@pytest.mark.parametrize(
    "name, keys, other",
    [
        ("dpo", ("divergence", "divergence_alpha", "sft_weight"), "objective.divergence=js"),
        ("simpo", ("label_smoothing",), "objective.label_smoothing=0.1"),
        ("hinge", ("sft_weight",), "objective.sft_weight=1"),
    ],
)
def test_a_pairwise_run_of_before_goes_on(name, keys, other):
    base = {**BASE, "objective": {"name": name}}
    now = Config.of(base).to_dict()
    before = copy.deepcopy(now)
    for key in keys:
        del before["objective"][key]
    assert identity(before) == identity(now) != identity(Config.of(base, other).to_dict())


def test_a_divergence_means_another_run_by_objective():
    beliefs = {**BASE, "data": {**BASE["data"], "format": "gdpo"}, "objective": {"name": "gdpo"}}
    assert identity(Config.of(beliefs).to_dict()) != identity(Config.of(beliefs, "objective.divergence=reverse_kl").to_dict())


def test_another_part_of_the_data_is_another_run():
    whole = Config.of(BASE)
    for override in ("data.split=dev", "data.subset=en", "data.revision=v1"):
        other = Config.of(BASE, override)
        assert other.run.dir != whole.run.dir and difference(whole.to_dict(), other.to_dict())[0] == override.partition("=")[0]
    assert Config.of(BASE, "data.split=train").run.dir == whole.run.dir


@pytest.mark.parametrize(
    ("metric", "mode"),
    [("eval/loss", "min"), ("eval/beliefs/js_distance", "min"), ("eval/kl/reference", "min"), ("loss", "min"),
     ("eval/rewards/accuracies", "max"), ("eval/rewards/margins", "max"), ("eval/sets/log_likelihood", "max")],
)  # fmt: skip
def test_which_direction_is_better_follows_from_the_metric_unless_it_is_said(metric, mode):
    assert Config.of(BASE, f"checkpoint.best_metric={metric}").checkpoint.mode == mode
    other = {"min": "max", "max": "min"}[mode]
    assert Config.of(BASE, f"checkpoint.best_metric={metric}", f"checkpoint.best_mode={other}").checkpoint.mode == other


def test_a_config_of_a_run_folder_is_that_of_the_run(tmp_path):
    config = Config.of(BASE, f"run.dir={tmp_path / 'before'}", "train.steps=7")
    (tmp_path / "moved").mkdir()
    (tmp_path / "moved" / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
    again = Config.of(tmp_path / "moved", "train.groups_per_step=2")
    assert (again.run.dir, again.train.steps, again.train.groups_per_step) == (str(tmp_path / "moved"), 7, 2)
    assert Config.of(config) is config


def test_evaluation_sets_by_name_make_no_other_run_but_for_what_is_held_out():
    def of(value):
        return Config.of({**BASE, "data": {**BASE["data"], "eval": value}})

    file, sets = of("eval.jsonl"), of({"a": "eval.jsonl", "b": ["x.jsonl", {"path": "y.jsonl", "limit": 3}]})
    assert file.run.dir == sets.run.dir and difference(file.to_dict(), sets.to_dict()) is None
    held, named = of(0.1), of({"a": "eval.jsonl", "held": 0.1})
    assert held.run.dir == named.run.dir != file.run.dir and difference(held.to_dict(), named.to_dict()) is None
    assert named.data.held_out == 0.1 and sets.data.held_out is None
    assert [(name, data.eval) for name, data in named.data.eval_sets().items()] == [("a", "eval.jsonl"), ("held", 0.1)]
    assert list(of({"path": "eval.jsonl", "limit": 3}).data.eval_sets()) == [""] and of(None).data.eval_sets() == {}


def test_evaluation_sets_may_be_rows_in_python():
    rows = [{"prompt": "p", "chosen": "a", "rejected": "b"}]
    config = Config.of({**BASE, "data": {"train": rows, "eval": {"near": rows, "far": {"path": rows, "limit": 1}}}})
    near, far = (data.eval for data in config.data.eval_sets().values())
    assert near.rows == far["path"].rows == rows


def test_a_run_of_wpo_from_before_alignments_had_none(tmp_path):
    base = {**BASE, "objective": {"name": "wpo"}}
    now = Config.of(base).to_dict()
    before = copy.deepcopy(now)
    del before["objective"]["alignment"]
    assert identity(before) == identity(now) != identity(Config.of(base, "objective.alignment=none").to_dict())
    file = tmp_path / "config.yaml"
    for objective in (before["objective"], [{**before["objective"], "weight": 1.0}, {"name": "sft", "weight": 0.1}]):
        file.write_text(yaml.safe_dump({**before, "objective": objective}))
        found = load_config(of_run(file)).objective
        assert getattr(found, "terms", (found,))[0].alignment == "none"
    assert load_config(file).objective.terms[0].alignment is None  # of a config that is somebody's, not a run's
