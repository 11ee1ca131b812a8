"""`align-jax data convert`: what is written gives the same groups as what was read."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import transformers

from align_jax import Config, RewardModel, UserError, cli, convert_data
from align_jax.data import DataConfig, Encoder, GroupDataset
from align_jax.objectives import MPO
from align_jax.recipes.convert import Conversion, run
from tests.data.toys import char_tokenizer, opinion, write_jsonl
from tests.hf import models

ENDINGS = (".jsonl", ".jsonl.gz", ".parquet", ".array_record")
TOOL = {
    "type": "function",
    "function": {"name": "f", "parameters": {"type": "object", "properties": {"x": {"type": "string"}}}},
}
CALL = {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"x": "1"}}}]}
ROWS = [
    {
        "instruction": f"p{i} \U0001f600 \u65e5\u672c",
        "completions": [
            {"model": m, "response": m * (i + 1), "overall_score": i + k / 3} for k, m in enumerate("abc"[: 2 + i % 2])
        ],
        "group": i % 2,
    }
    for i in range(7)
]
TALKS = [
    {
        "prompt": [{"role": "user", "content": f"u{i}"}],
        "responses": [[CALL], [{"role": "assistant", "content": "no"}]],
        "scores": [1, 0.5],
        "tools": [TOOL] if i % 2 else [TOOL, {"type": "function", "function": {"name": "g"}}],
    }
    for i in range(3)
]


PRINTS_TOOLS = (
    "{{ tools | tojson }}{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] or '' }}"
    "{{ (m['tool_calls'] or []) | tojson }}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def _dataset(path, chat=None, **options):
    config = DataConfig(train=str(path), **options)
    return GroupDataset(config, "train", Encoder(char_tokenizer(chat=chat), config), arrangement=MPO().arrangement)


def _read(path):
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("ending", ENDINGS)
def test_converted_data_gives_the_same_groups(tmp_path, ending):
    given = write_jsonl(tmp_path / "given.jsonl", ROWS)
    made = convert_data(given, tmp_path / f"out{ending}", "log.quiet=true")
    assert (
        made.files == (tmp_path / f"out{ending}",) and made.to == "groups" and (made.counts.rows, made.counts.groups) == (7, 7)
    )
    before, after = _dataset(given), _dataset(made.files[0])
    assert len(before) == len(after) == 7 and after.format == "groups" and after.group_names == before.group_names == ("0", "1")
    for old, new in zip(before, after, strict=True):
        assert old.prompt.tolist() == new.prompt.tolist()
        assert [s.tokens.tolist() for s in old.segments] == [s.tokens.tolist() for s in new.segments]
        np.testing.assert_array_equal(old.labels["scores"], new.labels["scores"])
        assert old.labels["group_id"] == new.labels["group_id"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["given.jsonl", f"out{ending}"]


@pytest.mark.parametrize("ending", ENDINGS)
def test_conversations_with_tools_stay_as_they_are(tmp_path, ending):
    given = write_jsonl(tmp_path / "given.jsonl", TALKS)
    made = convert_data(given, tmp_path / f"out{ending}", "log.quiet=true")
    before, after = (_dataset(path, PRINTS_TOOLS) for path in (given, made.files[0]))
    examples = [(old.example_of(i), new.example_of(i)) for old, new in ((before, after),) for i in range(3)]
    assert all(old == new for old, new in examples) and len(examples[0][1].tools) == 2
    assert examples[0][1].responses[0][0]["tool_calls"][0]["function"]["arguments"] == {"x": "1"}


@pytest.mark.parametrize("ending", ENDINGS)
def test_beliefs_and_samples_stay_what_they_are(tmp_path, ending):
    given = write_jsonl(tmp_path / "b.jsonl", [opinion(f"q{i}", group="g") for i in range(3)])
    made = convert_data(given, tmp_path / f"b-out{ending}", "log.quiet=true")
    assert made.to == "gdpo" and made.counts.groups == 3
    given = write_jsonl(
        tmp_path / "s.jsonl", [{"prompt": "p", "responses": ["a", " "], "scores": [1, 2], "tokens": [[5, 2], [2]]}]
    )
    assert convert_data(given, tmp_path / f"s-out{ending}", "log.quiet=true").to == "samples"


def test_pairs_are_joined_and_said(tmp_path, capsys):
    pairs = [{"prompt": "p", "chosen": "a", "rejected": r, "source": "web"} for r in "bc"] + [
        {"prompt": "q", "chosen": "a", "rejected": "b"}
    ]
    given = write_jsonl(tmp_path / "pairs.jsonl", pairs)
    assert cli.main(["data", "convert", given, str(tmp_path / "out.jsonl"), "--join"]) == 0
    assert _read(tmp_path / "out.jsonl") == [
        {"prompt": "p", "responses": ["a", "b", "c"], "scores": [1.0, 0.0, 0.0]},
        {"prompt": "q", "responses": ["a", "b"], "scores": [1.0, 0.0]},
    ]
    said = capsys.readouterr().err
    assert "columns that are not kept, since format pairs does not read them: source" in said
    assert "3 rows read, 2 written, 2 of them joined with others of the same prompt" in said
    assert "1 response occurred more than once in its group and stands there once" in said


def test_a_file_that_is_there_is_kept(tmp_path, capsys):
    given = write_jsonl(tmp_path / "given.jsonl", ROWS)
    out = tmp_path / "out.jsonl"
    out.write_text("precious")
    assert cli.main(["data", "convert", given, str(out)]) == 2 and out.read_text() == "precious"
    assert "out.jsonl is there already; --force replaces it" in capsys.readouterr().err
    assert cli.main(["data", "convert", given, str(out), "--force"]) == 0 and len(_read(out)) == 7


def test_a_malformed_row_leaves_nothing(tmp_path, capsys):
    given = write_jsonl(tmp_path / "given.jsonl", [*ROWS, {"instruction": "p"}])
    out = tmp_path / "out.parquet"
    assert cli.main(["data", "convert", given, str(out)]) == 2
    assert "given.jsonl:8: field 'completions' is missing" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["given.jsonl"]
    assert cli.main(["data", "convert", given, str(out), "--data.on_bad_row", "skip"]) == 0
    assert "1 row left out: malformed, the first: " in capsys.readouterr().err


def test_parts_by_the_prompts(tmp_path):
    given = write_jsonl(tmp_path / "given.jsonl", ROWS)
    made = convert_data(given, tmp_path / "out.jsonl", "log.quiet=true", split=0.3)
    assert [file.name for file in made.files] == ["out.train.jsonl", "out.eval.jsonl"]
    train, held_out = map(_read, made.files)
    wanted = _dataset(given, eval=0.3)
    assert [row["prompt"] for row in train] == [wanted.example_of(i).prompt for i in range(len(wanted))]
    assert len(held_out) == 2 and {r["prompt"] for r in train + held_out} == {r["instruction"] for r in ROWS}


def test_mistakes_are_said(tmp_path):
    given = write_jsonl(tmp_path / "given.jsonl", ROWS)
    for how, output, said in (
        ({"to": "group"}, "o.jsonl", "did you mean groups"),
        ({"split": 1.5}, "o.jsonl", "--split: 1.5"),
        ({"too": "x"}, "o.jsonl", "the options are to, join, reward_model, split, force"),
        ({}, "o.csv", "o.csv: the ending says what is written; expected .jsonl"),
        ({"to": "gdpo"}, "o.jsonl", "the rows have no beliefs"),
        ({"reward_model": str(tmp_path / "none")}, "o.jsonl", "score.reward_model"),
    ):
        with pytest.raises(UserError, match=said):
            convert_data(given, tmp_path / output, "log.quiet=true", **how)
    assert [p.name for p in tmp_path.iterdir()] == ["given.jsonl"]


def test_parquet_with_texts_and_conversations_is_refused(tmp_path):
    given = write_jsonl(tmp_path / "given.jsonl", [{"prompt": "p", "responses": ["a", "b"], "scores": [1, 2]}, TALKS[0]])
    with pytest.raises(UserError, match="a column of Parquet has one type.*write .jsonl"):
        convert_data(given, tmp_path / "out.parquet", "log.quiet=true")
    assert convert_data(given, tmp_path / "out.array_record", "log.quiet=true").counts.groups == 2


@pytest.fixture(scope="module")
def reward_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reward-model")
    tokenizer = char_tokenizer(adds_bos=True)
    model = models.torch_classifier("llama2", vocab_size=len(tokenizer), bos_token_id=1, eos_token_id=2, pad_token_id=2)
    models.save(model, folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_scores_of_a_reward_model(tmp_path, reward_model):
    pairs = [{"prompt": f"p{i}", "chosen": "abc"[i % 3], "rejected": "xyz"[i % 2]} for i in range(5)]
    given = write_jsonl(tmp_path / "pairs.jsonl", pairs)
    made = convert_data(given, tmp_path / "out.jsonl", "model.dtype=float32", "log.quiet=true", reward_model=str(reward_model))
    rows = _read(made.files[0])
    wanted = RewardModel.load(reward_model).score([r["prompt"] for r in pairs], [[r["chosen"], r["rejected"]] for r in pairs])
    np.testing.assert_allclose([row["scores"] for row in rows], wanted, rtol=1e-5)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.jsonl", "pairs.jsonl"]


def test_scoring_that_is_stopped_goes_on(tmp_path, reward_model):
    given = write_jsonl(tmp_path / "pairs.jsonl", [{"prompt": f"p{i}", "chosen": "a", "rejected": "b"} for i in range(5)])
    config = Config.of({"data": {"train": given}, "model": {"dtype": "float32"}, "log": {"quiet": True}})
    how = Conversion(reward_model=str(reward_model))
    assert run(config, tmp_path / "out.jsonl", how, stop=lambda: True) is None
    kept = (tmp_path / "out.jsonl.scores").read_text().splitlines()
    assert 0 < len(kept) < 5 and not (tmp_path / "out.jsonl").exists()
    assert run(config, tmp_path / "out.jsonl", how).counts.groups == 5
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.jsonl", "pairs.jsonl"]


DATA = os.environ.get("ALIGN_JAX_DATA")


@pytest.mark.skipif(not DATA, reason="ALIGN_JAX_DATA is not set")
def test_real_pairs_give_the_same_tokens(tmp_path):
    tokenizer = transformers.AutoTokenizer.from_pretrained(f"{DATA}/stories260k")
    given = f"{DATA}/preferences/eval.jsonl"
    made = convert_data(given, tmp_path / "out.array_record", "log.quiet=true")
    encoder = Encoder(tokenizer, DataConfig())
    before, after = (
        GroupDataset(DataConfig(train=str(path)), "train", encoder, arrangement=MPO().arrangement)
        for path in (given, made.files[0])
    )
    for i in (0, 17, 79):
        assert [s.tokens.tolist() for s in before[i].segments] == [s.tokens.tolist() for s in after[i].segments]
        np.testing.assert_array_equal(before[i].labels["scores"], after[i].labels["scores"])


def test_rows_data_sets_and_configs_are_converted_too(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = [{"prompt": f"p{i}", "chosen": "a", "rejected": "b"} for i in range(3)]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    for i, what in enumerate(
        (
            rows,
            datasets.Dataset.from_list(rows),
            Path(path),
            [path],
            {"path": path},
            {"data": {"train": rows}},
            Config.of({"data": {"train": path}}),
        )
    ):
        made = convert_data(what, tmp_path / f"out{i}.jsonl", "log.quiet=true", to="pairs")
        assert _read(made.files[0]) == rows
    for what in (None, 5, [], [1], {"data": {}}, {"prompt": ["p"], "chosen": ["a"], "rejected": ["b"]}):
        with pytest.raises(UserError, match="data|empty"):
            convert_data(what, tmp_path / "none.jsonl", "log.quiet=true")
    with pytest.raises(UserError, match="None is no path to write to; expected one that ends in .jsonl"):
        convert_data(rows, None)
    with pytest.raises(UserError, match=r"overrides are texts.*got \(5,\)"):
        convert_data(path, tmp_path / "none.jsonl", 5)


def test_scores_of_a_reward_model_are_not_called_shares(tmp_path, reward_model, capsys):
    pairs = [{"prompt": "p", "chosen": "a", "rejected": r} for r in "bc"]
    given = [write_jsonl(tmp_path / "pairs.jsonl", pairs), str(tmp_path / "out.jsonl")]
    assert cli.main(["data", "convert", *given, "--join", "--reward-model", str(reward_model), "--model.dtype", "float32"]) == 0
    said = capsys.readouterr().err
    assert "stands there once, scored by the reward model like the others" in said and "share that it won" not in said
    assert f"the scores are those of {reward_model}; what was there before is left out" in said


def test_rows_given_in_python_are_scored(tmp_path, reward_model):
    rows = [{"prompt": f"p{i}", "chosen": "a", "rejected": "b"} for i in range(2)]
    made = convert_data(rows, tmp_path / "out.jsonl", "model.dtype=float32", "log.quiet=true", reward_model=str(reward_model))
    assert made.counts.groups == 2 and len(_read(made.files[0])[0]["scores"]) == 2


def test_where_no_row_is_left_it_is_said_why(tmp_path, capsys):
    rows = [{"prompt": f"p{i}", "responses": ["", "a"][: 1 + i], "scores": [1.0, 2.0][: 1 + i]} for i in range(2)]
    given, out = write_jsonl(tmp_path / "none.jsonl", rows[:1]), tmp_path / "out.jsonl"
    assert cli.main(["data", "convert", given, str(out), "--data.on_empty=drop"]) == 2
    said = capsys.readouterr().err
    left_out = "1 row left out: no answer is left (data.on_empty: drop)"
    assert f"none.jsonl: no row is left to convert: 1 row read, 0 written; {left_out}" in said
    labels = write_jsonl(tmp_path / "labels.jsonl", [{"prompt": "p", "completion": "a", "label": True}])
    assert cli.main(["data", "convert", labels, str(out), "--to", "pairs"]) == 2
    said = capsys.readouterr().err
    assert "no row is left to write: 1 row left out: no two responses with different scores" in said and not out.exists()
    some = write_jsonl(tmp_path / "some.jsonl", rows)
    assert cli.main(["data", "convert", some, str(out), "--data.on_empty=drop"]) == 0
    said = capsys.readouterr().err
    assert left_out in said and "1 empty answer is left out of rows that stay" in said


def test_what_a_mixture_loses_is_said_or_refused(tmp_path, capsys):
    pairs = write_jsonl(tmp_path / "p.jsonl", [{"prompt": f"p{i}", "chosen": "a", "rejected": "b"} for i in range(3)])
    completions = write_jsonl(tmp_path / "c.jsonl", [{"prompt": f"c{i}", "completion": "z"} for i in range(2)])
    for k, parts in enumerate(([pairs, completions], [completions, pairs])):
        mixture = {"data": {"train": [{"path": path} for path in parts]}}
        with pytest.raises(UserError, match=r"groups \(3 rows\), completions \(2 rows\)"):
            convert_data(mixture, tmp_path / "out.jsonl")
        assert not (tmp_path / "out.jsonl").exists()
        capsys.readouterr()
        assert convert_data(mixture, tmp_path / f"{k}.jsonl", to="completions").counts.groups == 5
        assert "--to completions: 3 responses of 3 rows are left out" in capsys.readouterr().err
