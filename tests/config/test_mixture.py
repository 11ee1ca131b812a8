"""A list of objectives in a config: from YAML, from the command line and from Python, and the mistakes in it."""

from __future__ import annotations

import pytest
import yaml

from align_jax.cli.arguments import parse
from align_jax.config import Config
from align_jax.config.early import check_early
from align_jax.config.identity import difference, identity
from align_jax.config.load import load_config
from align_jax.config.source import ConfigValues, parse_overrides
from align_jax.errors import UserError
from align_jax.objectives import DPO, IPO, SFT, Mixture

TEXT = """\
model: {path: a/model}
data: {train: rows.jsonl}
objective:
  - name: dpo
    weight: 0.5
    beta: 0.2
  - name: sft
"""


@pytest.fixture
def load(tmp_path):
    def load(text, *argv):
        file = tmp_path / "c.yaml"
        file.write_text(text)
        overrides = parse_overrides(list(argv))
        check_early(ConfigValues.read(file), overrides)
        return load_config(ConfigValues.read(file), overrides)

    return load


def test_a_list_is_a_mixture(load):
    config = load(TEXT)
    assert config.objective == Mixture((DPO(beta=0.2), SFT()), (0.5, 1.0))
    assert config.optimizer.learning_rate == 1e-6
    assert config.run.dir.startswith("runs/dpo-sft-")
    again = yaml.safe_load(config.to_yaml())
    assert again["objective"][0]["weight"] == 0.5 and Config.of(again) == config
    assert Config.of({**yaml.safe_load(TEXT)}) == config


def test_options_reach_the_terms(load):
    config = load(TEXT, "--objective.0.beta", "0.3", "--objective.1.weight=2")
    assert config.objective == Mixture((DPO(beta=0.3), SFT()), (0.5, 2.0))
    assert Config.of(config, "objective.0.beta=0.4").objective.terms[0] == DPO(beta=0.4)
    other = load(TEXT.replace("beta: 0.2", "label_smoothing: 0.1"), "--objective.0.name", "ipo")
    assert other.objective.terms[0] == IPO()
    assert "c.yaml:6: objective.0.label_smoothing: 0.1 no longer holds" in other.source.notes[0]


def test_an_option_gives_the_whole_list(load):
    given = parse(["--objective", "[{name: ipo}, {name: sft, weight: 0.1}]"], [], "usage", config=True)
    assert given.overrides == [("objective", [{"name": "ipo"}, {"name": "sft", "weight": 0.1}])]
    single = "model: {path: a}\ndata: {train: r.jsonl}\nobjective: {name: dpo, beta: 0.3}\n"
    config = load(single, "--objective=[{name: ipo}, {name: sft, weight: 0.1}]")
    assert config.objective == Mixture((IPO(), SFT()), (1.0, 0.1))
    assert Config.of(config, "objective={name: dpo}").objective == DPO()
    assert Config.of(Config.of(config, "objective={name: sft}"), "objective=[{name: dpo}]").optimizer.learning_rate == 1e-6


@pytest.mark.parametrize(
    "text, argv, said",
    [
        (TEXT.replace("beta: 0.2", "bta: 0.2"), [], r"c.yaml:6: objective.0.bta: objective dpo has no key 'bta'.*mean beta"),
        (TEXT.replace("beta: 0.2", "beta: -1"), [], "c.yaml:6: objective.0.beta: .*must be above 0"),
        (TEXT.replace("beta: 0.2", "beta: strong"), [], "c.yaml:6: objective.0.beta: 'strong' is not a number"),
        (TEXT.replace("weight: 0.5", "weight: much"), [], "c.yaml:5: objective.0.weight: 'much' is not a number"),
        (TEXT.replace("weight: 0.5", "weight: -1"), [], "c.yaml:5: objective.0.weight: -1 is less than 0"),
        (TEXT.replace("name: sft", "name: kto"), [], "c.yaml:3: objective: dpo and kto cannot be mixed"),
        (TEXT.replace("name: sft", "name: stf"), [], r"c.yaml:7: objective.1.name: 'stf' is unknown; did you mean sft\?"),
        (TEXT.replace("name: sft", "weight: 1"), [], "c.yaml:7: objective.1.name is required: choose one of"),
        (
            TEXT.replace("- name: sft", "- sft"),
            [],
            "c.yaml:7: objective.1: expected keys and values, got 'sft'; write {name: sft}",
        ),
        ("objective: []\n", [], "c.yaml:1: objective: an empty list"),
        (TEXT, ["--objective.2.beta", "1"], "--objective.2.beta: objective is a list of 2, numbered from 0"),
        (TEXT, ["--objective.beta", "1"], "--objective.beta: objective is a list of 2, numbered from 0; 'beta' is none"),
        ("objective: {name: dpo}\n", ["--objective.0.beta", "1"], "no key '0'.*there is one objective.*a mixture is a list"),
        ("objective: {name: dpo, weight: 2}\n", [], "c.yaml:1: objective.weight: .*there is one objective"),
    ],
)
def test_mistakes_in_a_list_are_named_with_their_place(load, text, argv, said):
    with pytest.raises(UserError, match=said):
        load(text, *argv)


@pytest.mark.parametrize(
    "more, said",
    [
        ("reference: {sync_every: 4}\n", "c.yaml:8: reference.sync_every: 4 moves .* set reference.live: true"),
        ("reference: {live: true, mix: 0.5}\n", "c.yaml:8: reference.mix: 0.5 has no effect .* set reference.sync_every"),
        ("reference: {live: true, sync_every: 0}\n", "c.yaml:8: reference.sync_every: 0 must be at least 1"),
        ("reference: {live: true, sync_every: 1, mix: 0}\n", "c.yaml:8: reference.mix: 0.0 must be above 0"),
        ("reference: {live: true, sync_every: 1, quantize: int8}\n", "c.yaml:8: reference.quantize: int8: weights of few bits"),
        ("reference: {quantize: nf4}\nlora: {}\n", "c.yaml:8: reference.quantize: nf4: with `lora` the reference is"),
        ("reference: {live: true, sync_every: 1, mix: 0.5}\nlora: {}\n", "c.yaml:8: reference.mix: 0.5: with `lora`"),
    ],
)
def test_references_that_cannot_be_are_refused(load, more, said):
    with pytest.raises(UserError, match=said):
        load(TEXT + more)


def test_a_reference_that_no_term_reads_is_refused(load):
    with pytest.raises(UserError, match="c.yaml:8: reference.live: objective simpo\\+sft has no reference"):
        load(TEXT.replace("name: dpo", "name: simpo") + "reference: {live: true}\n")
    assert load(TEXT + "reference: {live: true}\n").has_live_reference
    plain, live = (load(TEXT + text) for text in ("", "reference: {live: true}\n"))
    assert identity(plain.to_dict()) == identity(live.to_dict())
    assert identity(load(TEXT + "reference: {live: true, sync_every: 2}\n").to_dict()) != identity(plain.to_dict())


def test_keys_that_came_later_make_no_other_run_of_a_mixture():
    config = Config.of(yaml.safe_load(TEXT))
    now = config.to_dict()
    before = {**now, "objective": [dict(term) for term in now["objective"]]}
    for key in ("sft_weight", "divergence", "divergence_alpha"):
        del before["objective"][0][key]
    assert identity(before) == identity(now)
    other = Config.of(config, "objective.1.weight=0.3").to_dict()
    assert identity(other) != identity(now)
    assert difference(now, other) == ("objective.1.weight", 1.0, 0.3)
    assert identity(Config.of(config, "objective.0.sft_weight=1").to_dict()) != identity(now)
