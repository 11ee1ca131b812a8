"""The picture of data: which panels there are, and what cannot be written."""

from __future__ import annotations

import struct

import pytest

from align_jax import check_data
from align_jax.errors import UserError
from align_jax.evaluation import data_plots
from tests.data.toys import char_tokenizer, opinion, write_jsonl

ROWS = {
    "groups": [
        {
            "instruction": f"p{i}",
            "completions": [
                {"model": m, "response": m * (i + 1), "overall_score": i + k} for k, m in enumerate("abc"[: 2 + i % 2])
            ],
        }
        for i in range(8)
    ],
    "beliefs": [opinion(f"q{i % 2}", accepted=i % 3, rejected=(i + 1) % 3, group="ab"[i % 2]) for i in range(12)],
    "prompts": [{"prompt": "a"}],
    "labels": [{"prompt": f"p{i}", "completion": "x" * i + "y", "label": i % 2 == 0} for i in range(4)],
}
PANELS = {
    "groups": {"Scores", "Are longer answers scored higher?", "Scores by who wrote the answer", "How many answers a row has"},
    "beliefs": {"Do the rows agree with the stated beliefs?", "What is accepted, by group"},
    "prompts": set(),
    "labels": {"Scores", "Are longer answers scored higher?"},
}


@pytest.mark.parametrize("name", ROWS)
def test_panels_are_those_of_the_data(tmp_path, name, monkeypatch):
    figures = []
    monkeypatch.setattr(data_plots, "Figure", lambda make=data_plots.Figure, **o: figures.append(make(**o)) or figures[-1])
    report = check_data(
        write_jsonl(tmp_path / "r.jsonl", ROWS[name]), "log.quiet=true", tokenizer=char_tokenizer(adds_bos=True)
    )
    data_plots.draw_data(report, tmp_path / "deeper" / "data.png")
    head = (tmp_path / "deeper" / "data.png").read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n" and min(struct.unpack(">II", head[16:])) > 300
    titles = {axis.get_title() for axis in figures[0].axes if axis.get_visible()}
    lengths = {"Length of prompts"} | ({"Length of answers"} if name != "prompts" else set())
    assert titles == PANELS[name] | lengths


def test_two_data_sets_share_panels_and_cuts_are_drawn(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(data_plots, "Figure", lambda make=data_plots.Figure, **o: figures.append(make(**o)) or figures[-1])
    path = write_jsonl(tmp_path / "r.jsonl", ROWS["groups"])
    config = {"data": {"train": path, "eval": path, "max_response_tokens": 6}, "log": {"quiet": True}}
    data_plots.draw_data(check_data(config, tokenizer=char_tokenizer()), tmp_path / "data.svg")
    (axis,) = [axis for axis in figures[0].axes if axis.get_title() == "Length of answers"]
    assert {text.get_text() for text in axis.get_legend().get_texts()} == {"data.train", "data.eval"}
    assert any(text.get_text().startswith("cut at 6: ") for text in axis.texts)


def test_what_cannot_be_drawn(tmp_path):
    report = check_data(write_jsonl(tmp_path / "r.jsonl", ROWS["groups"]), "log.quiet=true")
    with pytest.raises(UserError, match="data.xyz: the picture cannot be written"):
        data_plots.draw_data(report, tmp_path / "data.xyz")


def test_what_is_not_drawn_is_said(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(data_plots, "Figure", lambda make=data_plots.Figure, **o: figures.append(make(**o)) or figures[-1])
    completions = [{"model": f"m{k}", "response": "x" * k, "overall_score": k} for k in range(15)]
    rows = [{"instruction": f"p{i}", "completions": completions} for i in range(20)]
    rows[0] = {**rows[0], "completions": [completions[0], {**completions[1], "response": "y" * 900}]}
    report = check_data(
        write_jsonl(tmp_path / "r.jsonl", rows), "log.quiet=true", "data.max_response_tokens=8", tokenizer=char_tokenizer()
    )
    monkeypatch.setattr(data_plots, "_POINTS", 50)
    data_plots.draw_data(report, tmp_path / "data.png")
    axes = {axis.get_title(): axis for axis in figures[0].axes}
    assert "Scores by who wrote the answer: 12 of 15 shown" in axes
    assert axes["Length of answers"].get_xlabel() == "tokens (longest: 901)"
    assert axes["Length of prompts"].get_xlabel() == "tokens (none is cut at 512)"
    assert axes["Are longer answers scored higher?"].get_xlabel().endswith("(50 of 287 answers shown)")
    assert figures[0].get_suptitle() == "r.jsonl (20 rows)"


def test_all_data_sets_of_a_mixture_are_in_the_title(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(data_plots, "Figure", lambda make=data_plots.Figure, **o: figures.append(make(**o)) or figures[-1])
    paths = [write_jsonl(tmp_path / f"{name}.jsonl", ROWS["groups"]) for name in ("one", "two", "three")]
    data_plots.draw_data(check_data(paths, "log.quiet=true"), tmp_path / "data.png")
    title = " ".join(figures[0].get_suptitle().split())
    assert title == ", ".join(f"data.train.{name} ({name}.jsonl, 8 rows)" for name in ("one", "two", "three"))
    models = next(axis for axis in figures[0].axes if axis.get_title().startswith("Scores by"))
    assert models.get_title() == "Scores by who wrote the answer: 3 of 3 of data.train.one shown"
