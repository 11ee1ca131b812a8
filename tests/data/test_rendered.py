"""Conversations are rendered before the first step: refused by file and line, skipped where asked, scored in part."""

from __future__ import annotations

import numpy as np
import pytest

from align_jax.data import DataConfig, Encoder, GroupDataset, RowLayout, pack_groups
from align_jax.data.arrange import Beliefs, Group, Pair
from align_jax.data.template import ChatTemplate
from align_jax.errors import UserError
from tests.data.toys import CHAT, char_tokenizer, opinion, write_jsonl

REFUSES = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turn') }}{% endif %}" + CHAT


def talk(*turns):
    return [{"role": role, "content": content} for role, content in turns]


def rows(count=4, refused=(2,)):
    return [
        {
            "prompt": [*(talk(("system", "s")) if i in refused else []), *talk(("user", f"q{i}"))],
            "chosen": talk(("assistant", "yes")),
            "rejected": talk(("assistant", "no")),
        }
        for i in range(count)
    ]


def dataset(tmp_path, given, chat=REFUSES, spool=None, **config):
    made = DataConfig(train=write_jsonl(tmp_path / "rows.jsonl", given), **config)
    return GroupDataset(made, "train", Encoder(char_tokenizer(chat=chat), made), arrangement=Pair(), spool_dir=spool)


def test_a_row_that_the_template_refuses_is_refused_before_the_first_step(tmp_path):
    with pytest.raises(UserError, match=r"rows.jsonl:3: the chat template refuses .*: no system turn.*on_bad_row"):
        dataset(tmp_path, rows())
    kept = dataset(tmp_path, rows(), on_bad_row="skip")
    assert len(kept) == 3 and kept[2].segments
    assert [bad["where"] for bad in kept.bad_rows] == [f"{tmp_path}/rows.jsonl:3"]


def test_a_second_start_on_the_same_rows_renders_none(tmp_path, monkeypatch):
    first = dataset(tmp_path, rows(), spool=tmp_path / "spool", on_bad_row="skip")
    calls, rendered = [], ChatTemplate.rendered
    monkeypatch.setattr(ChatTemplate, "rendered", lambda self, *a, **k: calls.append(1) or rendered(self, *a, **k))
    again = dataset(tmp_path, rows(), spool=tmp_path / "spool", on_bad_row="skip")
    assert len(calls) <= 4  # the template's own key, no row
    assert again.bad_rows == first.bad_rows and len(again) == 3
    # Other rows are rendered.
    other = dataset(tmp_path, rows(refused=(0, 1)), spool=tmp_path / "spool", on_bad_row="skip")
    assert [bad["where"][-1] for bad in other.bad_rows] == ["1", "2"]


def test_what_is_kept_is_not_believed_for_shorter_answers(tmp_path):
    talks = [talk(("user", "a long question"), ("assistant", word)) for word in ("a", "b")]
    given = [{"prompt": talk(("user", "q"), ("assistant", "s")), "chosen": talks[0], "rejected": talks[1]}]
    dataset(tmp_path, given, chat=CHAT, spool=tmp_path / "spool")
    with pytest.raises(UserError, match="rows.jsonl:1: .*cut to 8 tokens nothing else is left"):
        dataset(tmp_path, given, chat=CHAT, spool=tmp_path / "spool", max_response_tokens=8)


def test_a_cache_that_was_cut_short_is_made_anew(tmp_path):
    dataset(tmp_path, rows(), spool=tmp_path / "spool", on_bad_row="skip")
    (file,) = (tmp_path / "spool").iterdir()
    for broken in ("{", "[]", '{"2": "old"}', '{"refused": 5, "changed": 0}', '{"refused": {}, "changed": "a"}'):
        file.write_text(broken)
        assert len(dataset(tmp_path, rows(), spool=tmp_path / "spool", on_bad_row="skip")) == 3
        assert "no system turn" in file.read_text()


def test_a_prompt_that_is_rendered_otherwise_is_said(tmp_path):
    opens = CHAT.replace("<|assistant|>{% endif %}", "<|assistant|><think>{% endif %}")
    made = dataset(tmp_path, rows(refused=()), chat=opens)
    assert [note for note in made.notes if "the chat template renders 4 prompts otherwise when an answer follows" in note]
    assert not any("otherwise" in note for note in dataset(tmp_path, rows(refused=())).notes)


def test_the_users_words_in_an_answer_are_read_and_not_scored(tmp_path):
    answer = talk(("assistant", "one"), ("user", "and?"), ("assistant", "two"))
    given = [{"prompt": talk(("user", "q")), "chosen": answer, "rejected": talk(("assistant", "no"))}]
    tokenizer = char_tokenizer(chat=CHAT)
    for score, text in (("assistant", "one</s>two</s>"), ("all", "one</s>\n<|user|>and?<|assistant|>two</s>")):
        made = dataset(tmp_path, given, chat=CHAT, score=score)
        for pack in (True, False):
            batch = pack_groups([made[0]], shards=1, groups_per_shard=1, layout=RowLayout(pack=pack))
            scored = np.asarray(batch.targets)[np.asarray(batch.slots) == 0]
            assert "".join(tokenizer.convert_ids_to_tokens(scored)) == text
            assert batch.lengths[0].tolist() == [len(scored), 3]
            # What is not scored is still read.
            assert int(np.count_nonzero(batch.segments)) == sum(len(segment.tokens) for segment in made[0].segments)


def test_what_cannot_become_tokens_is_refused_before_the_first_step_without_a_template_too(tmp_path):
    tokenizer = char_tokenizer()

    def opened(rows, arrangement, **config):
        made = DataConfig(train=write_jsonl(tmp_path / "mixed.jsonl", rows), on_bad_row="skip", **config)
        return GroupDataset(made, "train", Encoder(tokenizer, made, vocab_size=200), arrangement=arrangement)

    plain = [{"prompt": f"p{i}", "chosen": "a", "rejected": "b"} for i in range(2)]
    found = opened([plain[0], {**plain[1], "prompt": talk(("user", "q"))}, {**plain[1], "tools": [{"name": "f"}]}], Pair())
    assert len(found) == 1 and all("no chat template" in bad["reason"] for bad in found.bad_rows)
    beliefs = [opinion(), opinion(options=["no", "no way", "maybe"], accept_choice="no way", reject_choice="no")]
    found = opened(beliefs, Beliefs(), belief_template="{belief}")
    assert len(found) == 1 and "begins with that of 'no'" in found.bad_rows[0]["reason"]
    samples = [{"prompt": "p", "responses": ["a", "b"], "scores": [1, 0], "tokens": [[5], [n]]} for n in (6, 999)]
    found = opened(samples, Group())
    assert len(found) == 1 and "the vocabulary ends at 199" in found.bad_rows[0]["reason"]
