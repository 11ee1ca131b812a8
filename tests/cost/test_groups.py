"""Who takes part in a collective, in every way in which compiled programs say it."""

import pytest

from align_jax.cost.groups import device_groups


@pytest.mark.parametrize(
    "text, groups",
    [
        ("replica_groups={{0,1},{2,3}}, use_global_device_ids=true", [[0, 1], [2, 3]]),
        ("channel_id=1, replica_groups=[2,3]<=[6], dimensions={0}", [[0, 1, 2], [3, 4, 5]]),
        ("replica_groups=[3,2]<=[2,3]T(1,0)", [[0, 3], [1, 4], [2, 5]]),
        ("replica_groups=mesh['x'=2,'y'=3] {'y'}, dimensions={0}", [[0, 1, 2], [3, 4, 5]]),
        ("replica_groups=mesh['x'=2,'y'=3] {'x'}", [[0, 3], [1, 4], [2, 5]]),
        ("replica_groups=mesh['x'=2,'y'=2], device_ids=(3,2,1,0) {'y'}", [[3, 2], [1, 0]]),
        ("replica_groups=mesh['x'=2,'y'=3], device_ids=([3,2]T(1,0)) {'y'}, use_global", [[0, 2, 4], [1, 3, 5]]),
        ("replica_groups=mesh['x'=4] {'x':(2)2}", [[0, 1], [2, 3]]),
        ("replica_groups=mesh['x'=4] {'x':(1)2}", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['x'=2,'y'=2] {'x', 'y'}", [[0, 1, 2, 3]]),
        ("channel_id=3, source_target_pairs={{0,3},{1,0},{2,1},{3,2}}", [[0, 3], [1, 0], [2, 1], [3, 2]]),
    ],
)
def test_groups_are_read(text, groups):
    assert device_groups(text).tolist() == groups


def test_all_devices_and_what_is_not_understood():
    assert device_groups("replica_groups={}, dimensions={0}") is None
    assert device_groups("dimensions={0}") is None
    with pytest.raises(ValueError, match="not understood: replica_groups=other"):
        device_groups("replica_groups=other(3)")
