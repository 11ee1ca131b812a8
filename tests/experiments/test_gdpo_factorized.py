"""What is concluded of a belief first against texts alone; and that both cost the same."""

import numpy as np
import pytest

from align_jax.experiments import opinions, world
from align_jax.experiments.gdpo import factorized
from align_jax.experiments.gdpo.pipeline import topics
from tests.experiments.made_up import judged, measurements

pytest.importorskip("matplotlib")


@pytest.mark.parametrize("best, seeds, word", [(0.1, 3, "holds"), (0.5, 3, "fails"), (0.29, 3, "unclear"), (0.1, 1, "unclear")])
def test_the_distance_to_texts_alone_decides(best, seeds, word):
    def values(cell):
        distance = best + 0.01 * cell.settings["seed"] if cell.settings["arm"] == factorized.BEST else 0.3
        return {"text_distance": distance, "readable": 0.9, "distance": 0.1}

    assert judged(factorized.EXPERIMENT, measurements(factorized.EXPERIMENT, values, seeds), seeds) == word


def test_tokens_of_a_row_are_those_of_the_tokenizer(tmp_path):
    from transformers import AutoTokenizer

    opinions.write_tokenizer(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    count = lambda text: len(tokenizer(text)["input_ids"])  # noqa: E731
    rows = world.rows(topics(), 50, seed=0)
    accepted, rejected = (np.mean([1 + count(row[f"{side}_response"]) for row in rows]) for side in ("accept", "reject"))
    statement = count(world.STATEMENT.format(id=1, belief="oppose"))
    found = {
        "direct-sft": accepted,
        "direct-dpo": accepted + rejected,
        "stated-sft": statement + accepted,
        "stated-gdpo": 4 * statement + accepted + rejected,
    }
    assert found == pytest.approx(factorized.TOKENS, rel=0.02)


@pytest.mark.parametrize("arm", factorized.ARMS)
def test_every_arm_trains_on_as_many_tokens(arm):
    way = arm.split("-")[0]
    spent = sum(steps * factorized.TOKENS[f"{way}-{name}"] for name, steps in factorized.stages(arm, 600))
    assert spent == pytest.approx(600 * factorized.TOKENS["direct-sft"], rel=0.01)


def test_rows_without_beliefs_keep_their_texts():
    rows = world.rows(topics()[:1], 2, seed=0)
    pairs, texts = factorized.without_beliefs(rows, True), factorized.without_beliefs(rows, False)
    assert pairs[0] == {key: rows[0][column] for key, column in
                        (("prompt", "prompt"), ("chosen", "accept_response"), ("rejected", "reject_response"))}  # fmt: skip
    assert texts[0] == {"prompt": rows[0]["prompt"], "completion": rows[0]["accept_response"]}
