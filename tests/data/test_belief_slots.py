"""Slots of GDPO's options: texts behind every belief, ids and shortened statements, rows without labels."""

from __future__ import annotations

import numpy as np
import pytest

from align_jax.data import DataConfig, Encoder, GroupDataset
from align_jax.data.arrange import Beliefs, Group, Sft
from align_jax.data.formats import FORMATS
from align_jax.data.sources import RowError
from align_jax.errors import UserError
from tests.data.toys import char_tokenizer, opinion, write_jsonl

TOKENIZER = char_tokenizer()
OPINIONS = [opinion("p0", 1, 0), opinion("p0", 1, 2), opinion("p0", 0, 1), opinion("p1", 1, 2)]
STATEMENTS = {0: "0<no>", 1: "1<yes>", 2: "2<maybe>"}


def unlabelled(prompt="p0", answer="said", probabilities=None, **more):
    row = {"prompt": prompt, "options": ["no", "yes", "maybe"], "chosen": answer, "rejected": "other"}
    return row | ({} if probabilities is None else {"probabilities": probabilities}) | more


def dataset(tmp_path, rows, arrangement, **config):
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    made = DataConfig(train=path, format="gdpo", **config)
    return GroupDataset(made, "train", Encoder(TOKENIZER, made), arrangement=arrangement)


def texts(group):
    """{slot: text}; `parent|text` where a segment has one."""
    said = lambda s: "".join(TOKENIZER.convert_ids_to_tokens(s.tokens))  # noqa: E731
    return {s.slot: (said(group.segments[s.parent]) + "|" if s.parent >= 0 else "") + said(s) for s in group.segments}


def test_the_texts_stand_behind_every_belief(tmp_path):
    data = dataset(tmp_path, OPINIONS, Beliefs(every=True))
    assert data.slots == 3 + 3 * 2
    behind = {3 + 2 * i + k: f"{STATEMENTS[i]}|{text}</s>" for i in range(3) for k, text in enumerate(("good1", "bad0"))}
    assert texts(data[0]) == {**STATEMENTS, **behind}
    assert data[0].labels["chosen_belief"] == 1 and "belief_smoothing" not in data[0].labels


def test_a_prompt_with_fewer_beliefs_leaves_the_slots_of_the_others_free(tmp_path):
    two = opinion("p9", options=["no", "yes"], probabilities=[0.1, 0.9])
    data = dataset(tmp_path, [opinion("p0"), two], Beliefs("kto", every=True, ids=True, shortened=True))
    assert data.slots == data[1].slots == 3 * (1 + 3 + 2)
    found = texts(data[1])
    assert sorted(found) == [0, 1, 3, 4, 5, 6, 7, 8, 12, 13, 15, 16]
    assert [found[i] for i in (12, 13, 15, 16)] == ["0", "1", "0<no", "1<yes"]
    assert [found[i] for i in (5, 8)] == ["0<no>|good1</s>", "1<yes>|good1</s>"]  # of the other prompt


def test_ids_and_shortened_statements_are_beginnings_of_the_statements(tmp_path):
    data = dataset(tmp_path, OPINIONS, Beliefs(ids=True, shortened=True))
    found = texts(data[0])
    assert data.slots == 3 + 2 + 3 + 3
    assert [found[i] for i in range(5, 11)] == ["0", "1", "2", "0<no", "1<yes", "2<maybe"]
    assert texts(dataset(tmp_path, OPINIONS, Beliefs(shortened=True))[0])[7] == "2<maybe"


def test_parts_that_the_template_does_not_have_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"objective.calibrate: id needs data.belief_template to begin with \{id\}, got '<"):
        dataset(tmp_path, OPINIONS, Beliefs(ids=True), belief_template="<{belief}>{id}")
    with pytest.raises(UserError, match=r"objective.statement: authors .* nothing there: '\{id\} \{belief\}'"):
        dataset(tmp_path, OPINIONS, Beliefs(shortened=True), belief_template="{id} {belief}")
    many = [opinion(options=[f"o{i}" for i in range(11)], probabilities=None, accept_choice=None, reject_choice=None)]
    with pytest.raises(UserError, match="rows.jsonl:1: field 'options': by its tokens the id 10 begins with the id 1"):
        dataset(tmp_path, many, Beliefs(ids=True))[0]


class Joining:
    """A tokenizer's stand-in that joins a digit and what follows it."""

    def __init__(self, tokens):
        self._tokens = tokens

    def __getattr__(self, name):
        return getattr(self._tokens, name)

    def after(self, before, text, more):
        ids, merged = self._tokens.after(before, text, more)
        return ([*ids[:1], 999, *ids[2:]] if len(more) > 1 else [998]), merged


def test_an_id_that_the_tokenizer_joins_to_what_follows_is_said():
    encoder = Encoder(TOKENIZER, DataConfig())
    example = FORMATS["gdpo"].read(opinion())
    prompt = encoder.prompt(example)
    whole = encoder.belief(prompt, 1, "yes")
    assert encoder.belief_part(prompt, (1, "yes"), whole, "{id}").tolist() == whole[:1].tolist()
    encoder.tokens = Joining(encoder.tokens)
    with pytest.raises(RowError, match="the tokenizer joins '1' to what follows in '1<yes>'"):
        encoder.belief_part(prompt, (1, "yes"), whole, "{id}")


def test_rows_without_labels_serve_latent_beliefs_alone(tmp_path):
    rows = [unlabelled(), unlabelled("p1", probabilities=[0.1, 0.2, 0.7]), opinion("p2", 2, 0, probabilities=None)]
    data = dataset(tmp_path, rows, Beliefs(every=True, labelled=False), belief_prior=1.0)
    assert texts(data[0])[5] == "1<yes>|said</s>" and texts(data[0])[8] == "2<maybe>|other</s>"
    assert [int(data[i].labels["chosen_belief"]) for i in range(3)] == [-1, -1, 2]
    assert np.isnan(data[0].labels["target_probs"]).all()
    np.testing.assert_allclose(data[1].labels["target_probs"], [0.1, 0.2, 0.7], rtol=1e-6)
    np.testing.assert_allclose(data[2].labels["target_probs"], [0.25, 0.25, 0.5])
    with pytest.raises(UserError, match="rows.jsonl:1: fields 'accept_choice_id'.* missing.*objective.latent_beliefs: true"):
        dataset(tmp_path, rows, Beliefs())
    some = dataset(tmp_path, rows, Beliefs(), on_bad_row="skip")
    assert len(some) == 1 and [bad["where"][-1] for bad in some.bad_rows] == ["1", "2"]


def test_the_prior_weighs_by_how_many_rows_a_prompt_has(tmp_path):
    rows = [unlabelled("p0", f"a{i}") for i in range(4)] + [unlabelled("p1")]
    data = dataset(tmp_path, rows, Beliefs(every=True, labelled=False), belief_prior=0.5)
    found = [float(data[i].labels["belief_smoothing"]) for i in (0, 4)]
    np.testing.assert_allclose(found, [1.5 / 5.5, 1.5 / 2.5], rtol=1e-6)
    assert dataset(tmp_path, rows, Beliefs(every=True, labelled=False), belief_prior=0.0)[0].labels["belief_smoothing"] == 0


def test_latent_beliefs_say_that_they_do_not_learn_the_distributions_of_the_rows(tmp_path):
    rows, latent = [opinion("p0"), opinion("p1")], Beliefs(every=True, labelled=False)
    for options in ({"target": "given"}, {"target_shrink": "overall"}, {"target": "estimate", "target_shrink": "group"}):
        notes = [note for note in dataset(tmp_path, rows, latent, **options).notes if "objective.latent_beliefs: true" in note]
        keys = [f"data.{key}: {value}" for key, value in options.items()]
        assert [note.partition(" has no effect on what is trained")[0] for note in notes] == keys
    assert not any("no effect" in note for note in dataset(tmp_path, rows, latent, belief_prior=0.5).notes)


def test_rows_without_labels_are_pairs_of_texts_for_others(tmp_path):
    data = dataset(tmp_path, [unlabelled()], Group())
    assert texts(data[0]) == {0: "said</s>", 1: "other</s>"}
    assert texts(dataset(tmp_path, [unlabelled()], Sft())[0]) == {0: "said</s>"}


def test_half_a_label_is_malformed():
    row = unlabelled(accept_response="a", reject_response="b")
    assert FORMATS["gdpo"].read(row).responses == ("a", "b") and FORMATS["gdpo"].read(row).opinion.accepted is None
    with pytest.raises(RowError, match="'reject_choice_id'"):
        FORMATS["gdpo"].read({**row, "accept_choice_id": 1})
    with pytest.raises(RowError, match="'chosen'"):
        FORMATS["gdpo"].read({"prompt": "p", "options": ["a", "b"]})


def test_labels_have_the_shapes_that_are_said(tmp_path):
    for arrangement in (Beliefs(every=True, labelled=False, ids=True, shortened=True), Beliefs("kto", shortened=True)):
        data = dataset(tmp_path, OPINIONS, arrangement)
        shapes = arrangement.label_shapes(data.slots)
        for name, value in data[0].labels.items():
            assert (value.shape, value.dtype) == (shapes[name][0], np.dtype(shapes[name][1])), name
