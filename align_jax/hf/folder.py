"""The export folder: what may be replaced, writing it whole, and the tokenizer's files."""

from __future__ import annotations

import contextlib
import copy
import errno
import os
import re
import shutil
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from align_jax.errors import UserError
from align_jax.hf.files import ADAPTER, INDEX, TOKENIZER_FILES
from align_jax.hf.tokenizer import read_tokenizer
from align_jax.hf.writer import METADATA
from align_jax.terminal import PREFIX, write_line

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

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
    clear_left(out)
    replaces = out.exists() and any(out.iterdir())
    unique = f"{socket.gethostname()}-{uuid.uuid4().hex[:8]}"
    temporary, old = (out.with_name(f".{out.name}.{unique}.{suffix}") for suffix in ("tmp", "old"))
    temporary.mkdir()
    try:
        with _locked(temporary):
            yield temporary
        if out.exists():
            if not replaces and any(out.iterdir()):
                raise _taken(out)
            out.rename(old)
        try:
            temporary.rename(out)
        except OSError as error:
            if error.errno != errno.ENOTEMPTY:
                raise
            raise _taken(out) from error
    except BaseException:
        if old.exists() and not out.exists():
            old.rename(out)
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)  # what stays is removed by the next export


def _taken(out: Path) -> UserError:
    return UserError(f"export folder {out} holds a model by now, of another export at the same time; give another folder")


def clear_left(out: Path) -> None:
    """Brings back or removes what an export to `out` left that was killed: of this machine, and used by no process any more.

    One that was killed while it took an earlier one's place left that one beside it, as `.OUT.HOST-ID.old`.
    """
    host = re.escape(socket.gethostname())
    left = re.compile(rf"\.{re.escape(out.name)}\.{host}-[0-9a-f]{{8}}\.(tmp|old)")
    for folder in sorted(out.parent.iterdir()) if out.parent.is_dir() else ():
        found = left.fullmatch(folder.name)
        if not found or not folder.is_dir():
            continue
        if found[1] == "old" and not out.exists():
            folder.rename(out)
            write_line(f"{PREFIX}{out}: an export was killed as it took the place of the model here, which is back")
        elif found[1] == "old" or _is_free(folder):
            shutil.rmtree(folder, ignore_errors=True)
            write_line(f"{PREFIX}removed {folder}, which an export left that was killed")


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """The folder locked for this process, where the system has such locks; they end with the process."""
    opened = os.open(folder, os.O_RDONLY) if fcntl is not None else None
    try:
        if opened is not None:
            with contextlib.suppress(OSError):  # a file system without them
                fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        if opened is not None:
            os.close(opened)


def _is_free(folder: Path) -> bool:
    """Whether no process has the folder locked; False where that cannot be known."""
    if fcntl is None:
        return False
    opened = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except OSError:
        return False
    finally:
        os.close(opened)


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
