"""The command line: which command, what it prints where, and the exit status."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

import align_jax
from align_jax import cli
from align_jax.cli.arguments import Argument
from align_jax.config import describe
from align_jax.config.describe import markdown, table
from align_jax.config.jobs import JOBS
from align_jax.config.keys import known
from align_jax.errors import UserError

ROOT = Path(__file__).parent.parent
NAMES = (
    *("train", "evaluate", "export", "checkpoints", "generate", "score", "bench", "compile", "data check", "data convert"),
    *("data beliefs", "experiment", "config", "configs"),
)
TINY = """\
model: {path: some/model}
data: {train: some/rows}
objective: {name: dpo}
train: {steps: 9}
"""


@pytest.fixture(autouse=True)
def no_preparation(monkeypatch):
    """Counts preparations of the process, and keeps the settings of this one."""
    done = []
    monkeypatch.setattr("align_jax.parallel.distributed.prepare_process", lambda *_: done.append(1))
    return done


def _command(monkeypatch, run, **options):
    arguments = (Argument("A", "one"), Argument("--more", "another", "N"))
    monkeypatch.setitem(cli.COMMANDS, "try", cli.Command(run, "try", "align-jax try a", arguments, **options))


@pytest.mark.parametrize("argv", [[], ["-h"], ["--help"], ["help"]])
def test_help_lists_every_command(argv, capsys):
    assert cli.main(argv) == 0
    out = capsys.readouterr().out
    assert out.startswith("usage: align-jax COMMAND ...")
    lines = {re.match(r"  (data )?\w+", line)[0].strip(): line for line in out.splitlines() if line.startswith("  ")}
    assert tuple(lines) == NAMES and max(map(len, out.splitlines())) <= 100
    assert all(line.endswith(f" {cli.COMMANDS[name].about}") for name, line in lines.items())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("argv", [["-h"], ["--help"], ["a", "--train.steps", "3", "b", "--help"], ["--train.steps", "--help"]])
@pytest.mark.parametrize("width", [80, 120])
def test_help_of_a_command(name, argv, width, capsys, no_preparation, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    if name == "experiment":
        argv = ["--help"]
    assert cli.main([*name.split(), *argv]) == 0
    out, command = capsys.readouterr().out, cli.COMMANDS[name]
    assert out.startswith(f"usage: align-jax {name} ") and max(map(len, out.splitlines())) <= width
    assert "\nexample:\n  " in out and all(argument.name in out for argument in command.arguments)
    assert no_preparation == []
    assert cli.main(["help", *name.split()]) == 0 and capsys.readouterr().out == out


def test_help_of_training_has_every_key_that_it_reads(capsys):
    assert cli.main(["train", "--help"]) == 0
    out = capsys.readouterr().out
    words = set(out.split())
    own = [key for key in describe.keys() if key.section in JOBS["train"].own]
    assert len(own) > 130 and {f"--{key.name}" for key in own} <= words
    assert all(f"\n objective.name: {name}. " in out for name in known().section("objective").choices)
    (entry,) = re.findall(r"--train\.eval_every +(.*?)\n(?: +--|\n)", out, re.DOTALL)
    text = "optimizer steps between evaluations; null evaluates before the first step and after the last one only"
    assert " ".join(entry.split()) == f"{text} (int or null; default null)"
    simpo = out.partition("objective.name: simpo.")[2].partition("\n\n")[0]
    assert "--objective.gamma" in simpo and "default 2.0" in simpo and "--objective.alpha" not in simpo
    assert "`align-jax configs`" in out and "Required are model, data.train, objective" in out


@pytest.mark.parametrize("name", JOBS)
def test_the_sections_of_a_job_are_there(name, capsys):
    assert {*JOBS[name].own, *JOBS[name].reads} <= set(describe.sections())
    assert {key.partition(".")[0] for key in JOBS[name].requires} <= {*JOBS[name].own, *JOBS[name].reads, "model"}
    assert cli.main([*name.split(), "--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"--{section}." in out for section in JOBS[name].own)
    assert all(f"\n  {section} " in out for section in JOBS[name].reads)


@pytest.mark.parametrize("word", ["--version", "-V", "version"])
def test_version(word, capsys):
    assert cli.main([word]) == 0
    python = sys.version.split()[0]
    assert capsys.readouterr().out == f"align-jax {align_jax.__version__} (jax {jax.__version__}, python {python})\n"
    assert "__version__" in dir(align_jax)


def test_one_version():
    code = "import setuptools, runpy; setuptools.setup = lambda **o: print(o['version']); runpy.run_path('setup.py')"
    assert subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True).strip() == align_jax.__version__


@pytest.mark.parametrize("word, near", [("trian", "did you mean train? "), ("evalute", "did you mean evaluate? "), ("zzz", "")])
def test_an_unknown_command(word, near, capsys):
    assert cli.main([word, "c.yaml"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err == f"align-jax: unknown command {word!r}; {near}the commands are {', '.join(NAMES)}\n"


@pytest.mark.parametrize("error", [UserError("model.path: wrong"), OSError("model.path: wrong")])
def test_what_the_user_can_mend_is_one_line_and_status_2(monkeypatch, capsys, error):
    def run(request):
        raise error

    _command(monkeypatch, run)
    assert cli.main(["try", "a"]) == 2
    assert capsys.readouterr().err == "align-jax try: model.path: wrong\n"


def test_a_mistake_of_the_program_has_its_traceback(monkeypatch):
    _command(monkeypatch, lambda request: {}["missing"])
    with pytest.raises(KeyError):
        cli.main(["try", "a"])


def test_ctrl_c(monkeypatch, capsys):
    def run(request):
        raise KeyboardInterrupt

    _command(monkeypatch, run)
    assert cli.main(["try", "a"]) == 130
    assert capsys.readouterr().err == "align-jax try: interrupted\n"


@pytest.mark.parametrize("argv", [["x", "--more", "3"], ["--more", "3", "x"], ["--more=3", "x"]])
def test_a_command_gets_its_arguments_and_gives_the_status(monkeypatch, no_preparation, argv):
    _command(monkeypatch, lambda request: {"x": 7}[request.given["a"]] + int(request.given["more"]))
    assert cli.main(["try", *argv]) == 10
    assert no_preparation == [1]


def test_what_computes_nothing_prepares_nothing(monkeypatch, no_preparation):
    _command(monkeypatch, lambda request: 0, computes=False)
    assert cli.main(["try", "a"]) == 0 and no_preparation == []
    light = [name for name, command in cli.COMMANDS.items() if not command.computes]
    assert light == ["checkpoints", "data check", "config", "configs", "try"]


@pytest.mark.parametrize(
    "argv",
    [
        ["c.yaml", "--train.steps", "5", "--run.seed=3"],
        ["--train.steps", "5", "c.yaml", "--run.seed=3"],
        ["--run.seed=3", "--train.steps=5", "c.yaml"],
    ],
)
def test_keys_stand_before_or_behind_the_config(tmp_path, monkeypatch, argv):
    monkeypatch.chdir(tmp_path)
    Path("c.yaml").write_text(TINY)
    found = []
    monkeypatch.setattr("align_jax.recipes.jobs.train", lambda config: found.append(config) or SimpleNamespace(finished=True))
    monkeypatch.setattr("align_jax.recipes.bench.bench", lambda config, measured: found.append(config) or {})
    assert cli.main(["train", *argv]) == cli.main(["bench", *argv]) == 0
    assert [(config.train.steps, config.run.seed) for config in found] == [(5, 3)] * 2


def test_what_an_option_displaces_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("c.yaml").write_text(TINY)
    monkeypatch.setattr("align_jax.recipes.jobs.train", lambda config: SimpleNamespace(finished=True))
    assert cli.main(["train", "c.yaml", "--train.epochs", "1"]) == 0
    said = "align-jax: c.yaml:4: train.steps: 9 no longer holds, since --train.epochs 1 is given\n"
    assert capsys.readouterr().err == said
    assert cli.main(["train", "c.yaml", "--train.epochs", "1", "--log.quiet", "true"]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", ["train", "evaluate", "generate", "score", "bench", "compile"])
@pytest.mark.parametrize("argv", [[], ["--train.steps", "3"]])
def test_a_command_without_its_config(name, argv, capsys):
    assert cli.main([name, *argv]) == 2
    assert capsys.readouterr().err.startswith(f"align-jax {name}: give a config: align-jax {name} CONFIG.yaml")


MISTAKES = [
    (["train", "nothing.yaml"], "align-jax train: cannot read the config nothing.yaml: No such file or directory$"),
    (["train", "c.yaml", "--train.stepz", "3"], "align-jax train: --train.stepz: .*did you mean steps"),
    (["train", "c.yaml", "steps"], "align-jax train: unexpected argument 'steps'; keys of the config are written --section"),
    (["train", "c.yaml", "--train.steps"], "align-jax train: --train.steps has no value"),
    (["train", "c.yaml", "--objective.name", "dpoo"], "align-jax train: --objective.name: 'dpoo' is unknown; did you mean dpo"),
    (["train", "c.yaml", "--optimizer.name", "adam"], "align-jax train: --optimizer.name: 'adam' is unknown; that is adamw"),
    (["train", "c.yaml", "--train.steps", "ten"], "align-jax train: --train.steps: 'ten' is not a whole number .or null.$"),
    (["train", "t.yaml", "--data.train", "no.jsonl"], "align-jax train: --data.train: no.jsonl: no such file or folder$"),
    (["train", "t.yaml", "--lr", "3"], "align-jax train: unknown option --lr; that is optimizer.learning_rate here; accepted"),
    (["train", "t.yaml", "--beta=3"], "align-jax train: unknown option --beta; did you mean --objective.beta.* accepted are"),
    (["train", "t.yaml", "--objective", "dpo"],
     "align-jax train: --objective: expected keys and values, got .dpo.; write objective: {name: dpo}"),
    (["train", "t.yaml", "--mesh", "nonsense"], "align-jax train: unknown option --mesh; .*: write --mesh auto .*explain mesh"),
    (["train", "t.yaml", "--seeed", "3"], "align-jax train: unknown option --seeed; .*accepted are --help, and every key"),
    (["train", "."], "align-jax train: . is a folder; `align-jax train` takes a config file$"),
    (["bench", "t.yaml", "--sweep", "K=0"], "align-jax bench: --sweep: 'K=0' is not K= and positive numbers"),
    (["bench", "t.yaml", "--sweeep", "K=1"], "align-jax bench: unknown option --sweeep; did you mean --sweep"),
    (["compile", "t.yaml"], "align-jax compile: --topology is required, such as v5e:4x4"),
    (["compile", "t.yaml", "--topology", "v5e:4x4", "--responses", "x"], "align-jax compile: --responses: 'x' is not a whole"),
    (["experiment", "quikstart"], "align-jax experiment: experiment: 'quikstart' is not one of .*did you mean quickst"),
    (["experiment", "quickstart", "--train.stepz", "3"], "align-jax experiment: --train.stepz: .*did you mean steps"),
    (["export", "run"], "align-jax export: give OUT_DIR: align-jax export RUN_DIR OUT_DIR "),
    (["export"], "align-jax export: give RUN_DIR and OUT_DIR: align-jax export RUN_DIR OUT_DIR "),
    (["export", "a", "b", "--stp", "3"], "align-jax export: unknown option --stp; did you mean --step. accepted are --step, "),
    (["config", "--explain", "train.stepz"], r"align-jax config: --explain train.stepz: .*did you mean train.steps\?"),
    (["config", "extra"], "align-jax config: unexpected argument 'extra': align-jax config"),
    (["config", "--explain"], "align-jax config: --explain: expected one argument$"),
    (["configs", "quick"], "align-jax configs: 'quick' is none of the configs.*did you mean quickstart"),
    (["configs", "a", "b", "c"], "align-jax configs: unexpected argument 'c': align-jax configs"),
    (["generate", "t.yaml", "--prompt", ""], "align-jax generate: --prompt: a prompt is empty"),
    (["generate", "t.yaml", "--prompt", "a", "--generate.prompts", "c.yaml"], "align-jax generate: --generate.prompts: give"),
]


@pytest.mark.parametrize("argv, message", MISTAKES)
def test_mistakes_are_one_line(tmp_path, monkeypatch, capsys, argv, message):
    monkeypatch.chdir(tmp_path)
    Path("c.yaml").write_text("run: {seed: 1}\n")
    Path("t.yaml").write_text(TINY)
    assert cli.main(argv) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert re.match(message, err), err


def test_all_that_is_missing_is_said_at_once(tmp_path, capsys):
    (tmp_path / "c.yaml").write_text("run: {seed: 1}\n")
    assert cli.main(["train", str(tmp_path / "c.yaml")]) == 2
    first, *rest = capsys.readouterr().err.splitlines()
    assert first == f"align-jax train: {tmp_path}/c.yaml: these are required:"
    assert [line.split(":")[0] for line in rest] == ["  model", "  data.train", "  objective"]
    assert cli.main(["generate", str(tmp_path / "c.yaml"), "--prompt", "a"]) == 2
    assert capsys.readouterr().err == (
        f"align-jax generate: {tmp_path}/c.yaml: model is required: give model.path, a Hugging Face folder or hub id, or "
        "model.config for a fresh one\n"
    )


def test_what_is_answered_at_once_imports_no_jax(tmp_path):
    (tmp_path / "c.yaml").write_text("run: {seed: 1}\n")
    (tmp_path / "t.yaml").write_text(TINY)
    typos = [argv for argv, _ in MISTAKES if argv[0] != "generate"]
    known = [["--help"], ["train", "--help"], ["export", "-h"], ["--version"], ["config"], ["config", "--explain", "train"]]
    known += [["configs"], ["configs", "quickstart"], ["experiment"], ["experiment", "quickstart", "--help"]]
    code = f"""
import sys
from align_jax.cli import main
for status, argvs in ((2, {typos!r}), (0, {known!r})):
    for argv in argvs:
        assert main(argv) == status, argv
        assert not {{"jax", "numpy", "flax", "transformers"}} & set(sys.modules), argv
"""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, check=True, stdout=subprocess.DEVNULL)


def test_config_prints_all_keys_one_key_or_the_page(capsys):
    assert cli.main(["config"]) == 0 and capsys.readouterr().out == table() + "\n"
    assert cli.main(["config", "--markdown"]) == 0 and capsys.readouterr().out == markdown()
    assert cli.main(["config", "--explain", "train.eval_every"]) == 0
    assert capsys.readouterr().out.startswith("train.eval_every: int or null, default null\n    optimizer steps between")


def test_experiments_are_listed_and_explained(capsys, no_preparation):
    assert cli.main(["experiment"]) == 0
    assert capsys.readouterr().out.startswith("quickstart             The quick start: data, a base model, GDPO, export;")
    assert cli.main(["experiment", "quickstart", "--help"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("usage: align-jax experiment quickstart [--section.key value ...]\n\nThe quick start: data")
    assert "or below the folder that --run.dir names" in out and no_preparation == []


def test_configs_lists_and_copies(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["configs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == sorted(path.stem for path in (ROOT / "configs").glob("*.yaml"))
    (quick,) = (line for line in lines if line.startswith("quickstart "))
    assert "The quick start: GDPO gives a model the belief distribution" in quick and max(map(len, lines)) <= 128
    assert cli.main(["configs", "quickstart"]) == 0 and capsys.readouterr().out == "configs/quickstart.yaml\n"
    assert Path("configs/quickstart.yaml").read_text() == (ROOT / "configs/quickstart.yaml").read_text()
    assert cli.main(["configs", "quickstart"]) == 0
    assert capsys.readouterr().out == "configs/quickstart.yaml is there already, unchanged\n"
    assert cli.main(["configs", "quickstart", "mine.yaml"]) == 0 and Path("mine.yaml").exists()
    assert cli.main(["configs", "quickstart", "sub/"]) == 0 and Path("sub/quickstart.yaml").exists()


@pytest.mark.parametrize("argv", [["config"], ["config", "--explain", "train"], ["configs"], ["train", "--help"]])
def test_a_closed_pipe_ends_quietly(argv):
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "align_jax", *argv]
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 141


def test_python_m():
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.run([sys.executable, "-m", "align_jax", "nothing"], env=env, text=True, capture_output=True)
    assert run.returncode == 2 and run.stderr.startswith("align-jax: unknown command 'nothing'")
    code = "import sys; from align_jax.cli import main; main([]); assert not {'jax', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], env=env, check=True, capture_output=True)


@pytest.mark.parametrize("argv", [["data"], ["data", "--help"], ["help", "data"], ["data", "-h"]])
def test_help_of_commands_that_begin_alike(argv, capsys):
    assert cli.main(argv) == 0
    out = capsys.readouterr().out
    assert "align-jax data check " in out and "align-jax data convert " in out and "align-jax train" not in out


def test_an_unknown_command_of_two_words(capsys):
    assert cli.main(["data", "chek", "x.jsonl"]) == 2
    said = "align-jax: unknown command 'data chek'; did you mean data check? there are data check, data convert, data beliefs"
    assert capsys.readouterr().err == f"{said}\n"
    assert cli.main(["data", "check"]) == 2
    assert capsys.readouterr().err.startswith("align-jax data check: give DATA: align-jax data check DATA [--tokenizer PATH]")


@pytest.mark.parametrize("finished, given, status", [(True, 143, 0), (False, 143, 143), (False, None, 0)])
def test_a_run_that_sigterm_ended_has_the_status_asked_for(tmp_path, monkeypatch, finished, given, status):
    (tmp_path / "mine.yaml").write_text(TINY)
    monkeypatch.setattr("align_jax.recipes.jobs.train", lambda config: SimpleNamespace(finished=finished))
    options = [] if given is None else ["--run.stopped_status", str(given)]
    assert cli.main(["train", str(tmp_path / "mine.yaml"), *options]) == status
