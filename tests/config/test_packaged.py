"""The configs that come with the package: listed, copied, and said where a missing one is."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import align_jax
from align_jax.config import load_config
from align_jax.config.packaged import copy_config, how_to_copy, packaged_config, packaged_configs, purpose
from align_jax.errors import UserError

ROOT = Path(__file__).parents[2]
PACKED = ("README.md", "align_jax", "configs", "setup.py", "pyproject.toml", "LICENSE")


def test_all_configs_are_packaged():
    assert {file.name for file in packaged_configs().values()} == {path.name for path in (ROOT / "configs").glob("*.*")}


@pytest.mark.parametrize("name", packaged_configs())
def test_a_config_says_what_it_is_for(name):
    text, whole = purpose(packaged_config(name)), packaged_config(name).read_text()
    assert 40 < len(text) < 400 and text.endswith(".") and "align-jax " not in text
    assert f"configs/{name}.yaml" in whole or "align-jax experiment" in whole


def test_a_name_may_have_its_ending():
    assert packaged_config("quickstart.yaml") == packaged_config("quickstart")
    with pytest.raises(UserError, match="'quick' is none of the configs that come with align_jax; did you mean quickstart."):
        packaged_config("quick")


@pytest.mark.parametrize(
    "dest, where",
    [
        (None, "configs/quickstart.yaml"),
        ("mine/a.yaml", "mine/a.yaml"),
        ("there", "there/quickstart.yaml"),
        ("new/", "new/quickstart.yaml"),
    ],
)
def test_a_config_is_copied_once(tmp_path, monkeypatch, dest, where):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    assert copy_config("quickstart", dest) == Path(where)
    assert Path(where).read_text() == packaged_config("quickstart").read_text()
    assert copy_config("quickstart", dest) == Path(where)  # the same text
    Path(where).write_text("run: {seed: 1}\n")
    with pytest.raises(UserError, match=f"^{re.escape(where)} holds another text and is kept; .*configs quickstart FILE"):
        copy_config("quickstart", dest)
    assert Path(where).read_text() == "run: {seed: 1}\n"


@pytest.mark.parametrize("path", ["quickstart", "quickstart.yaml", "configs/quickstart.yaml"])
def test_a_missing_config_that_comes_with_the_package(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    said = "align_jax comes with it: `align-jax configs quickstart` copies it to configs/quickstart.yaml"
    with pytest.raises(UserError, match=f"^cannot read the config {re.escape(path)}: .*No such file.*; {said}$"):
        load_config(path)
    copy_config("quickstart")
    assert load_config("configs/quickstart.yaml").run.dir == "runs/quickstart/gdpo"


@pytest.mark.parametrize("path", ["mine/quickstart.yaml", "quick.yaml", "quickstart.json"])
def test_a_missing_config_of_the_users_own(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    assert how_to_copy(path) == ""
    with pytest.raises(UserError, match=r"^cannot read the config [\w/.]+: No such file or directory$"):
        load_config(path)


def test_an_unreadable_config_is_not_a_missing_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("configs/quickstart.yaml").mkdir(parents=True)
    with pytest.raises(UserError, match="Is a directory$"):
        load_config("configs/quickstart.yaml")


def test_every_folder_with_code_is_a_package():
    folders = {path.parent for path in (ROOT / "align_jax").rglob("*.py")}
    assert [str(folder) for folder in folders if not (folder / "__init__.py").exists()] == []


@pytest.mark.slow
def test_a_wheel_has_all_of_it(tmp_path):
    source, away = tmp_path / "source", tmp_path / "away"
    for folder in (source, away):
        folder.mkdir()
    # A copy, since a build leaves folders in its source; what git ignores stays out.
    names = subprocess.check_output(["git", "ls-files", "-co", "--exclude-standard", *PACKED], cwd=ROOT, text=True).splitlines()
    for name in (name for name in names if os.path.lexists(ROOT / name)):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_symlink():
            os.symlink(os.readlink(ROOT / name), source / name)
        else:
            (source / name).write_bytes((ROOT / name).read_bytes())
    pip = [sys.executable, "-m", "pip", "--quiet", "--no-input", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-index", "--no-deps", "--no-build-isolation", "-w", tmp_path, source], check=True)
    (wheel,) = tmp_path.glob("*.whl")

    expected = {name for name in names if name.startswith("align_jax/") and name.endswith(".py")}
    expected |= {"align_jax/config/keys.json", *(f"align_jax/configs/{file.name}" for file in packaged_configs().values())}
    expected |= {name for name in names if name.startswith("align_jax/cost/lengths/")}
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert packed == {name for name in expected if (ROOT / name).exists()}

    installed = tmp_path / "installed"
    subprocess.run([*pip, "install", "--no-index", "--no-deps", "--target", installed, wheel], check=True)
    env = {**os.environ, "PYTHONPATH": str(installed)}
    code = "import align_jax, sys; from align_jax.cli import main; print(align_jax.__file__); sys.exit(main(['configs']))"
    listed = subprocess.check_output([sys.executable, "-c", code], cwd=away, env=env, text=True).splitlines()
    assert listed[0] == str(installed / "align_jax" / "__init__.py")
    assert [line.split()[0] for line in listed[1:]] == list(packaged_configs())
    subprocess.run([sys.executable, "-m", "align_jax", "configs", "quickstart"], cwd=away, env=env, check=True)
    said = subprocess.check_output([sys.executable, "-m", "align_jax", "--version"], cwd=away, env=env, text=True)
    assert said.startswith(f"align-jax {align_jax.__version__} (") and f"-{align_jax.__version__}-" in wheel.name
    assert (away / "configs/quickstart.yaml").read_text() == packaged_config("quickstart").read_text()
