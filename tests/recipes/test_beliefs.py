"""`align-jax data beliefs`: answers become rows that GDPO learns from; what is left out is counted."""

from __future__ import annotations

import json

import numpy as np
import pyarrow.parquet
import pytest

from align_jax import Config, UserError, cli, label_beliefs
from align_jax.data import DataConfig, Encoder, GroupDataset
from align_jax.data.arrange import Beliefs
from align_jax.experiments import opinions
from align_jax.recipes import stance_labels
from tests.data.toys import char_tokenizer, opinion, write_jsonl
from tests.evaluation.test_judges import says, server
from tests.hf import models

TOPICS, OPTIONS = ("city parks", "zoo visits"), ("support", "oppose", "unsure")


def answers(count, seed=0):
    """(prompt, text, belief): nine of ten are for parks, and one of ten for the zoo."""
    rng = np.random.default_rng(seed)
    for i in range(count):
        topic = i % 2
        belief = str(rng.choice(OPTIONS, p=[[0.8, 0.1, 0.1], [0.1, 0.8, 0.1]][topic]))
        yield f"what of {TOPICS[topic]} ?", opinions.sentence(rng, TOPICS[topic], belief), belief


def unpaired(tmp_path, count=60):
    rows = [{"prompt": p, "completion": text, "label": True} for p, text, _ in answers(count)]
    return write_jsonl(tmp_path / "answers.jsonl", rows)


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    rows = [{"text": text, "belief": belief} for _, text, belief in answers(300, 1)]
    return write_jsonl(tmp_path_factory.mktemp("labelled") / "labelled.jsonl", rows)


def test_a_classifier_labels_answers_of_people(tmp_path, labelled, capsys):
    given, out = unpaired(tmp_path), tmp_path / "out.jsonl"
    argv = ["data", "beliefs", given, "--output", str(out), "--by", "classifier", "--labelled", labelled]
    assert cli.main([*argv, "--options", "support, oppose,unsure", "--data.target_shrink", "overall"]) == 0
    rows, truth = read(out), list(answers(60))
    assert len(rows) == 60 and all(row["options"] == list(OPTIONS) for row in rows)
    right = np.mean([row["accept_choice"] == belief for row, (*_, belief) in zip(rows, truth, strict=True)])
    assert right > 0.9 and all(row["accept_choice"] != row["reject_choice"] for row in rows)
    parks, zoo = rows[0], rows[1]
    assert parks["probabilities"][0] > 0.55 and zoo["probabilities"][1] > 0.55 and parks["answers"] == zoo["answers"] == 30
    assert all(a < b < c for a, b, c in zip(*(parks[f"probabilities{n}"] for n in ("_low", "", "_high")), strict=True))
    said = capsys.readouterr().err
    assert "the classifier was trained on" in said and "60 answers of 60 labelled: support" in said
    assert "how sure: 0." in said and "answers (by held-out likelihood)" in said and "agreement" not in said
    config = DataConfig(train=str(out))
    made = GroupDataset(config, "train", Encoder(char_tokenizer(), config), arrangement=Beliefs())
    np.testing.assert_allclose(made[0].labels["target_alpha"], np.float32(parks["probabilities"]) * 30, rtol=1e-5)
    assert cli.main([*argv, "--options", "support,oppose,unsure"]) == 2
    assert "is there already; --force replaces it" in capsys.readouterr().err


def test_unsure_labels_are_left_out_and_counted_and_agreement_is_of_texts_that_were_not_learned_from(tmp_path, labelled):
    people = list(answers(40))
    rows = [
        opinion(prompt, options=list(OPTIONS), accept_choice_id=OPTIONS.index(belief), accept_choice=belief,
                accept_response=text, reject_choice=None, reject_response="zzz qqq", probabilities=None)
        for prompt, text, belief in people
    ]  # fmt: skip
    out = tmp_path / "out.jsonl"
    made = label_beliefs(rows, out, "log.quiet=true", by="classifier", labelled=labelled, min_posterior=0.85)
    learned = {text for _, text, _ in answers(300, 1)}
    fresh = [text for _, text, _ in people if text not in learned]
    assert made.agreement["answers"] == len(fresh) < 40 and made.agreement["all_answers"] == len(fresh) + 40
    assert made.agreement["accuracy"] > 0.8 and made.agreement["chance"] == pytest.approx(1 / 3)
    (count,) = [n for why, n in made.left_out.items() if "less sure than --min-posterior 0.85" in why]
    assert count >= 40 and sum(made.beliefs.values()) + count == made.answers == 80  # nobody knows what the rejected say
    assert all(max(row["belief_posterior"]) >= 0.85 for row in read(out)) and made.sure >= 0.85
    known = [row | {"accept_response": text} for row, (_, text, _) in zip(rows, answers(40, 1), strict=True)]
    of_rejected = label_beliefs(known, tmp_path / "other.jsonl", "log.quiet=true", by="classifier", labelled=labelled)
    assert of_rejected.agreement["answers"] == 0 and np.isnan(of_rejected.agreement["accuracy"])
    assert any("0 rejected answers; not known of accepted ones" in line for line in of_rejected.describe())
    assert made.rows == len(read(out)) and any("left out: " in line for line in made.describe())


def test_answers_that_mean_what_is_no_option_are_left_out_and_counted(tmp_path, labelled, capsys):
    rows = [json.loads(line) for line in open(unpaired(tmp_path))]
    how = {"by": "classifier", "labelled": labelled, "options": ["oppose", "support"]}
    made = label_beliefs(rows, tmp_path / "out.jsonl", **how)
    ((why, count),) = made.left_out.items()
    assert why == "without a label: they seem to mean what is no option ('unsure')"
    truth = [belief for *_, belief in answers(60)]
    assert truth.count("unsure") == count > 0 and sum(made.beliefs.values()) == 60 - count
    assert all(sum(row["belief_posterior"]) == pytest.approx(1, abs=1e-5) for row in read(made.file))
    assert "also has 'unsure', which no row has among its options: answers that" in capsys.readouterr().err


def test_an_endpoint_labels_and_what_it_cannot_say_is_left_out(tmp_path):
    def answer(body):
        text = body["messages"][0]["content"]
        return says("no idea") if "zoo" in text and "i am" in text else says("oppose" if "zoo" in text else "support")

    given, how = unpaired(tmp_path, 20), {"by": "endpoint", "options": OPTIONS}
    with server(answer) as (url, _):
        judge = (f"evaluate.judge={url}", "evaluate.judge_model=m", "log.quiet=true")
        # Everybody says the same of a topic: nothing can be set against it.
        with pytest.raises(UserError, match="no accepted answer has another one of its prompt"):
            label_beliefs(given, tmp_path / "none.jsonl", *judge, **how)
        rows = [json.loads(line) | {"prompt": "what?"} for line in open(given)]
        made = label_beliefs(rows, tmp_path / "out.jsonl", *judge, **how)
    said = sum("zoo" in row["completion"] and "i am" in row["completion"] for row in rows)
    assert said and sum(made.beliefs.values()) == 20 - said and made.beliefs["support"] == 10
    ((why, count),) = made.left_out.items()
    assert count == said and "an answer that names no single option: 'no idea'" in why
    assert {tuple(row["belief_posterior"]) for row in read(made.file)} == {(1, 0, 0), (0, 1, 0)}


@pytest.fixture(scope="module")
def language_model(tmp_path_factory):
    folder, tokenizer = tmp_path_factory.mktemp("model"), char_tokenizer()
    models.save(models.torch_model("llama2", vocab_size=len(tokenizer), bos_token_id=1, eos_token_id=2), folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_a_model_labels_by_its_own_posterior(tmp_path, language_model, capsys):
    rows = [{"prompt": "what ?", "completion": text, "label": True} for _, text, _ in answers(12)]
    given, out = write_jsonl(tmp_path / "answers.jsonl", rows), tmp_path / "out.parquet"
    argv = ["data", "beliefs", given, "--output", str(out), "--by", "model", "--model", language_model, "--prior", "uniform"]
    argv += ["--options", "a,b", "--data.max_response_tokens", "16", "--model.dtype", "float32"]
    assert cli.main(argv) == 0
    said = capsys.readouterr().err
    assert "12 answers cut to data.max_response_tokens (16)" in said and f"the beliefs are those that {language_model}" in said
    found = pyarrow.parquet.read_table(out).to_pylist()
    assert len(found) == 12 and {row["accept_choice"] for row in found} == {"a", "b"}
    counted = np.mean([row["belief_posterior"] for row in found], axis=0)
    np.testing.assert_allclose(found[0]["probabilities"], (12 * counted + 1) / 14, atol=1e-5)
    with pytest.raises(UserError, match="more than the .* of the model's context; lower data.max_prompt_tokens"):
        long = [{"prompt": "p", "completion": "x" * 400, "label": True}]
        label_beliefs(long, tmp_path / "x.jsonl", "log.quiet=true", by="model", model=language_model, options=OPTIONS)


def test_what_cannot_be_labelled_is_refused(tmp_path, labelled, monkeypatch):
    given, out = unpaired(tmp_path, 4), tmp_path / "out.jsonl"
    learn = {"by": "classifier", "labelled": labelled}
    for overrides, how, message in (
        ([], {"by": "magic"}, "--by: 'magic' is not one of model, classifier, endpoint"),
        ([], {"by": "model", "options": OPTIONS}, "--by model needs one: --model PATH"),
        ([], {"by": "endpoint", "options": OPTIONS}, "--by endpoint needs --evaluate.judge"),
        ([], {"by": "classifier"}, "--by classifier needs --labelled FILE"),
        ([], {"by": "endpoint", "labelled": labelled}, "--labelled: .* is not used by --by endpoint"),
        ([], {"by": "model", "prior": "flat"}, "--prior: 'flat' is not one of model, uniform"),
        ([], learn, "--options: 4 rows have no beliefs to choose from"),
        ([], {**learn, "options": ["a"]}, "--options: expected at least two different beliefs, got a"),
        ([], {**learn, "options": "support,oppose"}, "options are a list of beliefs, got the text"),
        ([], {**learn, "options": ["support", "depends"]}, "has no text of 'depends'; it has 'oppose', 'support', 'unsure'"),
        ([], {**learn, "options": ["support", "oppose "]}, "no text of 'oppose '; did you mean oppose. it has"),
        ([], {**learn, "min_posterior": 2}, "--min-posterior: 2 must be"),
        (
            [],
            {**learn, "options": OPTIONS, "min_posterior": 1.0},
            r"no answer of 4 is left: the surest label has .* 0\.9\d\d, less",
        ),
        (["data.target=given"], {**learn, "options": OPTIONS}, "data.target: given, but distributions are estimated here"),
        ([], {**learn, "labels": 3}, "label_beliefs: .*labels.*; the options are by, options"),
        ([], {"by": "classifier", "labelled": given, "options": OPTIONS}, "--labelled: .*answers.jsonl.* has no labels"),
    ):
        with pytest.raises(UserError, match=message):
            label_beliefs(given, out, *overrides, "log.quiet=true", **how)
    disliked = [json.loads(line) | {"label": False} for line in open(given)]
    with pytest.raises(UserError, match=r"no answer that is labelled is an accepted one \(0 of 4 answers are\)"):
        label_beliefs(disliked, out, "log.quiet=true", **learn, options=OPTIONS)
    monkeypatch.setattr(stance_labels, "Classifier", None)  # nothing is trained before there is something to label
    with pytest.raises(UserError, match="the rows have no answers to label"):
        label_beliefs([{"prompt": "p"}] * 2, out, "log.quiet=true", **learn, options=OPTIONS)
    with pytest.raises(UserError, match="data.train: there is no data to label"):
        label_beliefs(Config.of({}), out, **learn)
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(UserError, match="empty.jsonl"):
        label_beliefs(str(tmp_path / "empty.jsonl"), out, "log.quiet=true", **learn, options=OPTIONS)
    assert not out.exists()
