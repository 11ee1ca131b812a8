"""The reward model of texts: transformers' own scores, in any order and number, and what it refuses."""

import numpy as np
import pytest
import torch

from align_jax.data import length_batches
from align_jax.errors import UserError
from align_jax.parallel.mesh import make_mesh
from align_jax.scoring.reward_model import RewardModel
from tests.data.toys import CHAT, char_tokenizer
from tests.hf import models

PROMPTS = ["Say a number.", [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes?"},
                             {"role": "user", "content": "bye"}], "x", "Say a longer sentence, please."]  # fmt: skip
RESPONSES = [["seven", "it is the number seven", "7"], ["bye"], [], ["", "I will not say it, whoever asks me to."]]


@pytest.fixture(scope="module")
def reward(tmp_path_factory):
    """A classifier of transformers, its tokenizer with a chat template, and the folder."""
    folder = tmp_path_factory.mktemp("reward")
    tokenizer = char_tokenizer(pad="<pad>", chat=CHAT)
    model = models.torch_classifier("mistral_window", vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id)
    tokenizer.save_pretrained(models.save(model, folder))
    return model, tokenizer, folder


def theirs(model, tokenizer, prompt, response):
    """transformers on the rendered conversation, one at a time; the template's newline after EOS is never generated."""
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    text = tokenizer.apply_chat_template([*messages, {"role": "assistant", "content": response}], tokenize=False)
    ids = tokenizer(text.rstrip("\n"), add_special_tokens=False, return_tensors="pt")["input_ids"]
    assert ids[0, 0] == tokenizer.bos_token_id and ids[0, -1] == tokenizer.eos_token_id
    with torch.no_grad():
        return model(ids).logits.item()


@pytest.mark.parametrize("shape, rows", [((1, 1, 1), 64), ((2, 2, 2), 1)], ids=["one device", "mesh, a group a shard"])
def test_scores_conversations_as_transformers_does(reward, shape, rows):
    model, tokenizer, folder = reward
    ours = RewardModel.load(folder, mesh=make_mesh(*shape), batch_rows=rows).score(PROMPTS, RESPONSES)
    assert [len(scores) for scores in ours] == [3, 1, 0, 2]
    expected = [theirs(model, tokenizer, p, r) for p, rs in zip(PROMPTS, RESPONSES, strict=True) for r in rs]
    assert np.ptp(expected) > 0.1
    np.testing.assert_allclose([s for scores in ours for s in scores], expected, atol=1e-4)


def test_what_is_refused(reward, tmp_path):
    _, _, folder = reward
    load = lambda path, **more: RewardModel.load(path, mesh=make_mesh(), **more)  # noqa: E731
    short = load(folder, max_tokens=30)
    with pytest.raises(UserError, match="prompt 1: the prompt with its longest response has 63 tokens, more than the 30"):
        short.score(["a", "b" * 30], [["a"], ["c", "d" * 10]])
    assert load(folder).max_tokens == 256  # the model's context
    with pytest.raises(UserError, match="prompt 1: field 'prompt' is empty"):
        short.score(["a", " "], [["b"], ["c"]])
    with pytest.raises(UserError, match=r"prompt 0: field 'responses\[0\]': expected text or a list of messages, got None"):
        short.score(["a"], [[None]])
    with pytest.raises(ValueError, match="1 prompts, but 2 lists"):
        short.score(["a"], [["b"], ["c"]])
    with pytest.raises(UserError, match="batch_rows must be at least 1"):
        load(folder, batch_rows=0)
    bare = models.save(models.torch_classifier("llama2"), tmp_path / "bare")
    with pytest.raises(UserError, match="bare: no tokenizer can be loaded"):
        load(bare)
    causal = models.save(models.torch_model("llama2"), tmp_path / "causal")
    with pytest.raises(UserError, match="it is a language model; supported: LlamaForSequenceClassification"):
        load(causal)


def test_similar_lengths_share_few_shapes():
    from align_jax.data import Segment, TokenGroup

    rng = np.random.default_rng(0)
    groups = []
    for i in range(160):
        segments = tuple(Segment(np.ones(rng.integers(1, 60), np.int32), k) for k in range(rng.integers(1, 5)))
        groups.append(TokenGroup(7 * i, np.ones(rng.integers(1, 90), np.int32), segments, len(segments), ends=True))
    batches = list(length_batches(groups, shards=2, rows=16))
    rows = np.concatenate([b.rows for b in batches])
    assert sorted(rows[rows >= 0]) == list(range(160)) and all(b.ends and b.mask.shape == (4, 4) for b in batches)
    for batch in batches:
        for place, mask, lengths in zip(batch.rows, batch.mask, batch.lengths, strict=True):
            own = [len(s.tokens) for s in groups[place].segments] if place >= 0 else []
            assert mask.sum() == len(own) and lengths[mask].tolist() == own
    assert len(batches) == 40 and len({(b.prompt_tokens.shape, b.tokens.shape) for b in batches}) <= 16
