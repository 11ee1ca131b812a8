"""Hostile input by the thousand: `python tools/fuzz.py --examples 1000` tries as many of each kind, and says how many failed.

The kinds are the properties of tests/hostile: configs, options, command lines, rows, prompts, headers, indexes, tokenizers,
templates, models' configs. What is found there belongs into an `@example` of its property, which stays in the test suite.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def main() -> int:
    """Runs the properties; 0 where none failed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--examples", type=int, default=1000, help="of each property")
    parser.add_argument("--only", default="", help="as pytest's -k")
    given = parser.parse_args()
    root, began = Path(__file__).parents[1], time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        environment = os.environ | {"ALIGN_JAX_FUZZ": str(given.examples), "ALIGN_JAX_FUZZ_REPORT": str(report)}
        command = [sys.executable, "-m", "pytest", "-q", "tests/hostile", *(["-k", given.only] if given.only else [])]
        status = subprocess.run(command, env=environment, cwd=root).returncode
        counts = json.loads(report.read_text()) if report.exists() else {}
    for name, (tried, refused) in counts.items():
        print(f"{name:<24}{tried:>8} tried {refused:>8} refused")
    total = sum(tried for tried, _ in counts.values())
    print(f"{total} inputs in {time.monotonic() - began:.0f} s: {'none failed' if status == 0 else 'see the failures above'}")
    return status


if __name__ == "__main__":
    sys.exit(main())
