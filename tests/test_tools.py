"""What the tools conclude from what they measured."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).parent.parent / "tools"


def tool(name):
    spec = importlib.util.spec_from_file_location(f"tools_{name}", TOOLS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "memory, files, compiled, said",
    [
        (lambda step: 1000 + 500 * (step < 100), lambda step: 20, lambda step: 9, None),
        (lambda step: 1000 + step / 10, lambda step: 20, lambda step: 9, "memory rose from"),
        (lambda step: 1000, lambda step: 20 + step // 300, lambda step: 9, "open files rose from"),
        (lambda step: 1000, lambda step: 20, lambda step: 9 + (step >= 900), "1 programs were compiled"),
        (lambda step: 1000 if step < 190 else 1000, lambda step: 20, lambda step: 9 + (step >= 100), None),
    ],
)
def test_a_long_run_is_measured_behind_its_warm_up(memory, files, compiled, said):
    long_run = tool("long_run")
    moments = [long_run.Moment(step, memory(step), files(step), compiled(step)) for step in range(0, 1000, 10)]
    found = long_run.findings(moments, warm_up=200, within=0.02)
    assert found == [] if said is None else len(found) == 1 and found[0].startswith(said)


def test_a_run_that_is_too_short_to_tell_says_so():
    long_run = tool("long_run")
    assert "make the run longer" in long_run.findings([long_run.Moment(0, 1, 1, 1)] * 5, 200, 0.02)[0]
