"""Writes docs/experiments.md from results: `python -m align_jax.experiments.page [RESULT_FOLDER ...]`.

docs/experiments/intro.md stands in front. The folders' result.json and plot.png are copied to docs/experiments/ first; a quick
result does not take the place of a full one.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from align_jax.errors import UserError
from align_jax.experiments import claims
from align_jax.experiments.claim import FAILS, HOLDS, KINDS, UNCLEAR
from align_jax.experiments.options import Options
from align_jax.experiments.running import PLOT, RESULT, load
from align_jax.files import write_whole
from align_jax.terminal import plural, spell_seconds

DOCS = Path("docs")
INTRO = "intro.md"  # beside the results; `KINDS` in it becomes the list of `claim.KINDS`


def write_page(folders: Sequence[str]) -> int:
    """Takes the results of folders in, and writes the page."""
    if not (DOCS / "experiments").is_dir():
        raise UserError(f"{DOCS / 'experiments'}: there is no such folder here; run this in a checkout of the project")
    for folder in folders:
        take(Path(folder), DOCS / "experiments")
    write_whole(DOCS / "experiments.md", page(DOCS / "experiments"))
    print(f"wrote {DOCS / 'experiments.md'}")
    return 0


def take(folder: Path, into: Path) -> None:
    """Copies a result and its picture.

    Raises:
      UserError: there is no result.
    """
    for file in (RESULT, PLOT):
        if not (folder / file).exists():
            raise UserError(f"{folder} has no {file}: the experiment has not come to its end")
    result = _read(folder / RESULT)
    name, kept = _file_name(result), into / f"{_file_name(result)}.json"
    if kept.exists() and (less := _less(result["options"], _read(kept)["options"])):
        print(f"{folder} {less} of {kept}: left out")
        return
    into.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(folder / RESULT, kept)
    shutil.copyfile(folder / PLOT, into / f"{name}.png")


def _read(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file} is damaged: {error}") from error


def _less(options: dict[str, Any], kept: dict[str, Any]) -> str:
    """What a run has less than the kept one, of the same claim and model: then it does not take its place."""
    if options["quick"] != kept["quick"]:
        return "is a quick run, in place of the full one" if options["quick"] else ""
    few = options["seeds"] < kept["seeds"]
    return f"has {plural(options['seeds'], 'seed')}, fewer than the {kept['seeds']}" if few else ""


def page(results: Path) -> str:
    """The page of all results in a folder."""
    known = [_read(file) for file in sorted(results.glob("*.json"))]
    found = sorted(known, key=lambda r: (r["number"], r["options"]["model"] != "tiny"))
    missing = [name for name in claims() if name not in {result["experiment"] for result in found}]
    parts = [_intro(results / INTRO), _tally(found), _table(found)]
    if missing:
        parts.append(f"Not run yet: {', '.join(missing)}.\n")
    return "\n".join([*parts, *map(_section, found)])


def _intro(file: Path) -> str:
    if not file.exists():
        return "# Experiments\n"
    kinds = "\n".join(f"- *{name}*: {words}" for name, words in KINDS.items())
    return file.read_text(encoding="utf-8").replace("KINDS", kinds)


def _file_name(result: dict[str, Any]) -> str:
    return f"{result['experiment']}{'' if result['options']['model'] == 'tiny' else '-' + _model(result)}"


def _model(result: dict[str, Any]) -> str:
    return Options(**result["options"]).model_name


def _title(result: dict[str, Any]) -> str:
    return result["experiment"] + ("" if result["options"]["model"] == "tiny" else f" on {_model(result)}")


def _anchor(result: dict[str, Any]) -> str:
    return _title(result).lower().replace(" ", "-")


def _table(found: list[dict[str, Any]]) -> str:
    lines = ["| experiment | claim | tried on | verdict | |", "|---|---|---|---|---|"]
    for result in found:
        cells = (f"[{_title(result)}](#{_anchor(result)})", result["claim"], _tried_on(result), f"**{result['verdict']}**",
                 result["line"])  # fmt: skip
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _tally(found: list[dict[str, Any]]) -> str:
    """How many verdicts there are of each word, and of those that hold, on what."""
    words = {word: [result["kind"] for result in found if result["verdict"] == word] for word in (HOLDS, FAILS, UNCLEAR)}
    kinds = ", ".join(f"{words[HOLDS].count(kind)} {kind}" for kind in KINDS if kind in words[HOLDS])
    of_kinds = f" ({kinds})" if kinds else ""
    counts = {word: len(kinds) for word, kinds in words.items()}
    return f"Of {len(found)} results {counts[HOLDS]} hold{of_kinds}, {counts[FAILS]} fail, {counts[UNCLEAR]} are unclear.\n"


def _tried_on(result: dict[str, Any]) -> str:
    quick = ", quick run" if result["options"]["quick"] else ""
    return f"{result['kind']}; {plural(result['options']['seeds'], 'seed')}{quick}"


def _section(result: dict[str, Any]) -> str:
    options = result["options"]
    command = f"align-jax experiment {result['experiment']}" + (" --quick" if options["quick"] else "")
    command += "" if options["model"] == "tiny" else f" --model {_model(result)}"
    usual = Options(model=options["model"]).usual_seeds
    command += "" if options["seeds"] == usual else f" --seeds {options['seeds']}"
    return f"""## {_title(result)}

**{result["claim"][:1].upper()}{result["claim"][1:]}.** Source: {result["source"]}.

Criterion: {result["criterion"]}.{_outdated(result)}

**{result["verdict"].capitalize()}** ({_tried_on(result)}): {result["line"]}.

![{result["claim"]}](experiments/{_file_name(result)}.png)

`{command}`: {_time(result)} on {result["machine"]}.
{_figures(result["figures"])}{_texts(result["cells"])}"""


def _outdated(result: dict[str, Any]) -> str:
    """A word where the criterion was changed since."""
    name = result["experiment"]
    changed = name in claims() and load(name).criterion != result["criterion"]
    return " (It was changed after this run; the experiment's file has the present one.)" if changed else ""


def _time(result: dict[str, Any]) -> str:
    wall, cpu = spell_seconds(result["seconds"]), result.get("cpu_seconds")
    return f"{wall} ({spell_seconds(cpu)} of computing, over all cores)" if cpu else f"{wall} beside other work"


def _figures(figures: dict[str, dict[str, float | None]]) -> str:
    if not figures:
        return ""
    rows = "\n".join(f"| {name} | {_interval(found)} |" for name, found in figures.items())
    return f"\n<details><summary>All figures</summary>\n\n| figure | value [95% interval] |\n|---|---|\n{rows}\n\n</details>\n"


def _interval(found: dict[str, float | None]) -> str:
    if found["low"] is None or found["high"] is None:
        return f"{found['value']:.3g}"
    return f"{found['value']:.3g} [{found['low']:.3g}, {found['high']:.3g}]"


def _texts(cells: list[dict[str, Any]]) -> str:
    """What models wrote, of cells that kept `texts`: dicts of strings, of one seed."""
    blocks = []
    for cell in cells:
        texts = cell["values"].get("texts") or cell["values"].get("samples")
        if isinstance(texts, list) and texts and not cell["settings"].get("seed"):
            blocks.append(f"**{cell['name']}**\n\n" + "\n".join(map(_text, texts[:4])))
    if not blocks:
        return ""
    return "\n<details><summary>What the models wrote</summary>\n\n" + "\n\n".join(blocks) + "\n\n</details>\n"


def _text(text: dict[str, str] | str) -> str:
    parts = {"": text} if isinstance(text, str) else text
    return "- " + "; ".join(f"{key + ': ' if key else ''}`{_one_line(value)}`" for key, value in parts.items())


def _one_line(text: str) -> str:
    return " ".join(str(text).replace("`", "'").split())[:240]


if __name__ == "__main__":
    try:
        sys.exit(write_page(sys.argv[1:]))
    except UserError as error:
        sys.exit(f"{error}")
