"""The loop: metrics one step late but in order, checked before anything is made of them; what callbacks can do."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import align_jax
from align_jax.errors import UserError
from align_jax.training import loop
from align_jax.training.callbacks import Callback, Evaluate, Log, Save, SaveTimer, StopEarly, StopWhen
from align_jax.training.fit import fit
from align_jax.training.state import TrainState


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Batch:
    rows: np.ndarray
    value: np.ndarray


class Batches:
    """Endless batches with a position; `bad` are the numbers of batches that make the loss NaN."""

    def __init__(self, bad=(), start=0):
        self.bad, self.made = bad, start

    def __iter__(self):
        return self

    def __next__(self):
        self.made += 1
        value = np.float32(np.nan if self.made in self.bad else self.made)
        return Batch(np.asarray([[10 * self.made + 1, -1, 10 * self.made]]), value)

    def state(self):
        return {"made": self.made}


def fresh(step=0):
    return TrainState(jnp.int32(step), {"w": jnp.float32(step)}, {}, ())


@jax.jit
def step(state, batch):
    metrics = {"loss": batch.value * 2, "grad_norm": jnp.float32(1)}
    return TrainState(state.step + 1, {"w": state.trainable["w"] + 1}, {}, ()), metrics


class Told(Callback):
    """Writes down what happens."""

    def __init__(self, events):
        self.events = events

    def begin(self, loop):
        self.events.append(("begin", loop.step))

    def after_step(self, loop):
        self.events.append(("after", loop.step))

    def record(self, step, metrics):
        self.events.append(("record", step))

    def end(self, loop):
        self.events.append(("end", loop.step))


def numbers(history):
    """Without what the clock says."""
    return [{k: v for k, v in record.items() if not k.startswith(("time/", "memory/"))} for record in history]


def test_it_is_public():
    assert align_jax.fit is fit


def test_metrics_are_recorded_once_the_next_step_was_dispatched():
    events = []
    state, history = fit(fresh(), Batches(), step, steps=3, callbacks=[Told(events)])
    assert events == [("begin", 0), ("after", 1), ("record", 1), ("after", 2), ("record", 2), ("after", 3), ("record", 3),
                      ("end", 3)]  # fmt: skip
    assert int(state.step) == 3
    assert numbers(history) == [{"step": n, "loss": 2.0 * n, "grad_norm": 1.0} for n in (1, 2, 3)]
    assert all({"time/step_seconds", "time/data_fraction"} <= record.keys() for record in history)


def test_the_device_is_never_waited_for():
    """The host has dispatched step n + 1 before it reads a value of step n."""
    events = []

    class Lazy:
        def __init__(self, number):
            self.number = number

        def __array__(self, dtype=None, copy=None):
            events.append(("read", self.number))
            return np.float32(1)

        def __float__(self):
            return float(self.__array__())

    def lazy(state, batch):
        number = int(state.step) + 1
        events.append(("step", number))
        return TrainState(state.step + 1, state.trainable, {}, ()), {"loss": Lazy(number)}

    fit(fresh(), Batches(), lazy, steps=4)
    first_read = {number: events.index(("read", number)) for number in range(1, 5)}
    assert all(events.index(("step", number + 1)) < first_read[number] for number in range(1, 4))


@pytest.mark.parametrize("every", [None, 2])
def test_rows_that_cannot_be_read_lose_no_step(every):
    """The fourth batch is not there when the third is taken; a step that was saved is not saved again."""
    saved = []

    class Broken(Batches):
        def __next__(self):
            if self.state()["made"] == 3:
                raise UserError("rows.jsonl was changed while it was in use")
            return super().__next__()

    with pytest.raises(UserError, match="was changed"):
        fit(fresh(), Broken(), step, steps=9, callbacks=[Save(lambda n, *_: saved.append(n), every)])
    assert saved == [2]


def test_evaluations_and_checkpoints_are_of_checked_steps_and_logs_keep_their_order():
    events, logged = [], []
    callbacks = [
        Evaluate(lambda weights: events.append(("eval", float(weights["w"]))) or {"eval/w": float(weights["w"])}, 2),
        Save(lambda n, state, position, metrics: events.append(("save", n, int(state.step), position["made"], metrics)), 3),
        Told(events),
        Log(lambda n, metrics: logged.append({"step": n, **metrics})),
    ]
    _, history = fit(fresh(), Batches(), step, steps=5, callbacks=callbacks)
    assert history == logged
    one = {"grad_norm": 1.0}
    assert numbers(logged) == [
        {"step": 0, "eval/w": 0.0},
        {"step": 1, "loss": 2.0} | one,
        {"step": 2, "loss": 4.0, "eval/w": 2.0} | one,
        {"step": 3, "loss": 6.0} | one,
        {"step": 4, "loss": 8.0, "eval/w": 4.0} | one,
        {"step": 5, "loss": 10.0, "eval/w": 5.0} | one,
    ]
    saves = [event for event in events if event[0] == "save"]
    assert [event[1:4] for event in saves] == [(3, 3, 3), (5, 5, 5)]
    assert [event[4]["loss"] for event in saves] == [6.0, 10.0] and saves[1][4]["eval/w"] == 5.0
    for n, save in ((3, saves[0]), (5, saves[1])):  # logged before it is saved, saved before the next step
        assert events.index(("record", n)) < events.index(save)
        assert n == 5 or events.index(save) < events.index(("after", n + 1))
    assert events.index(("record", 1)) < events.index(("eval", 2.0))


@pytest.mark.parametrize("every", [None, 4])
def test_without_a_number_it_evaluates_and_saves_at_the_ends(every):
    saved = []
    callbacks = [Save(lambda n, *_: saved.append(n)), Evaluate(lambda weights: {"eval/w": 1.0}, every)]
    _, history = fit(fresh(), Batches(), step, steps=5, callbacks=callbacks)
    assert saved == [5]
    assert [record["step"] for record in history if "eval/w" in record] == ([0, 5] if every is None else [0, 4, 5])


def test_the_evaluation_before_the_first_step_can_be_left_out():
    evaluate = Evaluate(lambda weights: {"eval/w": 1.0}, 2, first=False)
    _, history = fit(fresh(), Batches(), step, steps=3, callbacks=[evaluate])
    assert [record["step"] for record in history if "eval/w" in record] == [2, 3]


def test_resumed_it_goes_on_with_the_next_step_and_measures_nothing_first():
    _, whole = fit(fresh(), Batches(), step, steps=5)
    evaluate = Evaluate(lambda weights: {"eval/w": float(weights["w"])}, 5)
    state, rest = fit(fresh(3), Batches(start=3), step, steps=5, callbacks=[evaluate])
    assert numbers(rest) == [*numbers(whole)[3:4], numbers(whole)[4] | {"eval/w": 5.0}]
    assert fit(state, Batches(), step, steps=5) == (state, [])


def test_a_stop_ends_it_after_the_step_with_a_checkpoint_and_no_evaluation():
    asked, saved = iter([False, False, True]), []
    callbacks = [
        Save(lambda n, state, position, metrics: saved.append((n, position, metrics["loss"]))),
        Evaluate(lambda weights: {"eval/w": 0.0}),
        StopWhen(lambda: next(asked)),  # after the others: what it decides, Save sees all the same
    ]
    state, history = fit(fresh(), Batches(), step, steps=100, callbacks=callbacks)
    assert int(state.step) == 3 and saved == [(3, {"made": 3}, 6.0)]
    assert [(record["step"], "eval/w" in record) for record in history] == [(0, True), (1, False), (2, False), (3, False)]


def test_by_the_clock_it_saves_when_the_minutes_have_passed_since_the_last_checkpoint():
    """A step takes 15 s, and its checkpoint 100 s; the first one is compiled for 1000 s, which do not count."""
    now, saved = [0.0], []

    def slow(state, batch):
        now[0] += 1000 if int(state.step) == 0 else 15
        return step(state, batch)

    def save(n, *_):
        now[0] += 100
        saved.append(n)

    fit(fresh(), Batches(), slow, steps=14, callbacks=[Save(save, 8, timer=SaveTimer(60, lambda: now[0]))])
    assert saved == [5, 8, 12, 14]  # of the clock, by steps, of the clock, the last


def test_several_processes_ask_the_first_ones_clock_at_the_same_few_steps(monkeypatch):
    """The clocks differ; steps take 1 s, and from the 100th on 2 s: it is asked again before it is time, and not much later."""
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    asked: dict[int, list] = {0: [], 1: []}
    answers: list[int] = []
    at = [0]
    due: dict[int, list] = {0: [], 1: []}
    for process, speed in ((0, 1.0), (1, 3.0)):  # the first one is asked before the other looks for its answers
        seconds, given = [0.0], iter(list(answers))
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)

        def largest(sizes, process=process, given=given):
            asked[process].append(at[0])
            if process == 0:
                answers.append(sizes[0])
                return sizes
            assert sizes == (0,)
            return (max(sizes[0], next(given)),)

        monkeypatch.setattr("align_jax.training.callbacks.largest_anywhere", largest)
        timer = SaveTimer(60, lambda seconds=seconds: seconds[0])
        for number in range(1, 200):
            at[0] = number
            seconds[0] += speed * (1 if number < 100 else 2)
            if timer.due(number):
                due[process].append(number)
                timer.restart(number)
    assert asked[0] == asked[1] and due[0] == due[1]
    assert due[0][0] == 61 and all(30 <= b - a <= 61 for a, b in zip(due[0], due[0][1:], strict=False))
    assert len(asked[0]) < 40


def test_patience_ends_it_after_evaluations_that_were_no_better():
    values = {0: 0.1, 2: 3.0, 4: 2.0, 6: 2.5, 8: float("nan"), 10: 2.0, 12: 0.0}
    saved = []

    def run(patience, state, history=()):
        early = StopEarly("eval/w", patience, history=history)
        evaluate = Evaluate(lambda weights: {"eval/w": values[int(weights["w"])]}, 2)
        callbacks = [evaluate, early, Save(lambda n, *_: saved.append(n))]
        state, history = fit(state, Batches(), step, steps=12, callbacks=callbacks)
        return int(state.step), early, history

    done, early, history = run(3, fresh())
    assert done == 10 and early.ended and early.best == (4, 2.0) and saved == [10]  # an equal value is no better
    for begun, patience, end in ((6, 3, 10), (10, 3, 10), (10, 4, 12)):  # resumed
        earlier = [record | ({"eval/w": None} if record["step"] == 8 else {}) for record in history if record["step"] <= begun]
        assert run(patience, fresh(begun), earlier)[0] == end
    assert run(2, fresh())[0] == 8  # NaN counts, as null in metrics.jsonl does


def test_what_is_not_finite_stops_it_before_it_is_saved_or_measured():
    saved = []
    callbacks = [
        Save(lambda n, *_: saved.append(n), 2, lambda: saved[-1] if saved else None),
        Evaluate(lambda weights: pytest.fail("measured") if weights["w"] == 4 else {}, 4),
    ]
    message = r"step 4: loss is nan and gradient norm 1.0. Rows of the batch: d:40, d:41. Last good checkpoint: step 2. Look"
    with pytest.raises(UserError, match=message):
        fit(fresh(), Batches(bad=[4]), step, steps=9, callbacks=callbacks, where=lambda row: f"d:{row}")
    assert saved == [2]


@pytest.mark.parametrize("steps", [3, 9])
def test_read_late_it_still_names_its_own_step_and_rows(steps):
    """The last step, which no other follows, and one that is found out when the next was dispatched."""
    recorded = []
    with pytest.raises(UserError, match="step 3: loss is nan.* Rows of the batch: 30, 31. No checkpoint was written yet."):
        fit(fresh(), Batches(bad=[3]), step, steps=steps, callbacks=[Log(lambda n, _: recorded.append(n))])
    assert recorded == [1, 2]


def test_a_callback_adds_with_and_without_waiting():
    class Adds(Callback):
        def after_step(self, loop):
            loop.add({"rate": 0.5})
            if loop.step == 2:
                loop.metrics()["twice"] = 2 * loop.metrics()["loss"]

    _, history = fit(fresh(), Batches(), step, steps=3, callbacks=[Adds()])
    assert [record.get("twice") for record in history] == [None, 8.0, None]
    assert all(record["rate"] == 0.5 for record in history)


def test_a_list_of_batches_is_enough_and_one_too_short_is_said():
    batches = [{"value": np.float32(n)} for n in range(3)]
    plain = jax.jit(lambda state, batch: (TrainState(state.step + 1, {}, {}, ()), {"loss": batch["value"]}))
    put = []
    _, history = fit(fresh(), batches, plain, steps=3, put=lambda batch: put.append(batch) or batch)
    assert [record["loss"] for record in history] == [0.0, 1.0, 2.0] and put == batches
    recorded = []
    with pytest.raises(UserError, match="the batches ended after step 3, before step 4"):
        fit(fresh(), batches, plain, steps=4, callbacks=[Log(lambda n, _: recorded.append(n))])
    assert recorded == [1, 2, 3]


def test_counts_become_the_rates_that_are_logged():
    def counted(state, batch):
        counts = {"computed": 200, "real": 150, "useful": 400, "truncated_prompts": 3}
        return TrainState(state.step + 1, {}, {}, ()), {f"tokens/{name}": jnp.int32(n) for name, n in counts.items()}

    _, (record,) = fit(fresh(), Batches(), counted, steps=1)
    assert record["tokens/padding"] == 0.25 and record["tokens/truncated_prompts"] == 3.0
    assert record["time/tokens_per_second"] == 400 / record["time/step_seconds"]
    assert not {"tokens/computed", "tokens/real", "tokens/useful"} & record.keys()


def test_a_steps_time_holds_the_wait_for_data_and_not_evaluations(monkeypatch):
    now = [0.0]

    def pass_by(seconds):
        now[0] += seconds
        return {}

    class Slow(Batches):
        def __next__(self):
            pass_by(3.0)
            return super().__next__()

    def timed(state, batch):
        pass_by(1.0)
        return step(state, batch)

    monkeypatch.setattr(loop, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    evaluate = Evaluate(lambda weights: pass_by(500.0) | {"eval/w": 0.0}, 1)
    _, history = fit(fresh(), Slow(), timed, steps=4, callbacks=[evaluate])
    took = [(record["time/step_seconds"], record["time/data_fraction"]) for record in history[1:]]
    assert took == [(7.0, 6 / 7), (4.0, 0.75), (4.0, 0.75), (1.0, 0.0)]  # a batch is waited for in the step before
