"""What is concluded of minorities' shares, on made-up measurements."""

import pytest

from align_jax.experiments.claim import Options
from align_jax.experiments.gdpo import imbalance
from tests.experiments.made_up import judged, measurements

pytest.importorskip("matplotlib")


def measured(gdpo: float, dpo: float, seeds: int = 3, after: float | None = None, rarest: float = 0.01):
    """The minority's predicted share at 95/5, as GDPO and as DPO have it; no text of DPO expresses it."""

    shares = {"gdpo": gdpo, "dpo": dpo, "start": 0.5, "sft": 0.1, "sft-dpo": dpo if after is None else after}

    def values(cell):
        arm, found = cell.settings["arm"], {}
        for split, probs in imbalance.SPLITS.items():
            share = shares[arm] + 0.001 * cell.settings["seed"]
            predicted = share if split == "95/5" else rarest if (arm, split) == ("gdpo", "99/1") else min(probs)
            found |= {
                f"predicted/{split}": predicted,
                f"error/{split}": abs(predicted - min(probs)),
                f"written/{split}": 0.0 if arm == "dpo" else predicted,
                f"neither/{split}": 0.5,
            }
        return found

    return measurements(imbalance.EXPERIMENT, values, seeds)


@pytest.mark.parametrize(
    "gdpo, dpo, seeds, word",
    [
        (0.051, 0.2, 3, "holds"),
        (0.2, 0.4, 3, "fails"),
        (0.06, 0.05, 3, "fails"),  # DPO keeps it better
        (0.069, 0.2, 3, "unclear"),
        (0.051, 0.2, 1, "unclear"),
    ],
)
def test_the_share_at_95_5_decides(gdpo, dpo, seeds, word):
    assert judged(imbalance.EXPERIMENT, measured(gdpo, dpo, seeds), seeds) == word


def test_the_nearer_of_both_dpo_decides():
    assert judged(imbalance.EXPERIMENT, measured(0.06, 0.2, after=0.05)) == "fails"


@pytest.mark.parametrize("rarest, word", [(0.019, "holds"), (0.027, "fails"), (0.004, "fails")])
def test_the_rarest_share_may_be_half_or_twice_as_large(rarest, word):
    assert judged(imbalance.EXPERIMENT, measured(0.051, 0.2, rarest=rarest)) == word


def test_a_quick_run_that_misses_a_limit_is_unclear_and_the_line_names_the_others():
    verdict = imbalance.EXPERIMENT.conclude(measured(0.051, 0.2, rarest=0.027), Options(quick=True))
    assert verdict.word == "unclear"
    assert "SFT 0.101" in verdict.line and "the start 0.501" in verdict.line


def test_the_ratio_to_the_true_share_is_told():
    figures = imbalance.EXPERIMENT.conclude(measured(0.1, 0.2), Options()).figures
    assert figures["predicted share divided by the true one, GDPO, 95/5"].value == pytest.approx(0.101 / 0.05)
    assert figures["texts of neither belief, DPO"].value == pytest.approx(0.5)
