"""`align-jax data check` as a user runs it: what it prints and writes, its exit status, and that it needs no device."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from align_jax import Config, UserError, check_data, cli
from align_jax.errors import MissingPackage
from tests.data.toys import char_tokenizer, opinion, write_jsonl

PAIRS = [{"prompt": f"p{i}", "chosen": f"good {i}", "rejected": f"evil {i}"} for i in range(12)]


@pytest.fixture
def pairs(tmp_path):
    return write_jsonl(tmp_path / "pairs.jsonl", PAIRS)


def test_a_file_is_enough(pairs, capsys):
    assert cli.main(["data", "check", pairs]) == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"{pairs}\nformat pairs: 12 rows; 12 different prompts; 24 answers, 2 in each row\n")
    assert (
        "Without a tokenizer" in out and out.endswith("0 problems, 0 warnings, 0 notes\n") and "\x1b" not in out and err == ""
    )


@pytest.mark.parametrize("rows, usual, strict", [
    (PAIRS, 0, 0),
    ([*PAIRS, {"prompt": "a", "chosen": "x", "rejected": "x"}], 0, 1),
    ([*PAIRS, {"prompt": "a", "chosen": "x"}], 1, 1),
])  # fmt: skip
def test_the_exit_status_is_for_ci(tmp_path, rows, usual, strict, capsys):
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    assert cli.main(["data", "check", path]) == usual and cli.main(["data", "check", path, "--strict"]) == strict


@pytest.mark.parametrize(
    "name, content, said",
    [
        ("none.jsonl", None, "none.jsonl: no such file or folder"),
        ("empty.jsonl", "", "empty.jsonl is empty"),
        ("junk.jsonl", "junk\n", "junk.jsonl:1: not JSON"),
        ("other.jsonl", '{"a": 1}\n', "are those of no format"),
        ("data.txt", "x", "data.txt"),
    ],
)
def test_what_cannot_be_read_is_status_2(tmp_path, name, content, said, capsys):
    if content is not None:
        (tmp_path / name).write_text(content)
    assert cli.main(["data", "check", str(tmp_path / name)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and said in err and err.count("\n") == 1


def test_json_is_one_object(pairs, capsys):
    assert cli.main(["data", "check", pairs, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["problems"], found["warnings"], found["notes"]) == (0, 0, 0) and len(found["not_checked"]) == 1
    part = found["data"]["data.train"]
    assert (part["format"], part["rows"], part["sizes"], part["tokens"]) == ("pairs", 12, {"2": 12}, None)
    assert part["scores"]["pairs"] is True and part["scores"]["overall"]["values"] == {"0.0": 12, "1.0": 12}


def test_a_folder_of_results(tmp_path, pairs, capsys):
    bad = write_jsonl(tmp_path / "bad.jsonl", [*PAIRS, *({"prompt": "q", "chosen": "x"} for _ in range(30))])
    out = tmp_path / "out"
    assert cli.main(["data", "check", bad, "--out", str(out), "--plot", str(tmp_path / "plot.png")]) == 1
    text = capsys.readouterr().out
    assert {p.name for p in out.iterdir()} == {"report.txt", "report.json", "report.png", "bad_rows.train.jsonl"}
    assert (out / "report.txt").read_text() == text and (tmp_path / "plot.png").stat().st_size > 5000
    lines = [json.loads(line) for line in (out / "bad_rows.train.jsonl").read_text().splitlines()]
    assert len(lines) == 30 and lines[29]["where"] == f"{bad}:42"
    assert cli.main(["data", "check", pairs, "--out", str(out)]) == 0  # an old list does not stay
    assert not (out / "bad_rows.train.jsonl").exists()


def test_a_config_with_its_model_and_both_data_sets(tmp_path, pairs, capsys):
    char_tokenizer(adds_bos=True).save_pretrained(tmp_path / "tokenizer")
    config = tmp_path / "c.yaml"
    config.write_text(
        f"model: {{tokenizer: {tmp_path / 'tokenizer'}}}\ndata: {{train: {pairs}, eval: 0.25, max_response_tokens: 9}}\n"
        "objective: {name: dpo}\n"
    )
    assert cli.main(["data", "check", str(config), "--data.max_prompt_tokens", "2"]) == 0
    out = capsys.readouterr().out
    assert "data.train: " in out and "data.eval: " in out and "9 rows" in out and "3 rows" in out
    assert "data.max_prompt_tokens 2 cuts 9 of 9 prompts (100%)" in out and "the first batch" in out
    assert out.count("the first batch") == 1 and "Without a tokenizer" not in out
    assert cli.main(["data", "check", str(config), "--strict"]) == 0
    assert cli.main(["data", "check", str(config), "--strict", "--data.max_response_tokens", "3"]) == 1


def test_a_run_folder_is_its_config(tmp_path, pairs, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(f"data: {{train: {pairs}}}\nrun: {{dir: {tmp_path / 'run'}}}\n")
    assert cli.main(["data", "check", str(tmp_path / "run")]) == 0
    assert capsys.readouterr().out.startswith(f"{pairs}\n")


def test_from_python(tmp_path, pairs):
    report = check_data(pairs, "log.quiet=true")
    assert repr(report) == report.text() and report.status() == 0
    assert [part.name for part in check_data(PAIRS, "log.quiet=true").parts] == ["data.train"]
    config = Config.of({"data": {"train": [opinion("q")]}, "log": {"quiet": True}})
    assert check_data(config, tokenizer=char_tokenizer()).parts[0].tables["beliefs"]["by_group"]["all"]["yes"]["count"] == 1
    with pytest.raises(UserError, match="no data to look at"):
        check_data({"run": {"dir": str(tmp_path)}})
    with pytest.raises(UserError, match="tokenizer: no tokenizer can be loaded"):
        check_data(pairs, "log.quiet=true", tokenizer=str(tmp_path / "none"))


def _mixture(tmp_path, pairs, **data):
    rows = [{"prompt": f"p{i}", "responses": ["x", "y"], "scores": [3 * i, 4], "extra": 1} for i in range(3)]
    more = write_jsonl(tmp_path / "more.jsonl", [*rows, {"prompt": "q"}])
    members = [{"path": pairs, "weight": 1}, {"path": more, "weight": 2, "label": "ours"}]
    return {"data": {"train": members, **data}, "log": {"quiet": True}}


def test_each_data_set_of_a_mixture_is_checked_by_itself(tmp_path, pairs):
    report = check_data(_mixture(tmp_path, pairs), tokenizer=char_tokenizer())
    one, ours = report.parts
    assert [(part.name, part.gathered.format, part.gathered.rows) for part in report.parts] == [
        ("data.train.pairs", "pairs", 12),
        ("data.train.ours", "groups", 4),
    ]
    assert one.tables["scores"]["pairs"] and ours.tables["scores"]["overall"]["quantiles"]["100"] == 6
    said = {finding.code: finding for finding in ours.findings}
    assert {f.code for f in one.findings} & {"columns_not_read", "bad_rows"} == set()
    assert said["columns_not_read"].text == "1 of 4 columns is not read by format groups: extra"
    assert said["bad_rows"].details[0].startswith(f"{tmp_path / 'more.jsonl'}:4: ")
    assert said["shared_prompts"].text == "3 of 3 prompts are in data.train.pairs too" and said["shared_prompts"].count == 3
    line = "data.train: groups of an epoch: pairs 12 (33.3%), ours 3 x 8 (66.7%)"
    assert report.mixtures == {"data.train": line} and line in report.text() and report.to_json()["mixtures"]
    assert report.text().count("the first batch") == 1


def test_a_mixture_with_a_part_held_out(tmp_path, pairs, capsys):
    report = check_data(_mixture(tmp_path, pairs, eval=0.25), "data.on_bad_row=skip", tokenizer=char_tokenizer())
    rows = {part.name: part.gathered.rows for part in report.parts}
    assert set(rows) == {f"data.{which}.{label}" for which in ("train", "eval") for label in ("pairs", "ours")}
    assert rows["data.train.pairs"] + rows["data.eval.pairs"] == 12 and rows["data.train.ours"] + rows["data.eval.ours"] == 4
    assert not any(finding.code == "overlap" for finding in report.findings)


def test_a_mixture_for_evaluation_is_compared_with_what_is_trained_on(tmp_path, pairs):
    other = write_jsonl(tmp_path / "other.jsonl", [{"prompt": "new", "chosen": "x", "rejected": "y"}])
    report = check_data(_mixture(tmp_path, other, eval=[{"path": other, "label": "e1"}, {"path": pairs, "label": "e2"}]))
    overlaps = {part.name: [f.text for f in part.findings if f.code == "overlap"] for part in report.parts}
    why = " too: an evaluation on what was trained on says little"
    assert overlaps["data.eval.e1"] == [f"1 of 1 prompt of the evaluation is in data.train.other{why}"]
    assert overlaps["data.eval.e2"] == [f"3 of 12 prompts of the evaluation are in data.train.ours{why}"]
    assert set(report.mixtures) == {"data.train"}


def test_a_split_that_a_fraction_leaves_unused_is_said(tmp_path):
    for split in ("train", "test"):
        (tmp_path / "both").mkdir(exist_ok=True)
        write_jsonl(tmp_path / "both" / f"{split}.jsonl", PAIRS)
    (tmp_path / "one").mkdir()
    write_jsonl(tmp_path / "one" / "rows.jsonl", PAIRS)
    for folder, said in (("both", [f"{tmp_path / 'both'}: test"]), ("one", [])):
        report = check_data({"data": {"train": str(tmp_path / folder), "eval": 0.25}, "log": {"quiet": True}})
        assert [line for f in report.findings if f.code == "split_not_used" for line in f.details] == said


def test_json_has_every_place(tmp_path):
    rows = [{"prompt": f"p{i}", "chosen": "", "rejected": "y" * i} for i in range(1, 31)]
    report = check_data(write_jsonl(tmp_path / "r.jsonl", rows), "log.quiet=true")
    (found,) = [f for f in report.to_json()["data"]["data.train"]["findings"] if f["code"] == "empty_answers"]
    assert len(found["details"]) == found["count"] == 30 and "... 27 more (--json has all)" in report.text()


def test_columns_with_odd_names_are_quoted(tmp_path):
    path = write_jsonl(tmp_path / "r.jsonl", [row | {"": 1, "a, b": 2, " c": 3, "plain one": 4} for row in PAIRS])
    assert "4 of 7 columns are not read by format pairs: '', ' c', 'a, b', plain one\n" in check_data(path).text(200)


@pytest.mark.parametrize("what", [None, 5, [], [1, 2], b"x", ["a", {"prompt": "b"}]])
def test_what_is_no_data_is_said(what):
    with pytest.raises(UserError):
        check_data(what, "log.quiet=true")


def test_a_refused_row_is_a_sentence_and_no_table_is_empty(tmp_path):
    talk = [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a b"}]
    path = write_jsonl(tmp_path / "sft.jsonl", [{"messages": talk}] * 2)
    text = check_data(path, "log.quiet=true", tokenizer=char_tokenizer(chat="{% for m in messages %}x{% endfor %}")).text()
    assert "cannot be made: all 2 rows are malformed, the first: " in text and "{'where'" not in text
    assert "\ntokens\n" not in text


def test_colours_on_a_terminal_alone(pairs):
    report = check_data(pairs, "log.quiet=true", tokenizer=char_tokenizer())
    assert f"\x1b[1m{pairs}" in report.text(color=True) and "\x1b" not in report.text()
    assert max(map(len, report.text(width=80).split("the first batch")[0].splitlines())) <= 100


def test_without_matplotlib_all_else_is_written(tmp_path, pairs, monkeypatch, capsys):
    def missing(*_):
        raise MissingPackage("a picture of the data needs matplotlib: pip install 'align-jax[plots]'")

    monkeypatch.setattr("align_jax.recipes.data_check.optional", missing)
    assert cli.main(["data", "check", pairs, "--out", str(tmp_path / "out")]) == 0
    assert "pip install 'align-jax[plots]'" in capsys.readouterr().err
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"report.txt", "report.json"}
    assert cli.main(["data", "check", pairs, "--plot", str(tmp_path / "p.png")]) == 2


def test_what_cannot_be_drawn_or_written_is_said_at_once(tmp_path, pairs, capsys, monkeypatch):
    monkeypatch.setattr("align_jax.recipes.data_check.run", lambda *_: pytest.fail("it was read"))
    assert cli.main(["data", "check", pairs, "--plot", str(tmp_path / "p.bmp")]) == 2
    assert cli.main(["data", "check", pairs, "--out", pairs]) == 2
    assert "p.bmp: the ending says what is drawn" in capsys.readouterr().err


def test_single_answers_without_labels(tmp_path):
    talk = [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a b"}]
    path = write_jsonl(tmp_path / "sft.jsonl", [{"messages": talk}, {"messages": talk[:1] * 2}])
    chat = "{% for m in messages %}{{ m['content'] }}{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    report = check_data(path, "log.quiet=true", tokenizer=char_tokenizer(chat=chat))
    part = report.parts[0]
    assert part.gathered.format == "messages" and len(part.gathered.bad) == 1 and part.tables["scores"] is None
    assert "  1:         [a b<EOS </s>>]" in repr(report)


def test_a_stream_that_knows_no_unicode(tmp_path):
    path = write_jsonl(tmp_path / "r.jsonl", [{"prompt": "\u00e9", "chosen": "\u00e9 \U0001f600", "rejected": "y"}] * 2)
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-m", "align_jax", "data", "check", path], capture_output=True, env=environment)
    assert done.returncode == 0 and b"\\xe9" in done.stdout


def test_no_device_is_taken(pairs):
    code = (
        "import sys, jax\nfrom align_jax import cli\n"
        f"assert cli.main(['data', 'check', {pairs!r}]) == 0\n"
        "from jax._src import xla_bridge\nassert not xla_bridge._backends, 'a device was started'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.skipif(not os.environ.get("ALIGN_JAX_DATA"), reason="ALIGN_JAX_DATA is not set")
def test_the_example_of_the_page_is_what_the_command_says(monkeypatch, capsys):
    page = (Path(__file__).parents[2] / "docs" / "data-check.md").read_text(encoding="utf-8")
    command, shown = re.search(
        r"```bash\n(align-jax data check preferences/\S+ .*)\n```\n\n```\n(.*?)\n```", page, re.DOTALL
    ).groups()
    monkeypatch.chdir(os.environ["ALIGN_JAX_DATA"])
    assert cli.main(command.split()[1:]) == 1
    said = iter(capsys.readouterr().out.splitlines())
    lines = [line for line in shown.splitlines() if line.strip() not in ("", "...")]
    assert len(lines) > 20 and [line for line in lines if line not in said] == []


def test_labels_and_the_answers_of_other_rows_are_told_apart(tmp_path):
    rows = [{"prompt": f"p{i}", "completion": f"c{i}", "label": i == 0} for i in range(2)]
    text = check_data(write_jsonl(tmp_path / "r.jsonl", rows), "log.quiet=true", tokenizer=char_tokenizer()).text()
    assert "  1: good    [c0<EOS </s>>]\n  unrelated  [c1<EOS </s>>]" in text
    assert "  1: bad     [c1<EOS </s>>]\n  unrelated  [c0<EOS </s>>]" in text


def test_texts_are_counted_and_one_that_cannot_be_read_is_refused(pairs, tmp_path):
    (tmp_path / "plain.txt").write_text("abcdefghij")
    data = {"train": pairs, "eval_text": str(tmp_path / "plain.txt"), "max_response_tokens": 4}
    report = check_data({"data": data})
    assert report.texts == "data.eval_text: 1 text of 10 characters" and report.texts in report.text()
    tokenized = check_data({"data": data}, tokenizer=char_tokenizer())
    assert re.fullmatch(r"data.eval_text: \d+ tokens of 1 text of .*plain.txt, in \d pieces", tokenized.texts)
    assert tokenized.to_json()["eval_text"] == tokenized.texts and check_data({"data": {"train": pairs}}).texts is None
    write_jsonl(tmp_path / "rows.jsonl", [{"words": "a"}])
    with pytest.raises(UserError, match="rows.jsonl:1: data.eval_text reads the column `text`"):
        check_data({"data": data | {"eval_text": str(tmp_path / "rows.jsonl")}})
