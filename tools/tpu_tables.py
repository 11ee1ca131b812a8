"""The tables of docs/performance.md for TPUs that are not there: one `align-jax compile --mesh auto` a case.

    python tools/tpu_tables.py [--out runs/tpu-tables.jsonl] [--only REGEX] [--list] [--candidates 2]

keeps each case's result as a line of the file, goes on with the cases that are not in it, one program at a time, and prints
the table of all that are. A case that does not fit or cannot be compiled is a row that says so. GDPO needs rows, not lengths
alone: give its data with --opinions FILE.jsonl and a tokenizer with --tokenizer FOLDER, or it is left out.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

from tabulate import tabulate

from align_jax.cost.length_data import read_lengths

UNPACKED = ("--data.pack", "false", "--model.attention", "splash", "--model.remat", "full", "--mesh.fsdp", "-1")
AUTO = ("--mesh", "auto")
MPO, GDPO = "configs/mpo-llama-3-8b-ultrafeedback.yaml", "configs/gdpo-llama-opinions.yaml"


@dataclasses.dataclass(frozen=True)
class Case:
    """A row of the table: a model on a topology, so many slices of it, with an objective's groups."""

    model: str
    topology: str
    what: str = "MPO, 4 answers"
    slices: int = 1
    lengths: str | None = "alpaca-eval"
    options: tuple[str, ...] = ("--data.max_responses", "4")
    mesh: tuple[str, ...] = AUTO
    config: str = MPO

    @property
    def name(self) -> str:
        how = "" if self.mesh == AUTO else ", one answer a row"
        slices = f"{self.slices} x " if self.slices > 1 else ""
        lengths = Path(self.lengths).stem if self.lengths else "opinions"
        return f"{self.model}, {slices}{self.topology}, {self.what}, {lengths}{how}"

    def command(self, candidates: int) -> list[str]:
        """The arguments of `align-jax`."""
        where = [
            "--topology",
            self.topology,
            "--model",
            self.model,
            *(["--slices", str(self.slices)] if self.slices > 1 else []),
        ]
        lengths = [] if self.lengths is None else ["--lengths", self.lengths]
        number = ["--candidates", str(candidates)] if self.mesh == AUTO else ["--train.accumulation_steps", "1"]
        return ["compile", self.config, *where, *lengths, "--shapes", "1", *number, *self.options, *self.mesh, "--json"]


def cases(arguments: argparse.Namespace) -> list[Case]:
    """All rows, those that decide first."""
    small, large = ("llama-3-8b", "mistral-7b"), "llama-3-70b"
    decide = [Case(small[0], "v5p:4x4x4"), Case(small[0], "v6e:8x8"), Case(large, "v5p:8x8x8")]
    found = [dataclasses.replace(case, lengths=lengths) for case in decide for lengths in ("alpaca-eval", "ultrafeedback")]
    found += [dataclasses.replace(decide[0], mesh=UNPACKED)]
    found += [Case(model, at) for model in small for at in ("v5e:4x4", "v5e:8x8", "v6e:8x8", "v5p:4x4x4", "v5p:4x4x8")]
    found += [Case(large, "v5p:4x8x8"), Case(large, "v6e:16x16"), Case(large, "v5p:4x8x8", slices=2)]
    found += [Case(large, "v6e:16x16", slices=2)]
    many = _repeated("alpaca-eval", 4, arguments.out.parent)
    few = ("--data.max_responses", "32", "--train.groups_per_step", "64")
    found += [Case(small[0], "v5p:4x4x4", "MPO, 32 answers", lengths=many, options=few)]
    found += [Case(small[0], "v5p:4x4x4", "DPO, pairs", options=("--objective.name", "dpo", "--objective.alpha", "null"))]
    if arguments.opinions and arguments.tokenizer:
        options = (
            "--data.train",
            arguments.opinions,
            "--model.tokenizer",
            arguments.tokenizer,
            "--train.groups_per_step",
            "128",
        )
        found += [Case(small[0], "v5p:4x4x4", "GDPO", lengths=None, options=options, config=GDPO)]
    return list(dict.fromkeys(found))


def _repeated(name: str, times: int, folder: Path) -> str:
    """A file of these lengths in which each prompt has its answers several times."""
    path = folder / f"{name}-{times}-times.jsonl"
    rows = [{"prompt": group.prompt, "responses": group.responses * times} for group in read_lengths(name)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def measured(case: Case, candidates: int) -> dict:
    """What the command printed, or why it printed nothing."""
    command = case.command(candidates)
    ran = subprocess.run([sys.executable, "-m", "align_jax", *command], capture_output=True, text=True)
    lines = ran.stdout.strip().splitlines()
    if lines and lines[-1].startswith("{"):
        return {"command": command, "values": json.loads(lines[-1])}
    said = [line for line in ran.stderr.strip().splitlines() if line.strip()]
    return {"command": command, "error": said[-1][:300] if said else f"exit status {ran.returncode}"}


def row(name: str, found: dict) -> list[str]:
    """A row of the table."""
    if "error" in found:
        return [name, found["error"], *[""] * 6]
    values = found["values"]
    sizes = " x ".join(str(size) for axis, size in values["mesh"].items() if axis in ("data", "fsdp", "tensor"))
    utilization = [values[f"useful_utilization_{by}"] for by in ("serial", "overlapped", "bound")]
    memory = f"{values['memory_bytes']['total'] / 2**30:.1f} of {values['memory_bytes']['device'] / 2**30:.0f}"
    return [
        name,
        sizes,
        values["remat"],
        *(f"{x:.3f}" for x in utilization),
        memory if values["fits"] else f"{memory}: does not fit",
        f"{values['real_tokens_fraction']:.3f}",
        f"{values['step_seconds']['serial']:.3f} / {values['step_seconds']['overlapped']:.3f}",
    ]


HEADERS = (
    *("case", "data x fsdp x tensor", "remat", "serial", "overlapped", "with memory traffic", "GiB of a chip"),
    *("real tokens", "s a step"),
)


def main() -> None:
    """Runs what is missing, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/tpu-tables.jsonl"))
    parser.add_argument("--only", default="", help="cases whose name matches this regular expression")
    parser.add_argument("--candidates", type=int, default=2, help="meshes that are compiled for a case")
    parser.add_argument("--opinions", help="data for GDPO, JSONL")
    parser.add_argument("--tokenizer", help="a folder with a tokenizer, for GDPO's data")
    parser.add_argument("--list", action="store_true", help="only say which cases there are, and which are done")
    arguments = parser.parse_args()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    kept = [json.loads(line) for line in arguments.out.read_text().splitlines()] if arguments.out.exists() else []
    done = {each["name"]: each for each in kept}
    wanted = [case for case in cases(arguments) if re.search(arguments.only, case.name)]
    for case in wanted:
        if arguments.list or case.name in done:
            print(f"{'done' if case.name in done else 'open'}: {case.name}", file=sys.stderr)
            continue
        print(f"{case.name} ...", file=sys.stderr, flush=True)
        done[case.name] = {"name": case.name, **measured(case, arguments.candidates)}
        with arguments.out.open("a") as file:
            file.write(json.dumps(done[case.name]) + "\n")
    rows = [row(case.name, done[case.name]) for case in wanted if case.name in done]
    print(tabulate(rows, headers=HEADERS, tablefmt="github", disable_numparse=True))


if __name__ == "__main__":
    main()
