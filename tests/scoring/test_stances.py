"""A model's posterior of the belief behind an answer, against scoring each belief with its text as one response."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
from scipy.special import softmax

from align_jax.data import DataConfig, Encoder, make_groups
from align_jax.data.formats.example import Example
from align_jax.data.sources import RowError
from align_jax.models import Decoder
from align_jax.parallel.mesh import make_mesh
from align_jax.scoring.logps import response_logps
from align_jax.scoring.scorer import FixedScorer, Scorer
from align_jax.scoring.stances import score_stances, stance_groups
from tests.data.toys import char_tokenizer
from tests.models.test_decoder import big_weights
from tests.scoring.test_logps import BASE

CONFIG = dataclasses.replace(BASE, vocab_size=len(char_tokenizer()))
EXAMPLES = [
    Example("why?", ("so it is", "no")),
    Example("why?", ("well", "it rains", "who knows")),  # five answers to one prompt: more than one group
    Example("how?", ("like this",)),
]
OPTIONS = [("no", "yes", "maybe")] * 2 + [("bad", "good")]


@pytest.mark.slow
def test_equals_each_belief_and_text_as_one_response():
    weights, encoder = big_weights(CONFIG), Encoder(char_tokenizer(), DataConfig())
    groups = list(stance_groups(EXAMPLES, OPTIONS, encoder))
    places = sorted(place for group in groups for place in group.places)
    assert places == [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2), (2, 0)]
    assert [len(group.places) for group in groups] == [4, 1, 1]
    mesh = make_mesh(devices=jax.devices()[:1])
    scorer = FixedScorer(Scorer(CONFIG, dtype="float32", attention="xla"), weights, mesh)
    found = dict(score_stances(groups, lambda now: scorer.groups(now, 64)))
    uniform = dict(score_stances(groups, lambda now: scorer.groups(now, 64), uniform=True))
    prompts, responses = [], []
    for row, k in places:
        prompt = encoder.prompt(EXAMPLES[row])
        statements = encoder.beliefs(prompt, OPTIONS[row])
        texts = [
            encoder.after_belief(prompt, (b, OPTIONS[row][b]), ids, EXAMPLES[row].responses[k]).tokens
            for b, ids in enumerate(statements)
        ]
        prompts.append(prompt.ids)
        responses.append([*statements, *([*ids, *text] for ids, text in zip(statements, texts, strict=True))])
    score = jax.jit(lambda params, batch: response_logps(Decoder(CONFIG, params, dtype="float32"), batch))
    logps = score(weights, make_groups(prompts, responses))
    for (row, k), values in zip(places, np.asarray(logps, np.float64), strict=True):
        count = len(OPTIONS[row])
        statements, joint = values[:count], values[count : 2 * count]
        np.testing.assert_allclose(found[row, k], softmax(joint), rtol=2e-3, atol=1e-5)
        np.testing.assert_allclose(uniform[row, k], softmax(joint - statements), rtol=2e-3, atol=1e-5)
    assert len(found) == 6 and np.ptp(found[0, 0]) > 0.01


def test_beliefs_of_which_one_begins_with_another_are_refused():
    encoder = Encoder(char_tokenizer(), DataConfig(belief_template="{belief}"))
    with pytest.raises(RowError, match="begins with that of"):
        list(stance_groups(EXAMPLES[:1], [("no", "not at all")], encoder))


def test_a_fixed_scorer_is_compiled_as_the_training_step_is(monkeypatch):
    from align_jax.scoring import scorer as module

    given, mesh = {}, make_mesh(1, 8, 1)
    monkeypatch.setattr(module, "compiler_options", lambda mesh: {"of": mesh})
    monkeypatch.setattr(module.jax, "jit", lambda function, **options: given.update(options))
    module._compiled.__wrapped__(Scorer(CONFIG), module.batch_sharding(mesh))
    assert given["compiler_options"] == {"of": mesh}
