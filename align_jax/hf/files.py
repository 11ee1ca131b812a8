"""Folders in Hugging Face format: finding them, and reading safetensors piece by piece."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError, safe_open

from align_jax.errors import UserError
from align_jax.hf.dtypes import CODES
from align_jax.network import retried
from align_jax.parsing import broken, json_of

ADAPTER, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates",
)
DOWNLOADED = ("model*.safetensors", "*.json", "tokenizer.model", "merges.txt", "*.jinja")
# Other formats of the same weights, which some repositories keep beside them.
NOT_DOWNLOADED = ("original/*", "consolidated*", "onnx/*", "gguf/*")


def split_revision(where: str) -> tuple[str, str | None]:
    """A hub id without its revision, and that: `some/model@v1.0` is `some/model` and `v1.0`; None of a folder, or without `@`.

    Raises:
      UserError: a revision of a folder of this machine.
    """
    name, at, revision = where.rpartition("@")
    if not at or os.path.exists(where):
        return where, None
    if os.path.isdir(name):
        raise UserError(f"{name} is a folder here, which has no revision {revision!r}; models of the hub have (model.revision)")
    return name, revision


def resolve_folder(path: str | os.PathLike) -> Path:
    """The folder of a checkpoint: `path` itself where it is a folder, else the download of the hub id `path`.

    Only safetensors, JSON, tokenizer files and chat templates are downloaded. `ID@REVISION` is a branch, tag or commit.

    Raises:
      UserError: neither a folder nor a hub id that can be reached.
    """
    text = os.path.expandvars(os.path.expanduser(os.fspath(path)))
    if os.path.isdir(text):
        refuse_adapter(Path(text))
        return Path(text)
    if os.path.exists(text):
        raise UserError(f"model path {text} is a file; give the folder that holds config.json and the weights")
    text, revision = split_revision(text)
    if text.startswith((".", "/", "$")) or text.count("/") > 1 or "\\" in text:
        raise UserError(f"model path {text}: there is no such folder")
    which = {"allow_patterns": list(DOWNLOADED), "ignore_patterns": list(NOT_DOWNLOADED)}
    which |= {} if revision is None else {"revision": revision}
    try:
        folder = retried(lambda: huggingface_hub.snapshot_download(text, **which), text)
    except (OSError, HFValidationError) as error:  # the hub's own errors are OSErrors
        reason = str(error).strip().splitlines()
        raise UserError(
            f"model path {text!r} is no folder here, and as a Hugging Face hub id it cannot be downloaded"
            f"{'' if revision is None else f' at revision {revision!r}'}: "
            f"{type(error).__name__}: {reason[0] if reason else ''}"
        ) from error
    refuse_adapter(Path(folder))
    return Path(folder)


def refuse_adapter(folder: Path) -> None:
    """UserError where a folder holds an adapter of PEFT instead of a model; names its base, and says how to give both."""
    if not (folder / ADAPTER).is_file() or (folder / "config.json").exists():
        return
    base = read_json(folder / ADAPTER).get("base_model_name_or_path") or "its base model"
    raise UserError(
        f"{folder} is an adapter of PEFT for {base}, not a whole model: give the model as model.path: {base}, and the adapter "
        f"as lora.path: {folder} (on the command line {base} --lora.path {folder}; in Python, "
        f"align_jax.load_model({base!r}, adapter={str(folder)!r}))"
    )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
      UserError: the file is absent, is not JSON, or holds no object.
    """
    try:
        value = json_of(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


class Checkpoint:
    """The tensors of a folder in safetensors format, single-file or sharded with an index.

    Opening reads headers only, and checks that every tensor is in exactly the file that the index says.

    Attributes:
      folder: where it lies.
      shapes: tensor name -> shape.

    Args:
      single: the file of a folder that has no index.

    Raises:
      UserError: no safetensors (a pickle-only checkpoint, for one), an absent, truncated or malformed file, a tensor
        that is in two files or not in the file that the index names.
    """

    def __init__(self, folder: Path, single: str = SINGLE):
        self.folder = folder
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._codes: dict[str, str] = {}
        self._files: dict[str, Any] = {}
        self._where: dict[str, str] = {}
        listed = _weight_map(folder) if single == SINGLE else None
        for file in [single] if listed is None else sorted(set(listed.values())):
            self._open(file, listed)
        for name, file in (listed or {}).items():
            if self._where.get(name) != file:
                raise UserError(f"{folder / INDEX} says that tensor {name!r} is in {file}, but it is not there")

    def _open(self, file: str, listed: dict[str, str] | None) -> None:
        path = self.folder / file
        if not path.is_file():
            why = "absent" if listed is None else f"listed in {INDEX} but absent"
            raise UserError(f"{path}: {why}; the download or copy is not complete")
        try:
            opened = safe_open(path, framework="numpy")
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path}: truncated or not a safetensors file ({error})") from error
        self._files[file] = opened
        for name in opened.keys():
            if name in self._where:
                raise UserError(f"tensor {name!r} is in two files of {self.folder}: {self._where[name]} and {file}")
            if listed is not None and name not in listed:
                raise UserError(f"{path} holds tensor {name!r}, which {INDEX} does not list")
            piece = opened.get_slice(name)
            self._where[name] = file
            self._codes[name] = piece.get_dtype()
            self.shapes[name] = tuple(piece.get_shape())

    def dtype(self, name: str) -> np.dtype:
        """The type of a tensor.

        Raises:
          UserError: it is not float32, bfloat16 or float16.
        """
        if self._codes[name] not in CODES:
            raise UserError(f"tensor {name!r} in {self.file(name)} has type {self._codes[name]}; supported: {', '.join(CODES)}")
        return CODES[self._codes[name]]

    def code(self, name: str) -> str:
        """What the file calls the type of a tensor, such as BF16 and U8."""
        return self._codes[name]

    def file(self, name: str) -> Path:
        """The file that holds a tensor."""
        return self.folder / self._where[name]

    def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        """A rectangular piece of a tensor, read into fresh memory; nothing else of the file is kept.

        Slices may have steps: what is between them is read, too.
        """
        piece = self._files[self._where[name]].get_slice(name)[tuple(slice(each.start, each.stop) for each in index)]
        return piece[tuple(slice(None, None, each.step) for each in index)] if any(each.step for each in index) else piece


def _weight_map(folder: Path) -> dict[str, str] | None:
    """The index's tensor name -> file, or None for a single file."""
    single, index = (folder / SINGLE).is_file(), (folder / INDEX).is_file()
    if single and index:
        raise UserError(f"{folder} has both {SINGLE} and {INDEX}: which of them is meant? Remove the other")
    if single:
        return None
    if not index:
        _no_safetensors(folder)
    listed = read_json(folder / INDEX).get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise UserError(f"{folder / INDEX}: 'weight_map' is missing or empty")
    for name, file in listed.items():
        if not isinstance(file, str) or Path(file).name != file or not file.strip(". ") or len(file) > 255 or broken(file):
            raise UserError(f"{folder / INDEX}: tensor {name!r:.200} is in {file!r:.200}; expected a file beside the index")
    return listed


def _no_safetensors(folder: Path) -> None:
    pickles = sorted(p.name for pattern in ("*.bin", "*.bin.index.json", "*.pt", "*.pth") for p in folder.glob(pattern))
    if pickles:
        raise UserError(
            f"{folder} holds only pickled weights ({pickles[0]}), which can run any code and are never loaded; "
            "save the model with transformers' save_pretrained (safetensors) first"
        )
    others = sorted(p.name for p in folder.glob("*.safetensors"))
    found = f"; found {', '.join(others[:3])}" if others else ""
    raise UserError(f"{folder} has neither {SINGLE} nor {INDEX}{found}")
