"""What a notebook does: the lines of docs/notebook.md on data given in Python, and jobs called more than once in a process."""

import pickle
import re
import threading
from pathlib import Path

import jax
import pytest

import align_jax
from align_jax.experiments import opinions
from align_jax.models import Decoder, ModelConfig, init_weights
from tests.data.toys import char_tokenizer

ROOT = Path(__file__).parents[2]
SHAPE = ModelConfig(vocab_size=128, width=16, mlp_width=24, layers=2, heads=4, kv_heads=2, head_size=4, max_length=64)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    """A tiny model with a tokenizer of characters, in Hugging Face format."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    model = Decoder(SHAPE, init_weights(SHAPE, jax.random.key(0)), dtype="float32")
    align_jax.save_model(model, folder, tokenizer=char_tokenizer())
    return folder


def lines_of(document: str) -> str:
    """The first Python block of a document."""
    return re.search(r"```python\n(.*?)```", (ROOT / document).read_text(encoding="utf-8"), re.S)[1]


@pytest.mark.slow
def test_the_lines_of_the_document_run(model_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code = lines_of("docs/notebook.md")
    assert sum(bool(line.strip()) for line in code.splitlines()) < 15
    names: dict = {}
    exec(code.replace("path/to/llama", str(model_folder)), names)
    run = names["run"]
    assert run.finished and run.steps == 20
    assert [line["step"] for line in run.history if "loss" in line] == list(range(1, 21))
    assert {cell["model"] for cell in names["table"]} == {"start", "run"}
    assert any(cell["metric"] == "rewards/accuracies" for cell in names["table"])
    assert len(names["texts"]) == 1 and len(names["texts"][0]) == 2
    assert (tmp_path / "aligned" / "model.safetensors").exists()
    assert "align-jax:" in capsys.readouterr().err  # a job says what it does, unless it is to be quiet


ROWS = [{"prompt": f"q{i}", "responses": ["good", "bad", "so so"], "scores": [3.0, 1.0, 2.0]} for i in range(4)]


def config_of(folder, run, **data):
    return align_jax.Config.of(
        {"run": {"dir": run}, "model": {"path": folder, "dtype": "float32"}, "objective": {"name": "mpo"},
         "data": {"max_prompt_tokens": 8, "max_response_tokens": 8, **data}, "log": {"quiet": True}},
        "train.steps=2", "train.groups_per_step=2", "optimizer.learning_rate=1e-3", "evaluate.samples=0",
    )  # fmt: skip


@pytest.mark.slow
def test_jobs_are_quiet_resume_and_run_again_in_a_process(model_folder, tmp_path, capfd):
    config = config_of(model_folder, tmp_path / "run", train=ROWS)
    first = align_jax.train(config)
    more = align_jax.train(align_jax.Config.of(config, "train.steps=4"))
    assert (first.steps, more.steps) == (2, 4) and more.history[: len(first.history)] == first.history
    assert align_jax.train(align_jax.Config.of(config, "train.steps=4")).finished
    said = capfd.readouterr()
    assert said.out == "" and "align-jax" not in said.err and "step" not in said.err


def test_other_rows_do_not_resume(model_folder, tmp_path):
    align_jax.train(config_of(model_folder, tmp_path / "run", train=ROWS))
    with pytest.raises(align_jax.UserError, match="data.train='python-rows-"):
        align_jax.train(config_of(model_folder, tmp_path / "run", train=ROWS[:3]))


def test_a_datasets_dataset_gives_the_run_of_a_list(model_folder, tmp_path):
    import datasets

    listed = align_jax.train(config_of(model_folder, tmp_path / "a", train=ROWS))
    arrow = align_jax.train(config_of(model_folder, tmp_path / "b", train=datasets.Dataset.from_list(ROWS)))
    losses = [[line["loss"] for line in run.history if "loss" in line] for run in (listed, arrow)]
    assert losses[0] == losses[1] and len(losses[0]) == 2


def test_a_job_works_in_another_thread(model_folder, tmp_path):
    results = []
    config = config_of(model_folder, tmp_path / "run", train=ROWS)
    thread = threading.Thread(target=lambda: results.append(align_jax.train(config)))
    thread.start()
    thread.join()
    assert results and results[0].finished


@pytest.mark.parametrize(
    "data, message",
    [
        ({"train": [1, 2]}, "data.train: expected a path, a list of dicts or a datasets.Dataset, got list"),
        ({"train": [{"prompt": {1}}]}, "data.train: the rows must be plain values"),
        ({"train": [{"prompt": "a"}]}, r"by the columns of its first row \(prompt\): data.format 'prompts' has no"),
        ({"train": []}, "python-rows-.* is empty"),
        ({"train": "python-rows-0123"}, "given in Python, and only there"),
    ],
)
def test_rows_that_cannot_be_used(model_folder, tmp_path, data, message):
    with pytest.raises(align_jax.UserError, match=message):
        align_jax.train(config_of(model_folder, tmp_path / "run", **data))


def test_a_run_has_a_folder_of_its_own_where_none_is_given(model_folder):
    values = {"model": {"path": model_folder}, "data": {"train": ROWS}, "objective": {"name": "mpo"}}
    config = align_jax.Config.of(values)
    assert config.run.dir.startswith("runs/mpo-")
    assert align_jax.Config.of(config, "train.steps=7").run.dir == config.run.dir  # more steps are the same run
    assert align_jax.Config.of(config, "objective.alpha=0.5").run.dir != config.run.dir
    assert align_jax.Config.of({**values, "data": {"train": ROWS[:2]}}).run.dir != config.run.dir


def test_generate_takes_texts_and_refuses_what_it_does_not_know(model_folder):
    model, tokenizer = align_jax.load_model(model_folder, dtype="float32"), char_tokenizer()
    once = align_jax.generate(model, ["ab", "c"], tokenizer=tokenizer, samples=3, max_new_tokens=4, seed=1)
    assert [len(texts) for texts in once] == [3, 3] and all(isinstance(t, str) for texts in once for t in texts)
    assert once == align_jax.generate(model, ["ab", "c"], tokenizer=tokenizer, samples=3, max_new_tokens=4, seed=1)
    with pytest.raises(align_jax.UserError, match="no option 'beams'"):
        align_jax.generate(model, ["ab"], tokenizer=tokenizer, beams=2)
    with pytest.raises(align_jax.UserError, match="prompts must be a list"):
        align_jax.generate(model, "ab", tokenizer=tokenizer)


def test_the_worlds_of_the_quick_start_can_be_given_as_rows(model_folder, tmp_path):
    config = config_of(model_folder, tmp_path / "run", train=list(opinions.rows(8, 1, uniform=False)), format="gdpo")
    assert config.data.train.open(None)[0].keys() >= {"prompt", "options", "probabilities"}


def test_another_objective_takes_the_place_of_the_first(model_folder):
    values = {"model": {"path": model_folder}, "data": {"train": ROWS}, "objective": {"name": "mpo", "alpha": 0.2}}
    config = align_jax.Config.of(values)
    assert align_jax.Config.of(config, "objective.name=dpo").objective.beta == config.objective.beta
    assert align_jax.Config.of(values, "objective.name=dpo", "objective.alpha=null").objective.beta == 0.1
    with pytest.warns(UserWarning, match="objective.alpha: 0.2 no longer holds, since --objective.name dpo is given"):
        assert align_jax.Config.of(values, "objective.name=dpo").objective.beta == 0.1
    with pytest.raises(align_jax.UserError, match="objective dpo has no key 'alpha'"):
        align_jax.Config.of(values | {"objective": {"name": "dpo", "alpha": 0.2}})
    assert align_jax.Config.of(config, "optimizer.name=adafactor").optimizer.name == "adafactor"


def test_a_config_of_a_config_resolves_nothing_twice(model_folder):
    values = {"model": {"path": model_folder}, "data": {"train": ROWS, "prompt_template": "\\${oc.env:HOME} {prompt}"},
              "objective": {"name": "mpo"}}  # fmt: skip
    with pytest.raises(align_jax.UserError, match="prompt_template"):
        align_jax.Config.of(values)  # braces of a template are doubled
    values["data"]["prompt_template"] = "\\${{HOME}} {prompt}"
    config = align_jax.Config.of(values)
    again = align_jax.Config.of(config, "train.steps=3")
    assert again.data.prompt_template == config.data.prompt_template and again.data.train.rows == config.data.train.rows


@pytest.mark.parametrize("wrong", [None, ["a"], 3])
def test_what_is_no_config_is_named(wrong):
    with pytest.raises(align_jax.UserError, match="a config is a path, or sections with keys"):
        align_jax.Config.of(wrong)


def test_given_rows_travel_and_stay_as_they_are(model_folder):
    config = align_jax.Config.of({"model": {"path": model_folder}, "data": {"train": ROWS}, "objective": {"name": "mpo"}})
    copied = pickle.loads(pickle.dumps(config.data))
    assert copied.train == config.data.train and copied.train.rows == config.data.train.rows
    source = config.data.train.open(None)
    source[0].pop("prompt")
    assert source[0] == {**ROWS[0]}


def test_half_a_character_is_a_row_error(model_folder, tmp_path):
    broken = [*ROWS, {"prompt": "x \ud83d", "responses": ["a", "b"], "scores": [1, 0]}]
    with pytest.raises(align_jax.UserError, match="row 4: half a character"):
        align_jax.train(config_of(model_folder, tmp_path / "run", train=broken))
