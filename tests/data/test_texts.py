"""Texts in pieces: no token left out, none twice, each after what stood before it."""

from __future__ import annotations

import numpy as np
import pytest

from align_jax.data import DataConfig, Encoder
from align_jax.data.texts import TextPieces, read_pieces
from align_jax.errors import UserError
from tests.data.toys import char_tokenizer, write_jsonl


@pytest.mark.parametrize("prefix", [[], [1]])
def test_every_token_is_scored_once_behind_the_one_before_it(prefix):
    texts = [list(range(10, 21)), [5], [30, 31], []]
    pieces = TextPieces(texts, prefix, 4, "texts")
    scored = {number: [] for number in range(4)}
    for i, number in enumerate(pieces.text_ids):
        group = pieces[i]
        (segment,) = group.segments
        assert 1 <= len(segment.tokens) <= 4 and segment.slot == 0
        before = texts[number].index(segment.tokens[0])
        assert group.prompt.tolist() == [*prefix, *texts[number][max(before - 1, 0) : before]]
        scored[number] += segment.tokens.tolist()
    assert [scored[n] for n in range(4)] == (texts if prefix else [texts[0][1:], [], [31], []])
    assert pieces.tokens == sum(map(len, scored.values()))


def read(tmp_path, value, **options):
    config = DataConfig(eval_text=value, max_response_tokens=options.pop("length", 6), **options)
    return read_pieces(config, Encoder(char_tokenizer(), config), 32, tmp_path)


def test_files_of_text_and_rows_with_text_are_read(tmp_path):
    (tmp_path / "a.txt").write_text("some words\nand more")
    rows = write_jsonl(tmp_path / "b.jsonl", [{"text": "some words\nand more"}, {"text": "other"}, {"text": "third"}])
    one, two = read(tmp_path, str(tmp_path / "a.txt")), read(tmp_path, {"path": rows, "limit": 2})
    assert len(np.unique(one.text_ids)) == 1 and len(np.unique(two.text_ids)) == 2
    assert [one[i].segments[0].tokens.tolist() for i in range(len(one))] == [
        two[i].segments[0].tokens.tolist() for i in range(len(one))
    ]
    assert one.fingerprint != two.fingerprint and read(tmp_path, str(tmp_path / "a.txt")).fingerprint == one.fingerprint
    assert max(len(read(tmp_path, rows, length=100)[0].segments[0].tokens) for _ in range(1)) <= 30  # the context


def test_what_holds_no_text_is_named(tmp_path):
    rows = write_jsonl(tmp_path / "b.jsonl", [{"text": "x" * 5}, {"words": "no"}])
    with pytest.raises(UserError, match=r"b.jsonl:2: data.eval_text reads the column `text`, which holds None here"):
        read(tmp_path, rows)
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(UserError, match="data.eval_text: .*empty.txt has no text of two tokens or more"):
        read(tmp_path, str(tmp_path / "empty.txt"))
    with pytest.raises(UserError, match="data.eval_text: .*none.txt: .*No such file"):
        read(tmp_path, str(tmp_path / "none.txt"))
