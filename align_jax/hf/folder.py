"""The export folder: what may be replaced, writing it whole, and the tokenizer's files."""

from __future__ import annotations

import contextlib
import copy
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from align_jax.errors import UserError
from align_jax.hf.files import ADAPTER, INDEX, TOKENIZER_FILES
from align_jax.hf.tokenizer import read_tokenizer
from align_jax.hf.writer import METADATA

_WEIGHTS = re.compile(r"(adapter_)?model(-\d{5}-of-\d{5})?\.safetensors")
_WRITTEN = {ADAPTER, "config.json", "generation_config.json", INDEX, *TOKENIZER_FILES}


def check_target(out: Path, size: int) -> None:
    """Checks that an export of `size` bytes of weights may and can be written to the folder `out`.

    Raises:
      UserError: `out` is a file, or holds anything but an earlier export; the disk has too little space.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"export folder {out} is a file; give another folder")
    present = sorted(os.listdir(out)) if out.is_dir() else []
    weights = [name for name in present if _WEIGHTS.fullmatch(name)]
    foreign = [name for name in present if name not in _WRITTEN and name not in weights]
    if foreign or (present and not any(_is_ours(out / name) for name in weights)):
        what = foreign[0] if foreign else present[0]
        raise UserError(f"export folder {out} is not empty and not an earlier export (it holds {what}); give another folder")
    parent = out.parent
    while not parent.exists():
        parent = parent.parent
    free = shutil.disk_usage(parent).free
    if free < size:
        raise UserError(f"export to {out} needs {size / 1e9:.2f} GB, but {parent} has {free / 1e9:.2f} GB free")


def _is_ours(file: Path) -> bool:
    try:
        with safe_open(file, framework="numpy") as opened:
            return opened.metadata() == METADATA
    except (SafetensorError, OSError):
        return False


@contextlib.contextmanager
def written_whole(out: Path) -> Iterator[Path]:
    """A new folder beside `out`, which takes its place when the block ends without an error, and vanishes otherwise."""
    out.parent.mkdir(parents=True, exist_ok=True)
    unique = uuid.uuid4().hex[:8]
    temporary, old = (out.with_name(f".{out.name}.{unique}.{suffix}") for suffix in ("tmp", "old"))
    temporary.mkdir()
    try:
        yield temporary
        if out.exists():
            out.rename(old)
        temporary.rename(out)
    except BaseException:
        if old.exists() and not out.exists():
            old.rename(out)
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    if old.exists():
        shutil.rmtree(old)


def check_tokenizer(tokenizer: Any) -> None:
    """Checks that `save_tokenizer` can save this.

    Raises:
      UserError: a path that is no folder with tokenizer files, or an object that is no transformers tokenizer.
    """
    if isinstance(tokenizer, str | os.PathLike):
        if not _tokenizer_files(Path(tokenizer)):
            raise UserError(f"tokenizer folder {tokenizer} has none of {', '.join(TOKENIZER_FILES[:3])}, ...")
    elif tokenizer is not None and not hasattr(tokenizer, "save_pretrained"):
        raise UserError(f"tokenizer is a {type(tokenizer).__name__}; expected a transformers tokenizer or a folder")


def padding_tokenizer(tokenizer: Any) -> Any:
    """The tokenizer (loaded, where a folder is given) with a padding token that ends no text, as reward models need.

    One that has none, or pads with its end-of-sequence token, pads with BOS or the unknown token where these are others.
    """
    if isinstance(tokenizer, str | os.PathLike):
        tokenizer = read_tokenizer(tokenizer)
    if tokenizer is None or tokenizer.pad_token_id not in (None, tokenizer.eos_token_id):
        return tokenizer
    others = [t for t in (tokenizer.bos_token, tokenizer.unk_token) if t not in (None, tokenizer.eos_token)]
    if others:
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.pad_token = others[0]
    return tokenizer


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Writes a transformers tokenizer, or copies the tokenizer files of a folder; None writes nothing."""
    if isinstance(tokenizer, str | os.PathLike):
        for file in _tokenizer_files(Path(tokenizer)):
            (shutil.copytree if file.is_dir() else shutil.copyfile)(file, folder / file.name)
    elif tokenizer is not None:
        tokenizer.save_pretrained(folder)


def _tokenizer_files(folder: Path) -> list[Path]:
    return [folder / name for name in TOKENIZER_FILES if (folder / name).exists()]
