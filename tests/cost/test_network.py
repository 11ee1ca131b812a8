"""Seconds of collectives, against what the rings and lines of a torus can carry."""

import dataclasses

import numpy as np
import pytest

from align_jax.cost.chips import CHIPS
from align_jax.cost.network import Moved, Places, spent

V5P, V5E = CHIPS["TPU v5"], CHIPS["TPU v5 lite"]
LINK = V5P.link_rate


def torus(*sizes, slices=1):
    coords = np.array([at for _ in range(slices) for at in np.ndindex(*sizes)])
    return Places(coords, np.repeat(np.arange(slices), len(coords) // slices))


def seconds(kind, groups, places, chip=V5P, size=10**9):
    return spent(Moved(kind, 2, size, None if groups is None else np.array(groups)), chip, places)


def test_a_ring_sends_both_ways_and_axes_add_up():
    one = seconds("all-gather", [[0, 1, 2, 3]], torus(4)).inside
    assert one == pytest.approx(2 * 1e9 * 3 / 4 / (2 * LINK))
    assert seconds("all-gather", None, torus(4, 4)).inside == pytest.approx(2 * 1e9 * 15 / 16 / (4 * LINK))
    assert seconds("all-reduce", [[0, 1, 2, 3]], torus(4)).inside == pytest.approx(2 * one)
    assert seconds("reduce-scatter", [[0, 1, 2, 3]], torus(4), size=10**9 // 4).inside == pytest.approx(one)
    assert seconds("all-to-all", [[0, 1, 2, 3]], torus(4)).inside == pytest.approx(2 * 4 * 1e9 / 4 / (2 * LINK))


def test_a_line_has_one_link_at_its_ends():
    line = seconds("all-gather", [[0, 1, 2, 3]], torus(4), V5E).inside  # closed on 16 chips alone
    assert line == pytest.approx(2 * 1e9 * 3 / 4 / V5E.link_rate)
    part = seconds("all-gather", [[0, 1]], torus(4)).inside  # a part of a closed axis is none
    assert part == pytest.approx(2 * 1e9 / 2 / LINK)
    apart = seconds("all-gather", [[0, 2]], torus(4)).inside
    assert apart == pytest.approx(2 * part)


def test_permutations_wait_for_the_busiest_link():
    around = [[0, 1], [1, 2], [2, 3], [3, 0]]
    ring = 2 * 1e9 / LINK
    assert seconds("collective-permute", around, torus(4)).inside == pytest.approx(ring)
    back = seconds("collective-permute", around, torus(4), V5E).inside  # the last message passes all others, on free links
    assert back == pytest.approx(2 * 1e9 / V5E.link_rate)
    snake = [[i, (i + 1) % 16] for i in range(16)]  # through a 4 x 4 plane: a row's end goes to the next row's beginning
    assert seconds("collective-permute", snake, torus(4, 4)).inside == pytest.approx(ring)
    far = [[0, 2], [1, 3], [2, 0], [3, 1]]
    assert seconds("collective-permute", far, torus(4)).inside == pytest.approx(2 * ring)
    assert seconds("collective-permute", None, torus(4)).inside == 0


def test_what_crosses_slices():
    places = torus(4, slices=2)
    found = seconds("all-reduce", None, places)
    assert found.across_bytes == pytest.approx(2 * 2 * 1e9 / 4 / 2)
    assert found.across == pytest.approx(found.across_bytes / V5P.slice_rate)
    assert found.inside == pytest.approx(2 * 2 * 1e9 * 3 / 4 / (2 * LINK))
    pairs = seconds("all-reduce", [[0, 4], [1, 5], [2, 6], [3, 7]], places)
    assert pairs.inside == 0 and pairs.across_bytes == pytest.approx(2 * 1e9)
    assert seconds("collective-permute", [[0, 4]], places).across_bytes == 2 * 10**9
    assert seconds("all-gather", [[0], [1]], places) == dataclasses.replace(found, inside=0.0, across=0.0, across_bytes=0.0)
