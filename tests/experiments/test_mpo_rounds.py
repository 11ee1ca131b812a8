"""What rounds against a reward model conclude."""

import json

import pytest

from align_jax.experiments.claim import Measurement, Options
from align_jax.experiments.mpo import rounds
from align_jax.experiments.mpo.rounds import EXPERIMENT, GOLD, PROXY
from tests.experiments.made_up import readable


def measured(options, gold, spread=0.01):
    made = []
    for cell in EXPERIMENT.cells(options):
        number, more = cell.settings["rounds"], spread * cell.settings["seed"]
        values = {
            "kl": [10.0 * n for n in range(number + 1)],
            PROXY: [1.0 * n / number for n in range(number + 1)],
            GOLD: [(gold + more) * n / number for n in range(number + 1)],
            "last": number, "stopped": number - 1, "best": 1, "accuracy": {PROXY: 0.7, GOLD: 0.8},
            "half/best": 2, "half/gold": [(gold + more) * n / number for n in range(number + 1)],
        }  # fmt: skip
        made.append(Measurement(cell, values))
    return made


@pytest.mark.parametrize(("gold", "spread", "word"), [(0.3, 0.01, "holds"), (1.5, 0.01, "fails"), (0.9, 0.3, "unclear")])
@pytest.mark.parametrize("quick", [False, True])
def test_verdicts(gold, spread, word, quick):
    options = Options(quick=quick)
    found = EXPERIMENT.conclude(measured(options, gold, spread), options)
    assert found.word == word
    assert found.figures["proxy less gold, spreads"].value == pytest.approx(1 - gold - spread)


def test_where_rounds_end():
    found = EXPERIMENT.conclude(measured(Options(), 0.6, 0.0), Options())
    assert found.figures["gold where rounds end, all rounds"].value == pytest.approx(0.6)
    assert found.figures[f"gold where rounds end, first round past {rounds.KL_STOP:g} nats"].value == pytest.approx(0.5)
    assert found.figures["gold where rounds end, best by gold"].value == pytest.approx(0.2)  # on the other half
    assert len(found.line) < 450


@pytest.mark.parametrize("gold", [0.3, 1.5])
def test_a_gold_judge_that_is_worse_than_the_proxy_decides_nothing(gold):
    found = measured(Options(), gold)
    for one in found:
        one.values["accuracy"] = {PROXY: 0.7, GOLD: 0.6}
    verdict = EXPERIMENT.conclude(found, Options())
    assert verdict.word == "unclear" and "no better judge" in verdict.line


def test_the_best_round_is_judged_on_other_prompts(tmp_path):
    for number, rows in enumerate(([[0.0, 2.0], [1.0, 1.0]], [[5.0, 5.0], [1.5, 1.5]], [[3.0, 3.0], [9.0, 9.0]])):
        (tmp_path / f"rounds/{number}").mkdir(parents=True)
        text = "".join(json.dumps({"scores": row}) + "\n" for row in rows)
        (tmp_path / f"rounds/{number}/eval_gold.jsonl").write_text(text, encoding="utf-8")
    found = rounds._halves(tmp_path, 2)
    assert found["half/best"] == 1 and found["half/gold"] == pytest.approx([0.0, 0.5 / 0.5**0.5, 8 / 0.5**0.5])


def test_one_seed_is_unclear():
    assert EXPERIMENT.conclude(measured(Options(seeds=1), 0.2), Options(seeds=1)).word == "unclear"


def test_the_best_round_is_one_that_was_made():
    lines = [{"round": n, "eval/gold": gold} for n, gold in enumerate([3.0, 0.1, 0.7, 0.2])]
    assert rounds.best_by_gold(lines) == 2


def test_the_spread_of_a_judge(tmp_path):
    rows = [{"scores": [1.0, 3.0]}, {"scores": [5.0, 7.0]}]
    (tmp_path / "scored.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert rounds._spread(tmp_path / "scored.jsonl") == pytest.approx(5**0.5)


def test_the_picture():
    readable(EXPERIMENT.draw(measured(Options(), 0.3, 0.01), Options()))
