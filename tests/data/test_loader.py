"""Batches: every group once an epoch, in an order of the seed, exactly resumed, shared by processes."""

from __future__ import annotations

import gc
import itertools
import json
import threading

import jax
import numpy as np
import pytest

from align_jax.batch import sizes
from align_jax.data import BatchLoader, DataConfig, Encoder, GroupDataset, RowLayout, ahead
from align_jax.data.arrange import Beliefs, Group
from tests.data.reference import expected, unpack
from tests.data.toys import char_tokenizer, opinion, write_jsonl

TOKENIZER = char_tokenizer()
COUNT = 22


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    rng = np.random.default_rng(0)
    rows = []
    for i in range(COUNT):
        responses = ["x" * int(rng.integers(1, 20)) for _ in range(int(rng.integers(1, 6)))]
        scores = [float(k) for k in range(len(responses))]
        rows.append({"prompt": f"{i} " * int(rng.integers(1, 5)), "responses": responses, "scores": scores})
    config = DataConfig(train=write_jsonl(tmp_path_factory.mktemp("data") / "rows.jsonl", rows), format="groups")
    return GroupDataset(config, "train", Encoder(TOKENIZER, config), arrangement=Group())


def loader(dataset, groups_per_step=4, shards=1, **more):
    return BatchLoader(dataset, shards=shards, groups_per_step=groups_per_step, **more)


def take(batches, count):
    return list(itertools.islice(batches, count))


def rows(batches):
    return np.concatenate([np.asarray(b.rows).reshape(-1) for b in batches])


def same(a, b):
    return jax.tree.structure(a) == jax.tree.structure(b) and jax.tree.all(jax.tree.map(np.array_equal, a, b))


@pytest.mark.parametrize("groups_per_step", [4, 22, 32])
def test_every_group_once_an_epoch_over_epoch_boundaries(dataset, groups_per_step):
    steps = 3 * COUNT // groups_per_step + 1
    seen = rows(take(loader(dataset, groups_per_step), steps))
    epochs = [seen[i * COUNT : (i + 1) * COUNT].tolist() for i in range(3)]
    assert all(sorted(epoch) == list(range(COUNT)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_the_order_is_of_the_seed(dataset):
    orders = [rows(take(loader(dataset, seed=seed), 11)).tolist() for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    assert orders[0][COUNT:] != orders[2][:COUNT]  # the next epoch of a seed is not the first of the next
    assert rows(take(loader(dataset, 2, shuffle=False), 11)).tolist() == list(range(COUNT))


@pytest.mark.parametrize(("shards", "accumulation"), [(1, 1), (2, 1), (1, 2), (2, 2)])
def test_batches_hold_their_groups(dataset, shards, accumulation):
    per = 4 // (shards * accumulation)
    for batch in take(loader(dataset, 4, shards, accumulation_steps=accumulation), 8):
        assert batch.tokens.shape[:2] == (accumulation, shards) and batch.rows.shape == (accumulation, shards * per)
        assert batch.mask.shape == (accumulation, shards * per, dataset.slots)
        for a in range(accumulation):
            micro = jax.tree.map(lambda x, a=a: x[a], batch)
            assert unpack(micro) == expected([dataset[int(i)] for i in micro.rows])


@pytest.mark.parametrize(("workers", "prefetch"), [(1, 1), (2, 4), (3, 2)])
def test_stopped_and_restored_at_every_step_is_the_same_as_uninterrupted(dataset, workers, prefetch):
    how = {"workers": workers, "prefetch": prefetch, "accumulation_steps": 2}
    whole = take(loader(dataset, **how), 2 * COUNT // 4 + 2)
    for stop in range(len(whole)):
        first = loader(dataset, **how)
        assert all(map(same, take(first, stop), whole[:stop]))
        state = json.loads(json.dumps(first.state()))
        second = loader(dataset, **how)
        second.restore(state)
        assert same(next(second), whole[stop])
    second.restore(json.loads(json.dumps({**state})))
    assert same(next(second), whole[-1])


def test_the_state_is_of_the_batch_handed_out_not_of_those_made_ahead(dataset):
    made = loader(dataset, 2, workers=2, prefetch=8)
    reference = take(loader(dataset, 2), 6)
    for i in range(5):
        assert same(next(made), reference[i])
        other = loader(dataset, 2)
        other.restore(made.state())
        assert same(next(other), reference[i + 1])


def test_restored_shapes_are_kept_where_groups_are_split_alike(dataset):
    layout = RowLayout(price=RowLayout().dense * 1000)
    short, long = (loader(dataset, layout=layout, batches=batches) for batches in (1, 1e9))
    assert len(short.shapes["shapes"]) == 1 < len(long.shapes["shapes"])
    state = json.loads(json.dumps(short.state())), json.loads(json.dumps(short.shapes))
    long.restore(*state)
    assert long.shapes == short.shapes and same(next(long), next(short))
    other = loader(dataset, shards=2, layout=layout, batches=1e9)
    other.restore(*state)
    assert other.shapes["shapes"] != short.shapes["shapes"]


def test_labels_are_joined_by_row(dataset):
    table = np.arange(COUNT * dataset.slots, dtype=np.float32).reshape(COUNT, dataset.slots)
    for i in range(COUNT):
        table[i, dataset[i].slots :] = np.nan
    made = loader(dataset, 8, 2, labels={"ref_logps": table})
    for batch in [jax.tree.map(lambda x: x[0], b) for b in take(made, 5)] + list(made.eval_batches()):
        there = batch.mask
        np.testing.assert_array_equal(batch.labels["ref_logps"][there], table[batch.rows][there])
        assert np.isfinite(batch.labels["ref_logps"][batch.rows >= 0]).all()


def test_a_preview_moves_nothing_and_labels_joined_after_it_are_in_every_batch(dataset):
    table = np.full((COUNT, dataset.slots), 7, np.float32)
    plain = take(loader(dataset), 5)
    made = loader(dataset)
    for seen, wanted in zip(made.preview(3), plain, strict=False):
        assert same(seen, wanted)
        assert "ref_logps" not in seen.labels
    made.join({"ref_logps": table})
    for batch, wanted in zip(take(made, 5), plain, strict=True):
        np.testing.assert_array_equal(batch.rows, wanted.rows)
        assert (batch.labels["ref_logps"][batch.mask] == 7).all()
    with pytest.raises(ValueError, match="before the first batch"):
        made.join({"other": table})


def test_labels_of_a_width_that_is_by_chance_k_keep_it(tmp_path):
    """Two responses in all groups of a batch, three elsewhere: `truncated` `[2]` is not one a response."""
    data = [{"prompt": "p", "responses": ["a", "b"], "scores": [1, 0]}] * 3 + [
        {"prompt": "p", "responses": ["a", "b", "c"], "scores": [1, 0, 2]}
    ]
    config = DataConfig(train=write_jsonl(tmp_path / "d.jsonl", data), format="groups")
    made = loader(GroupDataset(config, "train", Encoder(TOKENIZER, config), arrangement=Group()), 1)
    for batch in take(made, 4):
        assert batch.labels["truncated"].shape == (1, 1, 2) and batch.scores.shape == (1, 1, 3)


@pytest.mark.parametrize(("shards", "accumulation"), [(1, 1), (2, 2)])
def test_evaluation_is_one_pass_with_padding_groups(dataset, shards, accumulation):
    batches = list(loader(dataset, 12, shards, accumulation_steps=accumulation).eval_batches())
    size = 12 // accumulation
    assert {b.rows.shape for b in batches} == {(size,)} and len(batches) == -(-COUNT // size)
    seen = rows(batches)
    assert sorted(seen[seen >= 0].tolist()) == list(range(COUNT)) and (seen == -1).sum() == len(batches) * size - COUNT
    if shards == 1:
        assert seen[:COUNT].tolist() == list(range(COUNT))
    for batch in batches:
        assert unpack(batch) == expected([dataset[int(i)] for i in batch.rows if i >= 0])
        assert not batch.mask[batch.rows == -1].any() and (batch.labels["scores"][batch.rows == -1] == 0).all()


class Largest:
    """`agree` of one of several processes, here threads that wait for one another."""

    def __init__(self, count, rounds, changed, index):
        self.count, self.rounds, self.changed, self.index, self.calls, self.closed = count, rounds, changed, index, 0, False

    def __call__(self, shape):
        with self.changed:
            told = self.rounds.setdefault(self.calls, {})
            told[self.index], self.calls = shape, self.calls + 1
            self.changed.notify_all()
            assert self.changed.wait_for(lambda: self.closed or len(told) == self.count, timeout=300)
        return None if self.closed else tuple(max(column) for column in zip(*told.values(), strict=True))

    def close(self):
        with self.changed:
            self.closed = True
            self.changed.notify_all()


class Processes:
    def __init__(self, count):
        self.count, self.kinds, self.changed = count, {}, threading.Condition()

    def agree(self, index, kind="now"):
        return Largest(self.count, self.kinds.setdefault(kind, {}), self.changed, index)

    def run(self, function):
        results = [None] * self.count

        def call(i):
            results[i] = function(i)

        threads = [threading.Thread(target=call, args=(i,)) for i in range(len(results))]
        [t.start() for t in threads]
        [t.join(300) for t in threads]
        return results


@pytest.mark.parametrize("ahead_of_time", [False, True])
@pytest.mark.parametrize("pack", [True, False])
def test_processes_share_a_step_and_agree_on_its_shape(dataset, pack, ahead_of_time):
    alone = take(loader(dataset, 4), 8)
    processes = Processes(2)

    def read(i):
        how = {"agree_ahead": lambda: processes.agree(i, "ahead")} if ahead_of_time else {}
        how |= {"layout": RowLayout(pack=pack), "process_index": i, "process_count": 2, "agree": processes.agree(i)}
        made = loader(dataset, 4, **how)
        return take(made, 8), list(made.eval_batches())

    (first, eval_first), (second, eval_second) = processes.run(read)
    for one, a, b in zip(alone, first, second, strict=True):
        assert sizes(a) == sizes(b) and a.uniform == b.uniform
        assert sorted([*a.rows.reshape(-1), *b.rows.reshape(-1)]) == sorted(one.rows.reshape(-1))
        for batch in (a, b):
            micro = jax.tree.map(lambda x: x[0], batch)
            assert unpack(micro) == expected([dataset[int(i)] for i in micro.rows])
    assert [sizes(b) for b in eval_first] == [sizes(b) for b in eval_second]
    seen = np.concatenate([rows(eval_first), rows(eval_second)])
    assert sorted(seen[seen >= 0].tolist()) == list(range(COUNT))
    last = eval_second[-1]  # 22 groups in steps of 4: nothing is left for the second process
    assert (last.rows == -1).all() and not last.mask.any() and (last.slots == -1).all() and not last.segments.any()


@pytest.mark.parametrize("ahead_of_time", [False, True])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_processes_plan_one_step_and_hold_their_parts_of_it(dataset, accumulation, ahead_of_time):
    """Two processes of two shards make, side by side, what one of four makes."""
    how = {"groups_per_step": 8, "accumulation_steps": accumulation, "layout": RowLayout(spread=4)}
    alone = loader(dataset, shards=4, **how)
    table = np.arange(COUNT * dataset.slots, dtype=np.float32).reshape(COUNT, dataset.slots)
    alone.join({"ref_logps": table})
    processes = Processes(2)

    def read(i):
        more = {"agree_ahead": lambda: processes.agree(i, "ahead")} if ahead_of_time else {}
        more |= {"process_index": i, "process_count": 2, "agree": processes.agree(i)}
        made = loader(dataset, shards=2, **how, **more)
        preview = next(iter(made.preview(1)))
        made.join({"ref_logps": table})
        batches = []
        for _ in range(6):
            batches.append((next(made), json.loads(json.dumps(made.state()))))
        return preview, batches, list(made.eval_batches())

    (preview, first, eval_first), (_, second, eval_second) = processes.run(read)
    wanted = []
    for (a, state), (b, other), axis in zip(first, second, [1] * 6, strict=True):
        wanted.append(next(alone))
        assert same(jax.tree.map(lambda x, y, n=axis: np.concatenate([x, y], n), a, b), wanted[-1])
        assert state == other == alone.state() and a.spread == 4
    assert "ref_logps" not in preview.labels and np.array_equal(preview.tokens, first[0][0].tokens)
    for a, b, one in zip(eval_first, eval_second, alone.eval_batches(), strict=True):
        assert same(jax.tree.map(lambda x, y: np.concatenate([x, y]), a, b), one)
    assert sorted(r for b in (*eval_first, *eval_second) for r in b.rows.tolist() if r >= 0) == list(range(COUNT))


def two(dataset, processes, i, kind="ahead"):
    """A process's loader of two, which agrees ahead of time."""
    agree = lambda: processes.agree(i, kind)  # noqa: E731
    return loader(dataset, 4, process_index=i, process_count=2, agree=processes.agree(i), agree_ahead=agree)


def test_agreed_ahead_the_state_is_of_the_batch_handed_out(dataset):
    processes = Processes(2)

    def read(i):
        made, batches = two(dataset, processes, i, "first"), []
        start = made.state()
        for _ in range(6):
            batches.append((next(made), json.loads(json.dumps(made.state()))))
        made._agree_ahead = lambda: processes.agree(i, "second")
        made.restore(batches[2][1])
        again = take(made, 3)
        other = two(dataset, processes, i, "third")
        other.restore(start)
        return batches, again, take(other, 2)

    for batches, again, beginning in processes.run(read):
        assert all(same(a, b) for a, (b, _) in zip(again, batches[3:], strict=True))
        assert all(same(a, b) for a, (b, _) in zip(beginning, batches, strict=False))


def test_a_loader_that_nobody_holds_ends_its_thread(dataset):
    processes = Processes(2)
    threads = processes.run(lambda i: (made := two(dataset, processes, i), next(made), made._agreed._thread)[-1])
    for thread in threads:
        for _ in range(100):  # until the workers have let go of it too
            gc.collect()
            thread.join(0.1)
            if not thread.is_alive():
                break
        assert not thread.is_alive()


def test_what_fails_ahead_of_time_is_raised_to_who_asks(dataset):
    processes = Processes(1)
    made = loader(dataset, 4, process_count=1, agree=processes.agree(0), agree_ahead=lambda: processes.agree(0, "ahead"))
    next(made)
    made.restore(made.state())

    def fails(shape):
        raise OSError("no network")

    fails.close = lambda: None
    made._agree_ahead = lambda: fails
    for _ in range(2):
        with pytest.raises(OSError, match="no network"):
            next(made)


@pytest.mark.parametrize("count", [None, 3, 9])
def test_ahead_hands_out_what_was_asked_for_and_fetches_no_more(count):
    fetched = []
    source = (fetched.append(i) or i for i in range(5))
    handed = list(ahead(source, lambda i: i * 10, count))
    assert handed == [(i * 10, i, None) for i in range(min(5, count or 5))] and len(fetched) == len(handed)


def test_ahead_keeps_the_state_of_each_batch(dataset):
    made, plain = loader(dataset), loader(dataset)
    for device, host, state in ahead(made, lambda batch: batch.rows, 4):
        assert same(host, next(plain)) and state == plain.state() and device is host.rows


def test_errors(dataset):
    with pytest.raises(ValueError, match="6 groups per step cannot be split over 4"):
        loader(dataset, 6, 2, accumulation_steps=2)
    with pytest.raises(ValueError, match="2 processes need `agree`"):
        loader(dataset, 4, process_count=2)
    with pytest.raises(ValueError, match="over all 2 shards or none, not 4"):
        loader(dataset, 4, 2, layout=RowLayout(spread=4))


def test_gdpo_batches_have_constant_slots(tmp_path):
    data = [opinion(f"p{i % 3}", i % 3, (i + 1) % 3) for i in range(12)]
    data[4] |= {"options": ["no", "yes"], "probabilities": [0.4, 0.6], "prompt": "other"}
    data[4] |= {"reject_choice_id": 0, "reject_choice": "no"}
    config = DataConfig(train=write_jsonl(tmp_path / "d.jsonl", data), format="gdpo")
    for preference, texts in (("dpo", 2), ("kto", 3), ("mpo", 8)):
        made = GroupDataset(config, "train", Encoder(TOKENIZER, config), arrangement=Beliefs(preference))
        assert made.slots == 3 + texts
        for batch in take(loader(made, 4), 6):
            assert batch.mask.shape[-1] == made.slots and batch.labels["target_probs"].shape[-1] == 3
            micro = jax.tree.map(lambda x: x[0], batch)
            assert unpack(micro) == expected([made[int(i)] for i in micro.rows])
