"""Tokenizers of transformers, from folders that may hold anything: no code of theirs is run, and errors name the file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from align_jax.errors import UserError
from align_jax.hf.files import read_json

_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "config.json")


def read_tokenizer(where: str | os.PathLike, revision: str | None = None) -> Any:
    """The tokenizer of a folder or hub id.

    Code that comes with it (`auto_map`) is never run: such a tokenizer is refused.

    Raises:
      UserError: there is none, or none that can be read; names the file and what is wrong with it, where that can be told.
    """
    from transformers import AutoTokenizer

    of = {} if revision is None else {"revision": revision}
    try:
        made = AutoTokenizer.from_pretrained(where, trust_remote_code=False, **of)
        _check_kinds(made, Path(where))
        return made
    except UserError:
        raise
    except BaseException as error:  # transformers and tokenizers raise whatever comes, also panics of Rust
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise UserError(_reason(Path(where), error)) from error


def _check_kinds(made: Any, folder: Path) -> None:
    """UserError for what transformers takes over from tokenizer_config.json unseen."""
    template = getattr(made, "chat_template", None)
    texts = template.values() if isinstance(template, dict) else [] if template is None else [template]
    if not all(isinstance(text, str) for text in texts):
        raise UserError(f"{folder / 'tokenizer_config.json'}: chat_template is {template!r:.80}; expected text")
    for name in ("bos_token", "eos_token", "unk_token", "pad_token"):
        if not isinstance(getattr(made, name, None), str | None):
            raise UserError(f"{folder / 'tokenizer_config.json'}: {name} is {getattr(made, name)!r:.80}; expected text")
        try:
            getattr(made, f"{name}_id", None)
        except RecursionError as error:
            said = f"{name} {getattr(made, name)!r:.80} is not in the vocabulary, and there is no unknown token that is"
            raise UserError(f"{folder / 'tokenizer_config.json'}: {said}") from error


def _reason(folder: Path, error: BaseException) -> str:
    for name in _FILES if folder.is_dir() else ():
        file = folder / name
        if not file.is_file():
            continue
        try:
            values = read_json(file)
        except UserError as wrong:
            return str(wrong)
        if name == "tokenizer.json" and not isinstance(values.get("model"), dict):
            return f"{file}: it has no 'model', the pieces and how texts are split into them"
        if "auto_map" in values and "trust_remote_code" in str(error):
            return f"{file}: auto_map: {values['auto_map']} names code that would have to be run, which is never done here"
    said = str(error).strip().splitlines() or [""]
    kind = "" if isinstance(error, OSError | ValueError) else f"{type(error).__name__}: "
    return f"{kind}{said[0]}"
