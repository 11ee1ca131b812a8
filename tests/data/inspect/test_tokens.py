"""Lengths, cuts, boundaries, refusals and control tokens are those of training; and the first batch as it is."""

from __future__ import annotations

import os
import re

import numpy as np
import pytest

from align_jax import check_data
from align_jax.data import DataConfig, Encoder, RowLayout, encode_group, pack_groups
from align_jax.data.formats import Example
from align_jax.data.inspect.batches import pieces, segments, shown
from align_jax.data.inspect.gather import gather
from align_jax.data.inspect.tokens import measure, token_findings, token_table
from align_jax.data.opened import open_data
from align_jax.errors import UserError
from tests.data.toys import CHAT, char_tokenizer, opinion, write_jsonl

STRICT = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turn here') }}{% endif %}" + CHAT


def _measured(tmp_path, rows, tokenizer=None, vocab_size=None, **options):
    config = DataConfig(train=write_jsonl(tmp_path / "rows.jsonl", rows), on_bad_row="skip", **options)
    gathered = gather(open_data(config, "train", None))
    return measure(gathered, tokenizer or char_tokenizer(adds_bos=True), config, vocab_size=vocab_size)


def test_lengths_and_what_is_cut(tmp_path):
    rows = [
        {"prompt": "abcd", "responses": ["x" * 9, "y"], "scores": [1, 0]},
        {"prompt": "a", "responses": ["zz"], "scores": [1]},
    ]
    measured = _measured(tmp_path, rows, max_prompt_tokens=3, max_response_tokens=4)
    assert measured.prompts.tolist() == [5, 2] and measured.answers.tolist() == [10, 2, 3]
    table = token_table(measured)
    assert (table["prompts"]["cut"], table["prompts"]["lost"]) == (1, 2 / 7)
    assert (table["answers"]["cut"], table["answers"]["lost"]) == (1, 6 / 15) and table["answers"]["quantiles"]["50"] == 3
    found = {finding.code: finding for finding in token_findings(measured)}
    assert found["cut_answers"].severity == "warning" and "cuts 1 of 3 answers (33%)" in found["cut_answers"].text
    assert token_findings(_measured(tmp_path, rows)) == []


def test_beliefs_are_measured_as_they_are_trained_on(tmp_path):
    measured = _measured(tmp_path, [opinion("q")])
    assert measured.prompts.tolist() == [2] and measured.answers.tolist() == [len("good1") + 1, len("bad0") + 1]


def test_rows_that_the_template_refuses(tmp_path):
    conversation = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    rows = [
        {
            "prompt": prompt,
            "chosen": [{"role": "assistant", "content": "a"}],
            "rejected": [{"role": "assistant", "content": "b"}],
        }
        for prompt in (conversation, conversation[1:])
    ]
    measured = _measured(tmp_path, rows, char_tokenizer(chat=STRICT))
    (refused,) = measured.refused
    assert refused["where"].endswith("rows.jsonl:1") and "no system turn here" in refused["reason"]
    (found,) = token_findings(measured)
    assert (found.code, found.severity, found.count) == ("refused", "problem", 1) and "no system turn" in found.details[0]
    report = check_data(str(tmp_path / "rows.jsonl"), "log.quiet=true", tokenizer=char_tokenizer(chat=STRICT))
    assert report.status() == 1 and report.to_json()["data"]["data.train"]["refused_rows"] == [refused]
    assert "rows.jsonl:2: " in repr(report)  # what is left makes the first batch


def test_control_tokens_that_are_written_out(tmp_path):
    rows = [{"prompt": "say </s> now", "chosen": "x", "rejected": "y"}, {"prompt": "b", "chosen": "<s>", "rejected": "y"}]
    measured = _measured(tmp_path, rows)
    assert {token: len(places) for token, places in measured.control.items()} == {"</s>": 1, "<s>": 1}
    (found,) = token_findings(measured)
    assert found.severity == "note" and "stay text" in found.text and found.details[0].endswith("rows.jsonl:1")
    (found,) = token_findings(_measured(tmp_path, rows, control_tokens="tokens"))
    assert found.severity == "warning" and "become control tokens" in found.text


DATA = os.environ.get("ALIGN_JAX_DATA")


@pytest.mark.skipif(not DATA, reason="ALIGN_JAX_DATA is not set")
def test_boundaries_of_a_real_tokenizer(tmp_path):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(f"{DATA}/stories260k")
    joint, apart = ("Once upon a t", "ime there was"), ("Once upon a time", ", there was")
    rows = [{"prompt": p, "responses": [r], "scores": [1]} for p, r in (joint, apart)]
    measured = _measured(tmp_path, rows, tokenizer)
    ids = lambda text: tokenizer(text)["input_ids"]  # noqa: E731
    merges = [ids(p + r)[: len(ids(p))] != ids(p) for p, r in (joint, apart)]
    assert merges == [True, False] and [line.rpartition("/")[2] for line in measured.merged] == ["rows.jsonl:1: answer 1 of 1"]
    assert [f.code for f in token_findings(measured)] == ["boundaries"]


def _batch(tokenizer, **options):
    encoder = Encoder(tokenizer, DataConfig(**options))
    examples = [Example("ab", ("xyz", "w"), (1.0, 0.5)), Example("c", ("\x1b[31mv\n",), (2.0,))]
    groups = [encode_group(encoder, example, i)[0] for i, example in enumerate(examples)]
    return pack_groups(groups, shards=1, groups_per_shard=2, layout=RowLayout())


def test_segments_are_what_went_in():
    tokenizer = char_tokenizer(adds_bos=True)
    found = sorted(segments(_batch(tokenizer)), key=lambda s: (s.group, s.slot))
    decoded = [(s.group, s.slot, tokenizer.decode(s.prompt), tokenizer.decode(s.tokens), all(s.scored)) for s in found]
    assert [d[:4] for d in decoded[:2]] == [(0, 0, "<s>ab", "xyz</s>"), (0, 1, "<s>ab", "w</s>")]
    assert all(d[4] for d in decoded)


def test_a_batch_as_text_with_and_without_colours():
    tokenizer = char_tokenizer(adds_bos=True)
    batch = _batch(tokenizer)
    plain = shown(batch, tokenizer, lambda row: f"f:{row}", color=False)
    assert plain[0] == "f:0: 3 tokens of prompt, 2 texts" and plain[1].split() == ["prompt", "<s>ab"]
    assert plain[2].endswith("[xyz<EOS </s>>]")
    coloured = shown(batch, tokenizer, lambda row: f"f:{row}", color=True)
    assert "\x1b[32mx" in coloured[2] or "\x1b[92mx" in coloured[2]
    assert "\x1b[7;35m</s>\x1b[0m" in coloured[2] and "\x1b[2m<s>ab" in coloured[1]
    without = [re.sub(r"\x1b\[[\d;]*m", "", line) for line in coloured]
    assert without[2].endswith("xyz</s>")
    limited = shown(batch, tokenizer, lambda row: f"f:{row}", color=False, groups=1)
    assert limited[-1] == "... and 1 more group in this batch"


def test_what_is_not_scored_stands_outside_the_brackets(tmp_path):
    rows = [
        {
            "prompt": [{"role": "user", "content": "q"}],
            "chosen": [{"role": r, "content": c} for r, c in (("assistant", "one"), ("user", "more"), ("assistant", "two"))],
            "rejected": [{"role": "assistant", "content": "no"}],
        }
    ] * 2
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    text = repr(check_data(path, "log.quiet=true", tokenizer=char_tokenizer(chat=CHAT)))
    line = next(line for line in text.splitlines() if line.startswith("  1: 1"))
    assert "[one<EOS </s>>" in line and "two<EOS </s>>" in line
    outside = re.sub(r"\[[^\]]*\]", "", line)
    assert "more" in outside and "one" not in outside and "two" not in outside


def test_pieces_of_signs_that_take_several_tokens_and_of_control_characters():
    class Bytes:
        def decode(self, ids, **options):
            return bytes(ids).decode("utf-8", "replace")

    ids = list("a é\x1b[1m\n".encode())
    assert "".join(pieces(ids, [], Bytes())) == "a é\\x1b[1m\\n"
    assert pieces(list("é".encode()), [], Bytes()) == ["", "é"]


def test_no_tokenizer_is_said_and_one_of_a_config_is_used(tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", [{"prompt": p, "chosen": "x", "rejected": "y"} for p in "ab"])
    report = check_data(path, "log.quiet=true")
    assert report.parts[0].measured is None and "--tokenizer PATH" in report.lines[0]
    char_tokenizer(adds_bos=True).save_pretrained(tmp_path / "tokenizer")
    config = {
        "model": {"tokenizer": str(tmp_path / "tokenizer")},
        "data": {"train": path, "max_response_tokens": 1},
        "objective": {"name": "dpo"},
        "log": {"quiet": True},
    }
    report = check_data(config)
    assert report.lines == [] and np.all(report.parts[0].measured.answers == 2)
    assert {f.code for f in report.findings} == {"cut_answers", "repeated_answers"} - {"repeated_answers"}


def test_ids_beyond_the_vocabulary_of_the_model_are_refused(tmp_path):
    rows = [{"prompt": "p", "responses": ["a", "b"], "scores": [1, 0], "tokens": [[5, n], [4, 2]]} for n in (2, 9999)]
    assert _measured(tmp_path, rows).refused == []
    (refused,) = _measured(tmp_path, rows, vocab_size=512).refused
    assert refused["where"].endswith("rows.jsonl:2") and "got 9999" in refused["reason"]
    with pytest.raises(UserError, match="vocabulary ends at 3; use the tokenizer that belongs to the model"):
        _measured(tmp_path, [{"prompt": "p", "chosen": "z", "rejected": "y"}], vocab_size=4)


def test_rows_that_training_refuses_are_listed(tmp_path):
    given = {"probabilities": [0.5, 0.5]}
    rows = [
        opinion("q", options=both, accept_choice=both[1], reject_choice=both[0], **given)
        for both in (["good", "bad"], ["good", "good enough"])
    ]
    measured = _measured(tmp_path, rows, belief_template="{belief}")
    (refused,) = measured.refused
    assert refused["where"].endswith("rows.jsonl:2") and "not exclusive" in refused["reason"]
    talk = [{"role": "user", "content": "u"}]
    rows = [{"prompt": talk, "chosen": "a", "rejected": "b"}, {"prompt": "p", "chosen": "a", "rejected": "b"}]
    (refused,) = _measured(tmp_path, rows).refused
    assert refused["where"].endswith("rows.jsonl:1") and "no chat template" in refused["reason"]
