"""One pass over all rows: what is read, what is malformed, what repeats, how long answers are and what they score."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from align_jax import check_data
from align_jax.data.config import DataConfig
from align_jax.data.inspect.gather import gather
from align_jax.data.inspect.repeats import repeat_findings
from align_jax.data.inspect.scores import described, length_correlation, score_tables
from align_jax.data.inspect.texts import plain
from align_jax.data.opened import open_data
from tests.data.toys import opinion, write_jsonl


def _gathered(tmp_path, rows, **options):
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    return gather(open_data(DataConfig(train=path, on_bad_row="skip", **options), "train", None))


def _codes(report):
    return {finding.code: finding for finding in report.findings}


def _check(tmp_path, rows):
    return check_data(write_jsonl(tmp_path / "rows.jsonl", rows), "log.quiet=true")


MESSAGES = [{"role": "assistant", "content": "x y"}]
FORMATS = {
    "groups": ([{"prompt": "a", "responses": ["x", "y", "z"], "scores": [1, 2, 3]}], 3, [1, 2, 3]),
    "ultrafeedback": (
        [{"instruction": "a", "completions": [{"response": "x", "overall_score": 4}, {"response": "y", "overall_score": 2}]}],
        2,
        [4, 2],
    ),
    "pairs": ([{"prompt": "a", "chosen": "x", "rejected": "y"}], 2, [1, 0]),
    "unpaired": ([{"prompt": "a", "completion": "x", "label": True}], 1, [1]),
    "gdpo": ([opinion("a")], 2, [1, 0]),
    "prompts": ([{"prompt": "a"}], 0, []),
    "samples": ([{"prompt": "a", "responses": ["x"], "scores": [1], "tokens": [[4, 2]]}], 1, [1]),
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_gathered(tmp_path, name):
    rows, count, scores = FORMATS[name]
    gathered = _gathered(tmp_path, rows)
    assert gathered.format == name and gathered.size.tolist() == [count] and gathered.score.tolist() == scores
    report = _check(tmp_path, rows)
    assert f"format {name}: 1 row; 1 different prompt" in repr(report) and report.status() == 0
    assert report.to_json()["data"]["data.train"]["responses"] == count


def test_columns_that_are_not_read_are_named(tmp_path):
    rows = [{"prompt": "a", "chosen": "x", "rejected": "y", "source": "web", "group": "g", "empty": None}]
    gathered = _gathered(tmp_path, rows)
    assert gathered.unread == {"source": 1} and gathered.groups == ["g"]
    found = _codes(_check(tmp_path, rows))["columns_not_read"]
    assert found.severity == "note" and found.text == "1 of 5 columns is not read by format pairs: source"


def test_malformed_rows_are_all_listed_with_their_line(tmp_path):
    good = {"prompt": "a", "chosen": "x", "rejected": "y"}
    rows = [good, *[{"prompt": f"{i}", "chosen": "x"} for i in range(25)]]
    report = _check(tmp_path, rows)
    found = _codes(report)["bad_rows"]
    assert found.severity == "problem" and report.status() == 1 and found.count == 25 and len(found.details) == 20
    assert found.details[0].endswith("rows.jsonl:2: field 'rejected' is missing; the row has 'prompt', 'chosen'")
    assert len(report.to_json()["data"]["data.train"]["bad_rows"]) == 25
    assert "rows.jsonl:21" in repr(report) and "rows.jsonl:22" not in repr(report)


def test_models_are_found_in_usual_columns(tmp_path):
    completions = [{"model": m, "response": m, "overall_score": 1} for m in ("one", "two")]
    rows = [
        {"instruction": "a", "completions": completions},
        {"instruction": "b", "completions": completions[:1]},
    ]
    gathered = _gathered(tmp_path, rows)
    assert gathered.models == ["one", "two"] and gathered.model.tolist() == [0, 1, 0]
    rows = [{"prompt": "a", "responses": ["x", "y"], "scores": [1, 2], "models": ["m", "n"]}]
    assert _gathered(tmp_path, rows).models == ["m", "n"]
    rows = [{"prompt": "a", "responses": ["x", "y"], "scores": [1, 2], "models": ["m"]}]
    assert _gathered(tmp_path, rows).models == []


def test_repeats_are_counted(tmp_path):
    rows = [
        {"prompt": "a", "chosen": "x", "rejected": "x"},
        {"prompt": "a", "chosen": "long", "rejected": "y"},
        *[{"prompt": f"p{i}", "chosen": f"c{i}", "rejected": "I do not know"} for i in range(6)],
    ]
    found = {f.code: f for f in repeat_findings(_gathered(tmp_path, rows))}
    assert found["same_answers"].count == 1 and found["same_answers"].details[0].endswith(":1")
    assert found["same_answers"].text.startswith("1 of 8 rows have chosen == rejected")
    assert found["duplicated_prompts"].count == 1 and "--join" in found["duplicated_prompts"].text
    assert found["repeated_answers"].details == ("'I do not know': 6 times, to 6 prompts",)
    assert found["repeated_answers"].severity == "warning"
    rows = [
        {"prompt": "a", "responses": ["x", "x", "y"], "scores": [1, 2, 3]},
        {"prompt": "b", "responses": ["x"] * 2, "scores": [1, 1]},
    ]
    found = {f.code: f for f in repeat_findings(_gathered(tmp_path, rows))}
    assert "1 of them with different scores" in found["repeated_within"].text and found["same_answers"].count == 1


def test_prompts_in_both_data_sets_are_a_warning(tmp_path):
    train = write_jsonl(tmp_path / "a.jsonl", [{"prompt": p, "chosen": "x", "rejected": "y"} for p in "abc"])
    held_out = write_jsonl(tmp_path / "b.jsonl", [{"prompt": p, "chosen": "z", "rejected": "w"} for p in "cde"])
    report = check_data({"data": {"train": train, "eval": held_out}, "log": {"quiet": True}})
    found = _codes(report)["overlap"]
    assert (
        found.severity == "warning"
        and found.details == (f"{held_out}:1",)
        and report.status() == 0
        and report.status(True) == 1
    )
    fraction = check_data({"data": {"train": train, "eval": 0.34}, "log": {"quiet": True}})
    assert [part.gathered.rows for part in fraction.parts] == [2, 1] and "overlap" not in _codes(fraction)
    only = check_data({"data": {"eval": held_out}, "log": {"quiet": True}})
    assert [part.name for part in only.parts] == ["data.eval"]


def test_groups_without_contrast(tmp_path):
    level = {"prompt": "a", "responses": ["x", "y"], "scores": [2, 2]}
    rows = [level, *[{"prompt": f"{i}", "responses": ["x", "y"], "scores": [1, 2]} for i in range(3)]]
    found = _codes(_check(tmp_path, rows))["no_contrast"]
    assert (found.severity, found.count) == ("note", 1) and found.text.startswith("1 of 4 groups (25%)")
    found = _codes(_check(tmp_path, [level] * 3))
    assert found["no_contrast"].severity == "warning" and found["constant_score"].severity == "warning"


def test_labels_that_are_lopsided(tmp_path):
    rows = [{"prompt": f"p{i}", "completion": f"c{i}", "label": i == 0} for i in range(20)]
    assert _codes(_check(tmp_path, rows))["label_imbalance"].text.startswith("5.0% of 20 answers are desirable")
    rows = [{"prompt": f"p{i}", "completion": f"c{i}", "label": i % 3 == 0} for i in range(20)]
    assert "label_imbalance" not in _codes(_check(tmp_path, rows))


def test_the_page_has_every_code():
    root = Path(__file__).parents[3]
    files = [*(root / "align_jax" / "data" / "inspect").glob("*.py"), root / "align_jax" / "recipes" / "data_check.py"]
    code = "\n".join(file.read_text(encoding="utf-8") for file in files)
    made = set(re.findall(r'Finding\([^"]*(?:"(?:problem|warning|note)"[^"]*)*f?"(\w[\w{}]*)"', code))
    kinds = {"cut_{what}": ("prompts", "answers"), "same_{what}_scored_high": ("begin", "end")}
    made = {name.format(what=what) for name in made for what in kinds.get(name, ("",))}
    page = (root / "docs" / "data-check.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if re.match(r"\| (problem|warning|note)", line)]
    said = {
        name
        for row in rows
        for name in re.findall(r"`(\w+)`", row)
        if "_" in name or name in ("refused", "overlap", "boundaries")
    }
    assert len(made) > 25 and made - said == set() and said - made == set()


def test_scores_are_described(tmp_path):
    found = described(np.array([1.0, 2.0, 2.0, np.nan, 9.0]))
    assert found["count"] == 4 and found["mean"] == 3.5 and found["distinct"] == 3
    assert found["quantiles"]["50"] == 2.0 and found["values"] == {"1.0": 1, "2.0": 2, "9.0": 1}
    rows = [
        {"prompt": "a", "responses": ["x", "y"], "scores": [1, 3], "group": "g"},
        {"prompt": "b", "responses": ["x", "y"], "scores": [5, 7], "group": "h"},
    ]
    tables = score_tables(_gathered(tmp_path, rows))
    assert {name: found["mean"] for name, found in tables["by_group"].items()} == {"g": 2.0, "h": 6.0}


def test_the_correlation_with_length(tmp_path):
    rng = np.random.default_rng(0)
    rows = []
    for i in range(40):
        lengths = rng.permutation(8) + 1
        scores = lengths + 4 * rng.standard_normal(8)
        rows.append({"prompt": f"{i}", "responses": ["w" * int(n) for n in lengths], "scores": scores.tolist()})
    found = length_correlation(_gathered(tmp_path, rows))
    each = [stats.spearmanr([len(r) for r in row["responses"]], row["scores"]).statistic for row in rows]
    np.testing.assert_allclose(found["within"], np.mean(each))
    low, high = np.mean(each) + np.array([-1.96, 1.96]) * np.std(each, ddof=1) / np.sqrt(40)
    np.testing.assert_allclose(found["interval"], [low, high])
    assert _codes(_check(tmp_path, rows))["length_correlation"].severity == "note"
    assert length_correlation(_gathered(tmp_path, rows[:5])) is None


def test_plain_text_of_conversations():
    messages = (
        {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f"}}]},
        {"role": "assistant", "content": [{"type": "text", "text": "hi"}]},
        {"role": "assistant", "content": "there"},
    )
    assert plain(messages) == '[{"function": {"name": "f"}}]\nhi\nthere' and plain("x") == "x"
