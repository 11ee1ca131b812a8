"""Where a model's tokenizer and template come from."""

from __future__ import annotations

import pytest
from transformers import AutoTokenizer

from align_jax.config import Config
from align_jax.errors import UserError
from align_jax.recipes.source import starting_model
from tests.data.toys import CHAT, char_tokenizer

SHAPE = dict(vocab_size=130, width=16, mlp_width=24, layers=2, heads=4, kv_heads=2, head_size=4)


def tokenizer_of(tmp_path, template):
    char_tokenizer(chat="{{ 'its own' }}").save_pretrained(tmp_path / "tokenizer")
    model = {"config": SHAPE, "tokenizer": str(tmp_path / "tokenizer"), "chat_template": template}
    return starting_model(Config.of({"model": model})).tokenizer


def test_a_template_of_a_file_takes_the_place_of_the_tokenizers_own_and_is_saved_with_it(tmp_path):
    assert tokenizer_of(tmp_path, None).chat_template == "{{ 'its own' }}"
    (tmp_path / "chat.jinja").write_text(CHAT, encoding="utf-8")
    tokenizer = tokenizer_of(tmp_path, str(tmp_path / "chat.jinja"))
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "<s><|user|>hi"
    tokenizer.save_pretrained(tmp_path / "saved")
    assert AutoTokenizer.from_pretrained(tmp_path / "saved").chat_template == CHAT


def test_a_template_that_is_none(tmp_path):
    with pytest.raises(UserError, match="model.chat_template: cannot read .*nowhere"):
        tokenizer_of(tmp_path, str(tmp_path / "nowhere.jinja"))
    (tmp_path / "bad.jinja").write_text("{% for m in messages %}\n{{ m }", encoding="utf-8")
    with pytest.raises(UserError, match=r"bad\.jinja:2: not a Jinja template"):
        tokenizer_of(tmp_path, str(tmp_path / "bad.jinja"))
