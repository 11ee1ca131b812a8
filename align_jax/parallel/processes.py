"""Several processes as one: what the first one's disk holds, and what it decides, is so for all."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from align_jax.errors import UserError
from align_jax.parallel.facts import differences, named
from align_jax.parallel.roll_call import WAIT_SECONDS, Announcements, MissingProcess, told_apart
from align_jax.private import changed, private


def on_first(work: Callable[[], object], what: str) -> None:
    """Does `work` on the first process, and lets the others go on when it is done; all must call.

    Args:
      work: such as writing a file. what: its name in the error of the other processes.

    Raises:
      UserError: on the other processes, where the work failed; the first one raises what `work` raised.
    """
    failure = None
    if jax.process_index() == 0:
        try:
            work()
        except Exception as caught:
            failure = caught
    failed = of_first(failure is not None)
    if failure is not None:
        raise failure
    if failed:
        raise UserError(f"{what}: the first process failed; its own message says why")


def of_first(value: int) -> int:
    """The first process's value (a bool, or a number below 2^31), on every process; all must call."""
    if jax.process_count() == 1:
        return value
    return type(value)(multihost_utils.broadcast_one_to_all(np.asarray(value)))


def largest_anywhere(sizes: tuple[int, ...]) -> tuple[int, ...]:
    """The largest of each size over all processes, asked for on the devices: they wait; all must call."""
    return tuple(int(n) for n in multihost_utils.process_allgather(np.asarray(sizes)).max(axis=0))


def decided(what: str, value: Any, rule: Callable[[list[Any]], Any]) -> Any:
    """What follows from all processes' values, the same on each; no device takes part, and all must call, in the main thread.

    Whoever is waited for is said after seconds; after `run.wait_s` it ends.

    Args:
      what: is decided, for the user. value: this process's, JSON. rule: values in the order of the processes -> JSON; the first
        process applies it.

    Raises:
      MissingProcess: others did not say theirs in time.
    """
    if jax.process_count() == 1:
        return rule([value])
    store, folder, number = _key_value_store(), "align_jax/decided", next(_DECISIONS)
    own, at, waiting = jax.process_index(), f"{folder}/{number}", Announcements(_limit[0])
    if own > 0:
        store.key_value_set(key=f"{at}/{own}", value=json.dumps(value, default=str))
        return json.loads(_wait_for(store, at, "answer", what, waiting))
    others = [json.loads(_wait_for(store, at, str(i), what, waiting)) for i in range(1, jax.process_count())]
    found = rule([json.loads(json.dumps(value, default=str)), *others])
    store.key_value_set(key=f"{at}/answer", value=json.dumps(found, default=str))
    store.key_value_delete(key=f"{folder}/{number - 1}/")  # all have asked again, so all have read what was answered before
    return found


def from_first(what: str, make: Callable[[], Any]) -> Any:
    """What the first process makes of its disk, JSON, on all of them; all must call, in the main thread."""
    if jax.process_count() == 1:
        return make()
    return decided(what, make() if jax.process_index() == 0 else None, lambda values: values[0])


def tried(what: str, part: Callable[[], Any], spell: Callable[[Exception], str]) -> tuple[Any, str]:
    """Does a part of the work on every process, in which none waits for another; what one finds wrong holds for all.

    Args:
      what: is done, for the user. part: raises where it fails. spell: an error in a few words.

    Returns:
      What `part` returned, and an empty text; or None and the first error of any process, in words.

    Raises:
      UserError: some process raised one; all do.
    """
    found, wrong = None, None
    try:
        found = part()
    except Exception as error:
        if jax.process_count() == 1 and isinstance(error, UserError):
            raise
        wrong = [str(error) if isinstance(error, UserError) else spell(error), isinstance(error, UserError)]
    errors = decided(what, wrong, list)
    first = next((i for i, error in enumerate(errors) if error), None)
    if first is None:
        return found, ""
    text, mendable = errors[first]
    text = text if len(errors) == 1 else f"{text} (on process {first} of {len(errors)})"
    if mendable:
        raise UserError(text)
    return None, text


def agree(what: str, facts: dict[str, Any]) -> None:
    """Compares what must be the same on all processes, before one waits for another that does something else.

    Args:
      what: they are facts of. facts: name -> JSON.

    Raises:
      UserError: they differ, on all processes, with each one's value.
    """
    if jax.process_count() == 1:
        return
    lines = decided(what, facts, lambda values: differences(dict(enumerate(values))))
    if lines:
        raise UserError(told_apart(lines))


def wait_at_most(seconds: float) -> None:
    """`run.wait_s`, from here on."""
    _limit[0] = seconds


_limit = [WAIT_SECONDS]
_DECISIONS = itertools.count(1)  # the same in every process
_LOOK_MS = 500  # between two looks at the clock


def _wait_for(store: Any, at: str, key: str, what: str, waiting: Announcements) -> str:
    while True:
        try:
            return store.blocking_key_value_get(key=f"{at}/{key}", timeout_in_ms=_LOOK_MS)
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise
        if waiting.over or waiting.due:
            there = {name.rpartition("/")[2] for name, _ in store.key_value_dir_get(f"{at}/")}
            late = [i for i in range(jax.process_count()) if str(i) not in there and i != jax.process_index()]
            late = [i for i in late if i > 0 or len(late) == 1] or late
            text = f"{named(late)} of {jax.process_count()}: {what}"
            if waiting.over:
                raise MissingProcess(f"nothing came in time (run.wait_s) from {text}; see what it says, and start all again")
            waiting.say(f"waiting for {text}")


class LargestAhead:
    """`largest_anywhere` for a thread of its own: the processes ask one another over the network, no device takes part.

    All processes make these objects, and call each of them, equally often and in the same order. The first process reads what
    all others wrote, and writes what is largest.
    """

    def __init__(self):
        self._store, self._name, self._round = _key_value_store(), f"align_jax/largest/{next(_NUMBERS)}", 0
        self._closed = threading.Event()

    def __call__(self, sizes: tuple[int, ...]) -> tuple[int, ...] | None:
        """The largest of each size, when all processes have asked; None when it was closed meanwhile."""
        folder, self._round = f"{self._name}/{self._round}", self._round + 1
        if jax.process_index() > 0:
            self._store.key_value_set(key=f"{folder}/{jax.process_index()}", value=json.dumps(sizes))
            return self._read(f"{folder}/largest")
        for other in range(1, jax.process_count()):
            theirs = self._read(f"{folder}/{other}")
            if theirs is None:
                return None
            sizes = tuple(map(max, sizes, theirs))
        self._store.key_value_set(key=f"{folder}/largest", value=json.dumps(sizes))
        if self._round > 1:  # all have asked again, so all have read what was answered before
            self._store.key_value_delete(key=f"{self._name}/{self._round - 2}/")
        return sizes

    def close(self) -> None:
        """Ends a call that waits, and all later ones."""
        self._closed.set()

    def _read(self, key: str) -> tuple[int, ...] | None:
        while not self._closed.is_set():
            try:
                return tuple(json.loads(self._store.blocking_key_value_get(key=key, timeout_in_ms=_PATIENCE_MS)))
            except jax.errors.JaxRuntimeError as error:
                if "DEADLINE_EXCEEDED" not in str(error):
                    raise
        return None


_NUMBERS = itertools.count()  # of the `LargestAhead` of this process, the same in every process
_PATIENCE_MS = 200  # how long a closed one may still wait


def _key_value_store() -> Any:
    """The strings that all processes of `jax.distributed` share, which JAX has no public name for."""
    client = private("processes").client
    methods = ("key_value_set", "blocking_key_value_get", "key_value_delete")
    if missing := [name for name in methods if not hasattr(client, name)]:
        raise changed("processes", f"its client has no {', '.join(missing)}")
    return client
