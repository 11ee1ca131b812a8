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
    assert found.severity == "problem" and report.status() == 1 and found.count == 25 and len(found.details) == 25
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
    assert found["same_answers"].text.startswith("1 of 8 rows has chosen == rejected")
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
    padded = [*each, -1, -1, 1, 1]  # Agresti and Coull
    np.testing.assert_allclose(found["interval"], np.mean(padded) + np.array([-1.96, 1.96]) * np.std(padded) / np.sqrt(44))
    assert _codes(_check(tmp_path, rows))["length_correlation"].severity == "note"
    assert length_correlation(_gathered(tmp_path, rows[:5])) is None


def test_plain_text_of_conversations():
    messages = (
        {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f"}}]},
        {"role": "assistant", "content": [{"type": "text", "text": "hi"}]},
        {"role": "assistant", "content": "there"},
    )
    assert plain(messages) == '[{"function": {"name": "f"}}]\nhi\nthere' and plain("x") == "x"


def _pair(prompt, chosen, rejected, **more):
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **more}


@pytest.mark.parametrize(
    "rows, text, places",
    [
        (
            [_pair("p", "a", "b"), _pair("q", "a", "b"), _pair("p", "b", "a")],
            "2 of 3 comparisons of two answers (67%)",
            ["1:3"],
        ),
        ([_pair("p", "a", "b")] * 2 + [_pair("p", "b", "a")], "3 of 3 comparisons of two answers (100%)", ["1,2:3"]),
        ([_pair("p", "a", "b"), _pair("p", "b", "c"), _pair("p", "c", "a")], None, []),
        ([_pair("p", "a", "b"), _pair("q", "b", "a")], None, []),
        ([_pair("p", "a", "b", group="g"), _pair("p", "b", "a", group="h")], None, []),
        ([_pair("p", "a", "a")] * 2, None, []),
        (
            [{"prompt": "p", "responses": list("abc"), "scores": s} for s in ([3, 2, 1], [1, 2, 1], [4, 4, 0])],
            "2 of 7 comparisons of two answers (29%)",
            ["1:2"],
        ),
        ([{"prompt": "p", "responses": list("aba"), "scores": [3, 2, 1]}], None, []),
        ([{"prompt": "p", "completion": "a", "label": label} for label in (True, False, True)], "3 of 3 labels", ["1,3:2"]),
        ([{"prompt": p, "completion": "a", "label": p == "p"} for p in "pq"], None, []),
    ],
)
def test_rows_that_contradict_each_other(tmp_path, rows, text, places):
    found = next((f for code, f in _codes(_check(tmp_path, rows)).items() if code.startswith("contradicting")), None)
    assert (found is None) == (text is None)
    if found is not None:
        short = [
            re.sub(r"\S*rows\.jsonl:(\d+)", r"\1", line).replace(", ", ",").replace(" against ", ":") for line in found.details
        ]
        assert found.text.startswith(text) and found.severity == "warning" and short == places


def test_few_prompts_that_agree_are_no_certainty(tmp_path):
    rows = [_pair(f"p{i}", "long answer", "no") for i in range(10)]
    low, high = length_correlation(_gathered(tmp_path, rows))["interval"]
    assert low < 0.5 and high == 1.0
    assert "of only 10 prompts; a model trained on this may come" in _codes(_check(tmp_path, rows))["length_correlation"].text
    many = [_pair(f"p{i}", "long answer", "no") for i in range(400)]
    assert length_correlation(_gathered(tmp_path, many))["interval"][0] > 0.95
    assert "tends to write longer ones" in _codes(_check(tmp_path, many))["length_correlation"].text


def test_nearly_the_same_is_not_called_the_same(tmp_path):
    rows = [_pair(f"p{i}", "The  same" if i < 3 else "the same", f"other {i}") for i in range(9)]
    details = _codes(_check(tmp_path, rows))["repeated_answers"].details
    assert len(details) == 1 and details[0].endswith(": 9 times nearly the same, 6 of them sign for sign, to 9 prompts")


def test_one_is_not_spoken_of_as_several(tmp_path):
    rows = [_pair("p", "a", "b"), _pair("p", "a", "c"), _pair("q", "x", "")]
    texts = " ".join(f.text for f in _check(tmp_path, rows).findings)
    assert "1 of 2 prompts stands in several rows, up to 2: " in texts
    assert "1 of 6 answers is empty" in texts and "leaves it out" in texts


def test_units_of_several_groups_are_no_prompts(tmp_path):
    one = [opinion("q", group=g) for g in "ab"]
    text = _codes(_check(tmp_path, one))["belief_without_rows"].text
    assert text.startswith("2 of 2 combinations of prompt and group have")
    assert _codes(_check(tmp_path, one[:1]))["belief_without_rows"].text.startswith("1 of 1 prompt has")


@pytest.mark.parametrize("width", [80, 100, None])
def test_tables_fit_the_terminal(tmp_path, width):
    names = [f"a-model-with-a-name-{i}" for i in range(3)]
    rows = [
        {
            "instruction": f"p{i}",
            "completions": [
                {"model": m, "response": m * (i + 1), "overall_score": 0.00012345 * (i + k)} for k, m in enumerate(names)
            ],
        }
        for i in range(30)
    ]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    lines = check_data(path, "log.quiet=true").text(width).splitlines()[1:]
    at = next(i for i, line in enumerate(lines) if line.startswith("scores by"))
    assert max(map(len, lines)) <= (width or 120) and "median" in lines[at + 1] and "standing" in lines[at + 1]
    assert (" 5% " in lines[at + 1]) is {80: False, None: True}.get(width, " 5% " in lines[at + 1])
    assert re.search(r" 0\.00\d{3,}", lines[at + 2]) and not re.search(r"0\.00\d{6}", lines[at + 2])


def test_tables_of_beliefs_fit_the_terminal(tmp_path):
    rows = [opinion(f"question {i % 3}", accepted=i % 3, rejected=(i + 1) % 3, group=f"group {i % 2}") for i in range(24)]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    lines = check_data(path, "log.quiet=true").text(80).splitlines()[1:]
    assert max(map(len, [line for line in lines if not line.startswith("beliefs of each")])) <= 80
