"""`align-jax data check` as a user runs it: what it prints and writes, its exit status, and that it needs no device."""

from __future__ import annotations

import json
import os
import subprocess
import sys

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
    assert out.startswith(f"data.train: {pairs}\nformat pairs: 12 rows; 12 different prompts; 24 answers, 2 in each row\n")
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
    assert f"data.train: {pairs}" in capsys.readouterr().out


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


def test_the_rows_of_a_mixture_are_told_apart(tmp_path, pairs):
    more = write_jsonl(tmp_path / "more.jsonl", [{"prompt": f"m{i}", "chosen": "x", "rejected": "y"} for i in range(3)])
    config = {"data": {"train": [{"path": pairs, "name": None}, {"path": more}]}, "log": {"quiet": True}}
    config["data"]["train"] = [{"path": pairs}, {"path": more}]
    report = check_data(config)
    assert report.parts[0].gathered.rows == 15 and sum(report.parts[0].gathered.sources.values()) == 15


def test_colours_on_a_terminal_alone(pairs):
    report = check_data(pairs, "log.quiet=true", tokenizer=char_tokenizer())
    assert "\x1b[1mdata.train" in report.text(color=True) and "\x1b" not in report.text()
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
    assert "  0:         [a b<EOS </s>>]" in repr(report)


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
