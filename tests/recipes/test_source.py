"""Where a model's tokenizer and template come from."""

from __future__ import annotations

import huggingface_hub
import pytest
from transformers import AutoTokenizer

from align_jax.config import Config
from align_jax.errors import UserError
from align_jax.recipes.models import model_at, starting_model
from tests.data.toys import CHAT, char_tokenizer
from tests.hf import models

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


def test_a_revision_goes_to_the_hub_for_weights_and_tokenizer(tmp_path, monkeypatch):
    asked = []
    folder = models.save(models.torch_model("llama2"), tmp_path / "model")
    char_tokenizer().save_pretrained(folder)

    def download(repo_id, *, revision=None, **_):
        asked.append((repo_id, revision))
        return str(folder)

    def tokenizer_at(name, revision=None, **_):
        asked.append((name, revision))
        return char_tokenizer()

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", tokenizer_at)
    source = starting_model(Config.of({"model": {"path": "some/model", "revision": "v1"}}))
    assert source.tokenizer is not None and source.describe() == "some/model@v1"
    assert model_at("some/model@v2", "lm_head", "reference.path").describe() == "some/model@v2"
    assert asked == [("some/model", "v1"), ("some/model", "v1"), ("some/model", "v2")]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"config": SHAPE, "revision": "v1"}, "model.revision: 'v1' does not go with a model without model.path"),
        ({"path": "some/model@v2", "revision": "v1"}, "model.revision: 'v1' does not go with model.path: some/model@v2"),
    ],
)
def test_a_revision_of_nothing_is_refused(model, message):
    with pytest.raises(UserError, match=message):
        Config.of({"model": model})


def test_a_revision_of_a_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match="is a folder here, which has no revision 'v1'"):
        starting_model(Config.of({"model": {"path": str(tmp_path), "revision": "v1"}}))
