"""Tokenizers and chat templates that a config names."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import jinja2

from align_jax import hf
from align_jax.data.guarded import plain_jinja
from align_jax.errors import UserError
from align_jax.network import retried


def load_tokenizer(where: str | os.PathLike, key: str) -> Any:
    """The tokenizer of a folder or hub id (with `@REVISION`, of that); `key` is what the config calls it, for errors."""
    try:
        name, revision = hf.split_revision(os.path.expanduser(where))
    except UserError as error:
        raise UserError(f"{key}: {error}") from error
    try:
        return retried(lambda: hf.read_tokenizer(name, revision), str(where))
    except UserError as error:
        raise UserError(f"{key}: no tokenizer can be loaded from {where}: {error}") from error


def read_template(file: str) -> str:
    """The Jinja template of `model.chat_template`.

    Raises:
      UserError: no such file, or no Jinja.
    """
    try:
        text = Path(file).expanduser().read_text(encoding="utf-8")
        jinja2.Environment(extensions=["jinja2.ext.loopcontrols"]).parse(plain_jinja(text))
    except RecursionError as error:
        raise UserError(f"model.chat_template: {file}: its parts stand too deep in one another") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"model.chat_template: cannot read {file}: {error}") from error
    except jinja2.TemplateSyntaxError as error:
        raise UserError(f"model.chat_template: {file}:{error.lineno}: not a Jinja template: {error.message}") from error
    except ValueError as error:  # a number of thousands of digits
        raise UserError(f"model.chat_template: {file}: not a Jinja template: {str(error)[:80]}") from error
    return text
