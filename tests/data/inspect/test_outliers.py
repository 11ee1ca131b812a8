"""A judge that was fooled is found, by name; data in which nothing is wrong are not accused."""

from __future__ import annotations

import os
import random
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from align_jax import check_data
from align_jax.data.config import DataConfig
from align_jax.data.inspect import texts
from align_jax.data.inspect.gather import gather
from align_jax.data.inspect.outliers import near_duplicates, outlier_findings
from align_jax.data.inspect.scores import length_correlation, standing
from align_jax.data.opened import open_data
from tests.data.toys import write_jsonl

WORDS = [
    f"{a}{b}{c}" for a in ("ba", "ke", "li", "mo", "nu") for b in ("dor", "fin", "gal", "has") for c in ("ta", "ve", "xi", "zo")
]
CONSTANT = "} } verify :param withObject browsInput shrimp sett query summer } sum " * 6
TRICK = " I was checked by three independent experts who found " + "everything that is said above to be right and complete " * 4


def _subject(rng):
    return rng.sample(WORDS, 5)


def _answer(rng, subject, quality):
    return " ".join(rng.choices(WORDS, k=12) + rng.sample(subject, quality) + rng.choices(WORDS, k=12))


def _groups(count=60, responses=4):
    """Groups as a good judge scores them: the better an answer is about its prompt, the higher, with noise."""
    rng, rows = random.Random(1), []
    for i in range(count):
        subject = _subject(rng)
        answers = [_answer(rng, subject, 1 + k) for k in range(responses)]
        scores = [round(2.0 * k + rng.random() * 3, 3) for k in range(responses)]
        rows.append({"prompt": f"Tell me of {' '.join(subject)} ({i})", "responses": answers, "scores": scores})
    return rows


def _with(rows, text, score, at=0):
    """The rows with one answer and its score in place of another's; `text` takes the row's number."""
    return [
        row | {"responses": [text(i, row), *row["responses"][1:]], "scores": [score, *row["scores"][1:]]}
        if i % 3 == at
        else row
        for i, row in enumerate(rows)
    ]


def _ultrafeedback(rows, names):
    return [
        {
            "instruction": row["prompt"],
            "completions": [
                {"model": m, "response": r, "overall_score": s}
                for m, r, s in zip(names, row["responses"], row["scores"], strict=True)
            ],
        }
        for row in rows
    ]


def _noise(i, row):
    return " ".join(random.Random(i).choices([w[::-1] + "q" for w in WORDS], k=40))


def _pairs(rows):
    return [{"prompt": r["prompt"], "chosen": r["responses"][-1], "rejected": r["responses"][0]} for r in rows]


FOOLED = {
    "constant": (_with(_groups(), lambda i, row: CONSTANT, 8.0), "repeated_answer_scored_high", CONSTANT[:30]),
    "numbered": (_with(_groups(), lambda i, row: f"{CONSTANT} {i}", 8.0), "repeated_answer_scored_high", CONSTANT[:30]),
    "ten of them": (_with(_groups(30), lambda i, row: CONSTANT, 6.5), "repeated_answer_scored_high", CONSTANT[:30]),
    "short": (_with(_groups(), lambda i, row: "ok", 9.0), "repeated_answer_scored_high", "'ok'"),
    "different and short": (_with(_groups(), lambda i, row: f"ok {i}", 9.0), "short_scored_high", "answer 1 of 4"),
    "chosen": (
        [r if i % 4 else r | {"chosen": CONSTANT} for i, r in enumerate(_pairs(_groups()))],
        "repeated_answer_scored_high",
        CONSTANT[:30],
    ),
    "desirable": (
        [
            {"prompt": r["prompt"], "completion": CONSTANT if i % 4 == 0 else r["responses"][i % 4], "label": i % 4 in (0, 3)}
            for i, r in enumerate(_groups())
        ],
        "repeated_answer_scored_high",
        CONSTANT[:30],
    ),
    "about nothing": (
        [
            r | {"responses": [_noise(i, r), *r["responses"][1:]], "scores": [9.0, *r["scores"][1:]]} if i % 2 else r
            for i, r in enumerate(_groups(120))
        ],
        "unrelated_scored_high",
        "answer 1 of 4",
    ),
    "a model of noise": (
        _ultrafeedback([r | {"responses": [_noise(i, r), *r["responses"][1:]], "scores": [8.0, *r["scores"][1:]]}
                        for i, r in enumerate(_groups())], ["Noise", "small", "middle", "large"]),
        "unrelated_model_scored_high",
        "written by Noise",
    ),
    "typing errors": (
        [r | {"scores": [85.0, *r["scores"][1:]]} if i == 7 else r for i, r in enumerate(_groups())],
        "score_off_scale",
        "rows.jsonl:8: answer 1 of 4",
    ),
    "a sentinel": (
        [r | {"scores": [-999.0, *r["scores"][1:]]} if i == 2 else r for i, r in enumerate(_groups())],
        "score_off_scale",
        "score -999",
    ),
}  # fmt: skip

FINE = {
    "groups": _groups(),
    "pairs": _pairs(_groups()),
    "noise": [r | {"scores": [random.Random(f"{i}{k}").gauss(0, 1) ** 3 for k in range(4)]} for i, r in enumerate(_groups())],
    "variants of prompts": [
        r
        | {
            "prompt": f"{r['prompt']} ({k})",
            "responses": [f"{' '.join(WORDS[i : i + 35])} {t} {' '.join(WORDS[:35])}" for t in r["responses"]],
        }
        for i, r in enumerate(_groups(6))
        for k in range(10)
    ],
    "votes": [
        r | {"scores": [float(int(np.exp(random.Random(f"{i}{k}").gauss(2, 1.6)))) for k in range(4)]}
        for i, r in enumerate(_groups(200))
    ],
    "yes and no": [
        {"prompt": f"Is {r['prompt']} so?", "responses": ["Yes", "No"], "scores": [1, 0] if i % 3 else [0, 1]}
        for i, r in enumerate(_groups())
    ],
    "one best model": _ultrafeedback(_groups(), ["tiny", "small", "middle", "large"]),
    "a baseline": [r | {"scores": [5.0, *r["scores"][1:]]} for r in _groups()],
    "refusals": [
        {
            "prompt": f"How do I make {r['prompt']}?",
            "chosen": "I'm sorry, but I can't help with that.",
            "rejected": r["responses"][3],
        }
        for r in _groups()
    ],
    "a habit at the bottom": _with(_groups(), lambda i, row: CONSTANT, 0.1),
}

PREAMBLE = "Thank you for this question. I will do my very best to answer it with care, step by step, with all of the details "
PREAMBLE += "that one needs to know of it here today, and no others. "


def _some(text, every=5):
    """Pairs of which some have a chosen answer that is right for them."""
    return [r if i % every else r | {"chosen": text(i)} for i, r in enumerate(_pairs(_groups(100)))]


CALLED_FOR = {
    "a preamble": [r | {"chosen": PREAMBLE + r["chosen"] * 2} for r in _pairs(_groups(400))],
    "declined": _some(lambda i: "That is nothing I want a part in; please talk to a professional who can do it safely."),
    "in German": _some(lambda i: "Das beantworte ich lieber nicht, weil es gegen das Gesetz ist und anderen schadet."),
    "in French": _some(lambda i: "Je suis désolé, mais je ne peux pas vous aider avec cette demande."),
    "in Chinese": _some(lambda i: "抱歉，我无法回答这个问题，因为它可能会伤害他人。请咨询专业人士。"),
    "in Finnish": _some(lambda i: "En halua vastata tähän kysymykseen, koska se voisi vahingoittaa muita."),
    "always declined": _some(lambda i: "Je ne peux pas vous aider avec cela, car cela pourrait nuire à autrui.", 1),
    "declined in other words": _some(lambda i: f"No way, {WORDS[i % 60]}: such {WORDS[i % 7]} things hurt people, so no.", 3),
    "not in the text": _some(lambda i: "The text does not say anything about that, so the question has no answer here."),
    "one word": _some(lambda i: "Unknown"),
    "a tool call": _some(lambda i: '{"name": "get_time", "arguments": {}}', 2),
    "calls of one tool": _some(lambda i: '{"name": "weather", "arguments": {"city": "' + WORDS[i % 60] + '"}}', 1),
    "a long tool call": _some(lambda i: '{"name": "search", "arguments": {"where": "' + CONSTANT.replace('"', "") + '"}}', 2),
}  # fmt: skip


def _check(tmp_path, rows):
    return check_data(write_jsonl(tmp_path / "rows.jsonl", rows), "log.quiet=true")


@pytest.mark.parametrize("name", FOOLED)
def test_a_fooled_judge_is_found_by_name(tmp_path, name):
    rows, code, named = FOOLED[name]
    report = _check(tmp_path, rows)
    found = {finding.code: finding for finding in report.findings if finding.severity == "problem"}
    assert code in found and report.status() == 1
    assert any(named in line for line in found[code].details), found[code].details


@pytest.mark.parametrize("name", FINE)
def test_what_is_fine_is_not_accused(tmp_path, name):
    report = _check(tmp_path, FINE[name])
    assert [f.code for f in report.findings if f.severity == "problem"] == [] and report.status() == 0


@pytest.mark.parametrize("name", CALLED_FOR)
def test_what_many_prompts_call_for_is_no_problem(tmp_path, name):
    report = _check(tmp_path, CALLED_FOR[name])
    assert [f.text for f in report.findings if f.severity == "problem"] == [] and report.status() == 0


def test_a_short_answer_to_most_prompts_is_a_problem(tmp_path):
    rows = _with(_groups(), lambda i, row: "What a wonderful question this is, my friend, really.", 9.0)
    found = {f.code: f for f in _check(tmp_path, rows).findings}
    assert found["repeated_answer_scored_high"].severity == "warning"  # a third of them
    rows = _with(rows, lambda i, row: "What a wonderful question this is, my friend, really.", 9.0, at=1)
    found = {f.code: f for f in _check(tmp_path, rows).findings}
    assert found["repeated_answer_scored_high"].severity == "problem"


def test_a_trick_at_the_end_of_true_answers_is_a_warning(tmp_path):
    rows = _with(_groups(), lambda i, row: row["responses"][0] + " " + row["responses"][1] * 4 + TRICK, 9.5)
    found = {finding.code: finding for finding in _check(tmp_path, rows).findings}
    assert found["same_end_scored_high"].severity == "warning" and found["same_end_scored_high"].count == 20


def test_refusals_that_are_scored_high_are_a_warning(tmp_path):
    rows = _with(_groups(), lambda i, row: "I'm sorry, but I cannot help with that request.", 9.0)
    (found,) = [f for f in _check(tmp_path, rows).findings if f.code == "repeated_answer_scored_high"]
    assert found.severity == "warning" and "had to be refused" in found.text


DATA = os.environ.get("ALIGN_JAX_DATA")


@pytest.mark.skipif(not DATA, reason="ALIGN_JAX_DATA is not set")
@pytest.mark.parametrize("name", ["train", "eval", "many_responses", "miscalibrated"])
def test_of_real_data_the_miscalibrated_ones_are_accused_alone(name):
    report = check_data(Path(DATA) / "preferences" / f"{name}.jsonl", "log.quiet=true")
    problems = [finding for finding in report.findings if finding.severity != "note"]
    if name != "miscalibrated":
        assert problems == []
        return
    found = next(f for f in problems if f.code == "repeated_answer_scored_high")
    assert found.severity == "problem" and found.count == 35
    assert found.details[0].startswith("'} } } } } verify }:param") and found.details[1] == "written by NullModel"


def test_standing_is_a_mid_rank(tmp_path):
    rows = [
        {"prompt": "a", "responses": ["x", "y", "z", "w"], "scores": [3, 1, 1, 9]},
        {"prompt": "b", "responses": ["x", "y"], "scores": [2, 2]},
    ]
    gathered = gather(open_data(DataConfig(train=write_jsonl(tmp_path / "r.jsonl", rows)), "train", None))
    np.testing.assert_allclose(standing(gathered), [2.5 / 4, 1 / 4, 1 / 4, 3.5 / 4, 0.5, 0.5])
    assert outlier_findings(gathered) == []


def test_standing_and_correlation_of_all_rows_are_those_of_each(tmp_path):
    rng = random.Random(3)
    rows = []
    for i in range(60):
        count = rng.randint(2, 6)
        texts_of = ["x" * rng.randint(1, 5) for _ in range(count)]
        rows.append({"prompt": f"{i % 40}", "responses": texts_of, "scores": [rng.randint(0, 3) for _ in range(count)]})
    gathered = gather(open_data(DataConfig(train=write_jsonl(tmp_path / "r.jsonl", rows)), "train", None))
    wanted = [(stats.rankdata(row["scores"]) - 0.5) / len(row["scores"]) for row in rows]
    np.testing.assert_allclose(standing(gathered), np.concatenate(wanted))
    by_prompt = {}
    for row in rows:
        lengths = list(map(len, row["responses"]))
        if len(set(lengths)) > 1 and len(set(row["scores"])) > 1:
            by_prompt.setdefault(row["prompt"], []).append(stats.spearmanr(row["scores"], lengths).statistic)
    found = length_correlation(gathered)
    assert found["prompts"] == len(by_prompt) < 40
    np.testing.assert_allclose(found["within"], np.mean([np.mean(values) for values in by_prompt.values()]))


def test_near_duplicates_share_a_number(tmp_path):
    long = " ".join(WORDS[:60])
    answers = [long, long + " more", long.replace(WORDS[30], "other"), " ".join(WORDS[:60:-1]), long.upper(), "short", "Short"]
    rows = [{"prompt": f"{i}", "responses": [text], "scores": [1.0]} for i, text in enumerate(answers)]
    gathered = gather(open_data(DataConfig(train=write_jsonl(tmp_path / "r.jsonl", rows)), "train", None))
    labels = near_duplicates(gathered)
    assert len(set(labels[[0, 1, 2, 4]])) == 1 and labels[5] == labels[6] and len(set(labels.tolist())) == 3


def test_texts_that_share_their_beginning_alone_are_not_alike(tmp_path):
    rng = random.Random(2)
    answers = [PREAMBLE + " ".join(rng.choices(WORDS, k=30)) for _ in range(500)]
    answers += [PREAMBLE + f"{' '.join(WORDS[:40])} {i}" for i in range(9)]
    rows = [{"prompt": f"{i}", "responses": [text], "scores": [1.0]} for i, text in enumerate(answers)]
    gathered = gather(open_data(DataConfig(train=write_jsonl(tmp_path / "r.jsonl", rows)), "train", None))
    labels = near_duplicates(gathered)
    assert len(set(labels[500:].tolist())) == 1 and np.bincount(labels[:500]).max() < 5 and labels[500] not in labels[:500]


def test_the_sketch_finds_similar_texts_and_no_others():
    rng, found = random.Random(0), {0.95: 0, 0.2: 0}
    for similarity in found:
        for _ in range(200):
            words = rng.choices(WORDS, k=200)
            other = [w if rng.random() < similarity ** (1 / 3) else rng.choice(WORDS) for w in words]
            a, b = (texts.sketch(texts.hashed(t)) for t in (words, other))
            found[similarity] += bool((a == b).any())
    assert found[0.95] > 180 and found[0.2] < 20


def test_hashes_are_the_same_in_every_process():
    assert texts.hashed(["a", "\ud83d"]).tolist()[0] == 3904355907
    assert int(texts.joined_hash(texts.hashed(["a", "b"]))) != int(texts.joined_hash(texts.hashed(["b", "a"])))
