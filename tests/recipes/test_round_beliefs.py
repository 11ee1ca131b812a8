"""Rounds with beliefs: which are drawn, what the reward model sees, which pairs GDPO trains on, and what is measured."""

from __future__ import annotations

import json
import os
import signal

import numpy as np
import pytest
from transformers import AutoTokenizer

import align_jax
from align_jax.config import Config
from align_jax.data import DataConfig, Encoder
from align_jax.data.formats import Example, find_format
from align_jax.data.prompts import distinct_prompts
from align_jax.data.sources import RowError
from align_jax.generation.beliefs import belief_logps
from align_jax.losses import jensen_shannon_distance
from align_jax.recipes import rounds, score
from align_jax.recipes.round_beliefs import belief_summary, give, pair, sampled_ratios
from align_jax.recipes.score_passes import Pass
from align_jax.training.logs import read_metrics
from tests.recipes.test_rounds import options, rows
from tests.recipes.test_train import train, world  # noqa: F401

PROMPTS, DRAWS, SAMPLES = 4, 2, 3
SECTION = {"number": 1, "reward_model": "judge", "prompts_per_round": PROMPTS, "samples_per_prompt": SAMPLES, "eval_prompts": 3,
           "eval_samples": 2, "beliefs_per_prompt": DRAWS}  # fmt: skip


def write(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_beliefs_are_drawn_from_p_star_anew_in_every_round(tmp_path):
    of_all = {"options": ["a", "b"], "probabilities": [0.2, 0.8]}
    prompts = write(tmp_path / "prompts", [{"prompt": f"p{i}"} | of_all for i in range(50)])
    drawn = {}
    for seed in (1, 1, 2):
        assert give(prompts, None, tmp_path / "given", (40, seed))
        drawn.setdefault(seed, []).append([row["belief"] for row in rows(tmp_path / "given")])
    assert drawn[1][0] == drawn[1][1] != drawn[2][0] and len(drawn[1][0]) == 2000
    assert np.mean(drawn[1][0]) == pytest.approx(0.8, abs=0.03)
    assert [row["prompt"] for row in rows(tmp_path / "given")][38:42] == ["p0", "p0", "p1", "p1"]


def test_beliefs_that_the_model_drew_are_given(tmp_path):
    said = {"responses": ["x", "y"], "beliefs": [1, 0], "belief_mass": 0.5, "belief_distribution": [0.5, 0.5],
            "belief_probabilities": [0.5, 0.5]}  # fmt: skip
    plain = {"prompt": "p", "group": "g", "options": ["a", "b"], "probabilities": [0.2, 0.8]}
    drawn = write(tmp_path / "drawn", [plain | said])
    assert give(write(tmp_path / "prompts", [plain]), drawn, tmp_path / "given", (2, 0))
    assert rows(tmp_path / "given") == [plain | {"belief": 1}, plain | {"belief": 0}]


def test_pairs_are_the_best_and_the_worst_given_one_belief(tmp_path):
    row = {"prompt": "p", "options": ["a", "b"], "probabilities": [0.2, 0.8], "beliefs": [1, 1, 1],
           "responses": ["1x", "1y", "1z"], "texts": ["x", "y", "z"], "text_tokens": [[5], [6, 2], [7]],
           "scores": [1.0, 3.0, 0.0]}  # fmt: skip
    assert pair(write(tmp_path / "scored", [row, row | {"scores": [1.0, 1.0, 1.0]}]), tmp_path / "pairs")
    first, second = rows(tmp_path / "pairs")
    accepted = {"accept_choice_id": 1, "accept_response": "y", "accept_tokens": [6, 2]}
    rejected = {"reject_choice_id": 1, "reject_response": "z", "reject_tokens": [7]}
    assert first == {name: row[name] for name in ("prompt", "options", "probabilities")} | accepted | rejected
    assert second["accept_tokens"] == second["reject_tokens"] == [5]  # no better one: no preference
    example = find_format("gdpo").read(first)
    assert example.tokens == ((6, 2), (7,)) and example.opinion.accepted == example.opinion.rejected == 1
    with pytest.raises(RowError, match="field 'reject_tokens' is missing"):
        find_format("gdpo").read({name: value for name, value in first.items() if name != "reject_tokens"})
    with pytest.raises(RowError, match="field 'accept_tokens': expected token ids"):
        find_format("gdpo").read(first | {"accept_tokens": [-1]})


def test_the_distance_to_p_star_and_the_mass():
    known = [([0.2, 0.8], [0.5, 0.5], 0.25), ([0.3, 0.7], [0.3, 0.7], 0.75)]
    found = belief_summary([{"probabilities": p, "belief_distribution": q, "belief_mass": m} for p, q, m in known])
    distances = [float(jensen_shannon_distance(np.asarray(p), np.asarray(q))) for p, q, _ in known]
    assert found["eval/js_distance"] == pytest.approx(np.mean(distances), abs=1e-6)
    assert distances[1] == pytest.approx(0, abs=1e-3)
    assert found["eval/belief_mass"] == 0.5 and found["eval/js_distance_low"] < found["eval/js_distance_high"]


def test_the_log_ratio_is_that_of_the_two_samplers():
    # Two beliefs; a model gives them the mass 0.5, and before it gave them 0.1, in the same shares: nothing but texts changed.
    shares, texts = np.log([0.3, 0.7]), np.asarray([[1.5, -0.5]])
    joint = (np.log(0.5) + shares + texts) - (np.log(0.1) + shares)
    found = sampled_ratios(joint, [{"belief_mass": 0.5}], [{"belief_mass": 0.1}])
    np.testing.assert_allclose(found, texts, atol=1e-12)
    assert np.isfinite(sampled_ratios(joint, [{"belief_mass": 0.5}], [{"belief_mass": 0.0}])).all()


def test_prompts_come_with_their_distribution(tmp_path):
    choices = ((0, 1), (1, 0), (0, 1))
    given = [{"prompt": "p", "options": ["a", "b"], "accept_choice_id": a, "reject_choice_id": r, "accept_response": "x",
              "reject_response": "y"} for a, r in choices]  # fmt: skip
    path = write(tmp_path / "rows.jsonl", [*given, given[0] | {"prompt": "q", "probabilities": [0.9, 0.1]}])
    config = DataConfig(train=str(path), format="gdpo", belief_prior=1.0)
    found, _, _ = distinct_prompts(config, "train", tmp_path, beliefs=True)
    assert [row["prompt"] for row in found] == ["p", "q"] and list(found[0]["options"]) == ["a", "b"]
    assert [list(row["probabilities"]) for row in found] == [pytest.approx([0.6, 0.4]), pytest.approx([0.9, 0.1])]
    assert distinct_prompts(config, "train", tmp_path)[0] == [{"prompt": "p"}, {"prompt": "q"}]


@pytest.mark.parametrize(
    "more, message",
    [
        (("--objective.latent_beliefs", "true"), "--objective.latent_beliefs: true is not used in rounds"),
        (("--objective.name", "dpo", *options(beliefs="target")), "rounds.beliefs: is used by objective gdpo alone"),
        (("--data.format", "prompts"), "has no beliefs; rounds with objective gdpo need data.format: gdpo"),
        (options(beliefs="people"), "rounds.beliefs"),
    ],
)
def test_what_is_refused_is_named(world, capsys, monkeypatch, tmp_path, more, message):  # noqa: F811
    monkeypatch.setattr(rounds, "model_at", lambda given, head, key: None)
    section = options(**{key: value for key, value in SECTION.items() if key != "beliefs_per_prompt"})
    assert train(world[1], "--run.dir", tmp_path / "run", *section, "--generate.max_new_tokens", 8, *more) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "run" / "rounds").exists()


class Judge:
    """A stand-in: how many letters e; keeps what it was shown, and may ask for a stop."""

    def __init__(self):
        self.shown, self.stop_after = [], None

    def reward_pass(self, config, given):
        texts = [row["responses"] for row in given.values]

        def scores(groups):
            for i, group in enumerate(groups):
                self.shown += group
                if len(self.shown) == self.stop_after:
                    os.kill(os.getpid(), signal.SIGTERM)
                yield i, np.asarray([text.count("e") + len(text) / 1000 for text in group])

        return Pass("scores", {"reward": "judge"}, given.where, texts, lambda: scores)


@pytest.fixture
def judge(monkeypatch):
    made = Judge()
    monkeypatch.setattr(score, "reward_pass", made.reward_pass)
    monkeypatch.setattr(rounds, "model_at", lambda given, head, key: None)
    return made


@pytest.mark.slow
@pytest.mark.parametrize("beliefs", ["model", "target"])
def test_a_round_with_beliefs(world, judge, tmp_path, capsys, beliefs):  # noqa: F811
    _, config = world
    run = tmp_path / "run"
    more = ("--train.steps", 3, "--train.groups_per_step", 4, "--generate.max_new_tokens", 8, "--generate.rows", 4)
    command = ("--run.dir", run, "--reference.cache_dir", tmp_path / "cache", *options(**SECTION, beliefs=beliefs), *more)
    judge.stop_after = 3 * 2 + 2 * SAMPLES  # the held-out samples of the start, and two rows of round 1
    assert train(config, *command) == 0
    assert "stopped by SIGTERM in round 1 of 1" in capsys.readouterr().err
    judge.stop_after, at = None, run / "rounds" / "1"
    samples = (at / "samples.jsonl").read_text()
    assert train(config, *command) == 0
    assert (at / "samples.jsonl").read_text() == samples and len(judge.shown) == (3 * 2) * 2 + PROMPTS * DRAWS * SAMPLES
    scored, pairs = rows(at / "scored.jsonl"), rows(at / "pairs.jsonl")
    assert len(scored) == len(pairs) == PROMPTS * DRAWS and (at / "drawn.jsonl").exists() == (beliefs == "model")
    for row, made in zip(scored, pairs, strict=True):
        statement = f"{row['belief']} : {row['options'][row['belief']]} :"
        assert row["beliefs"] == [row["belief"]] * SAMPLES == [made["accept_choice_id"]] * SAMPLES
        assert all(" ".join(said.split()) == " ".join(f"{statement} {text}".split())
                   for said, text in zip(row["responses"], row["texts"], strict=True)), row  # fmt: skip
        assert made["accept_response"] == row["texts"][int(np.argmax(row["scores"]))]
    first = read_metrics(at / "metrics.jsonl")[0]
    assert first["rewards/chosen"] == first["rewards/rejected"] == 0 and np.isfinite(first["loss/calibration"])
    lines = rows(run / "rounds.jsonl")
    assert lines[0]["eval/kl"] == 0 and lines[1]["eval/js_distance"] != lines[0]["eval/js_distance"]
    assert lines[1]["eval/kl"] == pytest.approx(kl(world, run), abs=1e-4)
    assert "belief distance" in capsys.readouterr().err


def kl(world, run):  # noqa: F811
    """`E log q(b|x) pi(y|b,x) - log q_0(b|x) pi_0(y|b,x)` of the held-out samples, part by part."""
    folder, path = world
    data = Config.of(path).data
    encoder = Encoder(AutoTokenizer.from_pretrained(folder / "tokenizer"), data)
    scored, found = rows(run / "rounds" / "1" / "eval_scored.jsonl"), []
    examples = [Example(row["prompt"], (), group=row.get("group", "")) for row in scored]
    prompts = [encoder.prompt(example) for example in examples]
    statements = [encoder.beliefs(prompt, row["options"]) for prompt, row in zip(prompts, scored, strict=True)]
    for number in (1, 0):
        model = align_jax.load_model(run / "rounds" / str(number) / "model", dtype="float32")
        ids = [prompt.ids.tolist() for prompt in prompts]
        each = belief_logps(model, ids, [[s.tolist() for s in of] for of in statements])
        given = [[*of, *s[b].tolist()] for of, s, row in zip(ids, statements, scored, strict=True) for b in row["beliefs"]]
        texts = [[tokens] for row in scored for tokens in row["text_tokens"]]
        text_logps = np.asarray(align_jax.response_logps(model, align_jax.make_groups(given, texts))).ravel()
        beliefs = [(of - np.logaddexp.reduce(of))[b] for of, row in zip(each, scored, strict=True) for b in row["beliefs"]]
        found.append(np.asarray(beliefs) + text_logps)
    return float((found[0] - found[1]).mean())
