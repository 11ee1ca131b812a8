"""The command line: which command, what it prints where, and the exit status."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from align_jax import cli
from align_jax.config.describe import markdown, table
from align_jax.errors import UserError

ROOT = Path(__file__).parent.parent
NAMES = ("train", "evaluate", "export", "generate", "score", "bench", "compile", "experiment", "config", "configs")


@pytest.fixture(autouse=True)
def no_preparation(monkeypatch):
    """Counts preparations of the process, and keeps the settings of this one."""
    done = []
    monkeypatch.setattr("align_jax.parallel.distributed.prepare_process", lambda: done.append(1))
    return done


def _command(monkeypatch, run, computes=True):
    monkeypatch.setitem(cli.COMMANDS, "try", cli.Command(run, "A B", "tries", computes))


@pytest.mark.parametrize("argv", [[], ["-h"], ["--help"]])
def test_help_lists_every_command(argv, capsys):
    assert cli.main(argv) == 0
    out = capsys.readouterr().out
    assert out.startswith("usage: align-jax COMMAND ...")
    lines = {line.split()[0]: line for line in out.splitlines() if line.startswith("  ")}
    assert tuple(lines) == NAMES
    assert len({line.index(cli.COMMANDS[name].help) for name, line in lines.items()}) == 1


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_of_a_command(name, flag, capsys, no_preparation):
    assert cli.main([name, flag]) == 0
    command = cli.COMMANDS[name]
    assert capsys.readouterr().out == f"align-jax {name} {command.arguments}\n\n{command.help}\n"
    assert no_preparation == []


def test_an_unknown_command(capsys):
    assert cli.main(["trian", "c.yaml"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("align-jax: unknown command 'trian'\nusage: ")


@pytest.mark.parametrize("error", [UserError("model.path: wrong"), OSError("model.path: wrong")])
def test_what_the_user_can_mend_is_one_line_and_status_2(monkeypatch, capsys, error):
    def run(argv):
        raise error

    _command(monkeypatch, run)
    assert cli.main(["try"]) == 2
    assert capsys.readouterr().err == "align-jax try: model.path: wrong\n"


def test_a_mistake_of_the_program_has_its_traceback(monkeypatch):
    _command(monkeypatch, lambda argv: {}["missing"])
    with pytest.raises(KeyError):
        cli.main(["try"])


def test_ctrl_c(monkeypatch, capsys):
    def run(argv):
        raise KeyboardInterrupt

    _command(monkeypatch, run)
    assert cli.main(["try"]) == 130
    assert capsys.readouterr().err == "align-jax try: interrupted\n"


def test_a_command_gets_its_arguments_and_gives_the_status(monkeypatch, no_preparation):
    _command(monkeypatch, lambda argv: len(argv))
    assert cli.main(["try", "a", "--b", "c"]) == 3
    assert no_preparation == [1]


def test_what_computes_nothing_prepares_nothing(monkeypatch, no_preparation):
    _command(monkeypatch, lambda argv: 0, computes=False)
    assert cli.main(["try"]) == 0 and no_preparation == []
    assert [name for name, command in cli.COMMANDS.items() if not command.computes] == ["config", "configs", "try"]


@pytest.mark.parametrize("name", ["train", "evaluate", "generate", "score", "bench"])
@pytest.mark.parametrize("argv", [[], ["--train.steps", "3"]])
def test_a_command_without_its_config(name, argv, capsys):
    assert cli.main([name, *argv]) == 2
    assert capsys.readouterr().err.startswith(f"align-jax {name}: give a config: align-jax {name} CONFIG.yaml")


@pytest.mark.parametrize(
    "argv, message",
    [
        (["train", "nothing.yaml"], "align-jax train: cannot read the config nothing.yaml"),
        (["train", "c.yaml", "--train.stepz", "3"], "align-jax train: --train.stepz: .*did you mean steps"),
        (["train", "c.yaml", "steps"], "align-jax train: unexpected argument 'steps'"),
        (["train", "c.yaml"], "align-jax train: c.yaml: .*are required"),
        (["bench", "c.yaml", "--sweep", "K=0"], "align-jax bench: --sweep K=0: write K="),
        (["experiment"], "align-jax experiment: give the name of an experiment"),
        (["experiment", "nothing"], "align-jax experiment: experiment: 'nothing' is not one of .*quickstart"),
        (["export", "nowhere", "out"], "align-jax export: .*nowhere"),
        (["config", "--explain", "train.stepz"], r"align-jax config: --explain train.stepz: .*did you mean train.steps\?"),
        (["configs", "quick"], "align-jax configs: 'quick' is none of the configs"),
    ],
)
def test_mistakes_are_one_line(tmp_path, monkeypatch, capsys, argv, message):
    monkeypatch.chdir(tmp_path)
    Path("c.yaml").write_text("run: {seed: 1}\n")
    assert cli.main(argv) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert re.match(message, err), err


@pytest.mark.parametrize("argv", [["export", "run"], ["config", "extra"], ["configs", "a", "b", "c"], ["compile", "c.yaml"]])
def test_missing_and_surplus_arguments(argv, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(argv)
    assert caught.value.code == 2 and f"usage: align-jax {argv[0]}" in capsys.readouterr().err


def test_config_prints_all_keys_one_key_or_the_page(capsys):
    assert cli.main(["config"]) == 0 and capsys.readouterr().out == table() + "\n"
    assert cli.main(["config", "--markdown"]) == 0 and capsys.readouterr().out == markdown()
    assert cli.main(["config", "--explain", "train.eval_every"]) == 0
    assert capsys.readouterr().out.startswith("train.eval_every: int or null, default null\n    optimizer steps between")


def test_configs_lists_and_copies(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["configs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == sorted(path.stem for path in (ROOT / "configs").glob("*.yaml"))
    (quick,) = (line for line in lines if line.startswith("quickstart "))
    assert "The quick start: GDPO gives a model the belief distribution" in quick and max(map(len, lines)) <= 128
    assert cli.main(["configs", "quickstart"]) == 0 and capsys.readouterr().out == "configs/quickstart.yaml\n"
    assert Path("configs/quickstart.yaml").read_text() == (ROOT / "configs/quickstart.yaml").read_text()
    assert cli.main(["configs", "quickstart", "mine.yaml"]) == 0 and Path("mine.yaml").exists()


@pytest.mark.parametrize("argv", [["config"], ["config", "--explain", "train"]])
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
