"""Rows of every format, files of every ending, prompts, templates of prompts."""

from __future__ import annotations

import csv
import functools
import gzip
import io
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from align_jax.data import DataConfig, Encoder, GroupDataset, RowLayout
from align_jax.data.packing.arrays import pack_groups
from align_jax.errors import UserError
from align_jax.generation.prompts import read_prompts
from align_jax.objectives import find_objective
from tests.data.toys import CHAT, char_tokenizer, opinion
from tests.hostile.given import JUNK, TEXTS, changed, damaged, nested, spelled
from tests.hostile.guards import few, folder, harmless

USER, BOT = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
CALL = {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}]}
FEEDBACK = {"instruction": "q", "completions": [{"response": "a", "overall_score": 3.0}, {"response": "b", "overall_score": 1}]}
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "groups": ("mpo", {"prompt": "q", "responses": ["a", "b", "c"], "scores": [1.0, 2, 0.5], "group": "x", "context": "y"}),
    "samples": ("mpo", {"prompt": "q", "responses": ["a", "b"], "scores": [1.0, 2], "tokens": [[4, 5], [6]]}),
    "ultrafeedback": ("mpo", FEEDBACK),
    "pairs": ("dpo", {"prompt": [USER], "chosen": [BOT], "rejected": [{**BOT, "content": "b"}], "system": "s"}),
    "unpaired": ("kto", {"prompt": "q", "completion": "a", "label": True}),
    "completions": ("sft", {"prompt": "q", "completion": "a"}),
    "messages": ("sft", {"messages": [USER, CALL, {"role": "tool", "content": "1"}, BOT], "tools": [{"name": "f"}]}),
    "gdpo": ("gdpo", {**opinion(), "answers": 4}),
    "hh": ("dpo", {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"}),
}


@functools.cache
def tokenizer() -> Any:
    return char_tokenizer(chat=CHAT)


def read(name: str, file: str, data: bytes, config: DataConfig, objective: str) -> None:
    """All that is done with data up to a batch."""
    with folder() as here, harmless(name, len(data), here):
        Path(file).write_bytes(data)
        encoder = Encoder(tokenizer(), config, 128)
        arrangement = find_objective(objective)().arrangement
        dataset = GroupDataset(config, "train", encoder, arrangement=arrangement, seed=0, spool_dir=here)
        groups = [dataset[i] for i in range(min(len(dataset), 3))]
        pack_groups(groups, shards=1, groups_per_shard=len(groups), layout=RowLayout())
        dataset.describe()


def rows_of(kind: str) -> st.SearchStrategy:
    return st.lists(st.one_of(st.just(ROWS[kind][1]), changed(ROWS[kind][1])), min_size=1, max_size=3)


@few(60)
@given(
    st.sampled_from(sorted(ROWS)).flatmap(lambda kind: st.tuples(st.just(kind), rows_of(kind))), st.booleans(), st.booleans()
)
@example(("groups", [{"prompt": "q", "responses": ["a", "b"], "scores": [3e38, 0.0]}]), False, False)
@example(("groups", [{"prompt": "a\0b", "responses": ["\0", "b\0"], "scores": [1, 0]}]), False, False)
@example(("groups", [{"prompt": nested(400), "responses": ["a", "b"], "scores": [1, 0]}]), False, True)
@example(("unpaired", [{"prompt": "q", "completion": "a", "label": 10**400}]), False, False)
@example(("samples", [{"prompt": "q", "responses": ["a", "b"], "scores": [1, 0], "tokens": [[2**40], [1]]}]), False, False)
def test_rows_are_taken_or_refused(kind_and_rows, auto, skips):
    kind, rows = kind_and_rows
    data = "".join(spelled(row) + "\n" for row in rows).encode("utf-8", "surrogatepass")
    config = DataConfig(train="d.jsonl", format="auto" if auto else kind, on_bad_row="skip" if skips else "error")
    read("rows", "d.jsonl", data, config, ROWS[kind][0])


def _csv(rows: list[dict]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


@functools.cache
def files() -> dict[str, bytes]:
    import pyarrow
    import pyarrow.ipc
    import pyarrow.parquet

    rows = [ROWS["groups"][1]] * 3
    lines = "".join(spelled(row) + "\n" for row in rows).encode()
    table, stream, made = io.BytesIO(), io.BytesIO(), pyarrow.Table.from_pylist(rows)
    pyarrow.parquet.write_table(made, table)
    with pyarrow.ipc.new_stream(stream, made.schema) as writer:
        writer.write_table(made)
    return {
        "d.jsonl": lines,
        "d.json": spelled({"data": rows}).encode(),
        "d.jsonl.gz": gzip.compress(lines),
        "d.csv": _csv([{"prompt": "q", "chosen": "a", "rejected": "b"}] * 3),
        "d.tsv": _csv([{"prompt": "q", "chosen": "a", "rejected": "b"}] * 3),
        "d.parquet": table.getvalue(),
        "d.arrow": stream.getvalue(),
    }


@few()
@given(st.sampled_from(sorted(files())).flatmap(lambda name: st.tuples(st.just(name), damaged(files()[name]))))
@example(("d.json", b"[" * 100_000))
@example(("d.jsonl", b'{"prompt": ' + b"9" * 5000 + b"}"))
@example(("d.jsonl", b'{"a":' * 5000))
@example(("d.csv", b'"'))
@example(("d.csv", b"\x80[["))
@example(("d.jsonl.gz", gzip.compress(b" " * (100 << 20))))
def test_files_are_taken_or_refused(file):
    name, data = file
    read("data files", name, data, DataConfig(train=name), "dpo" if name[2:] in ("csv", "tsv") else "mpo")


@few()
@given(st.lists(st.one_of(changed({"prompt": "q", "x": 1}), changed({"prompt": [USER], "options": ["a", "b"]})), max_size=3))
@example([{"prompt": nested(400)}])
@example([10**400])
def test_prompts_are_taken_or_refused(rows):
    data = "".join(spelled(row) + "\n" for row in rows).encode("utf-8", "surrogatepass")
    with folder() as here, harmless("prompts", len(data), here):
        Path("p.jsonl").write_bytes(data)
        read_prompts("p.jsonl")


@few()
@given(damaged(b'{"prompt": "q"}\n{"prompt": [{"role": "user", "content": "q"}]}\n'))
@example(b"[" * 100_000)
@example(b'{"prompt": ' + b"9" * 5000 + b"}")
def test_bytes_are_prompts_or_refused(data):
    with folder() as here, harmless("bytes of prompts", len(data), here):
        Path("p.jsonl").write_bytes(data)
        read_prompts("p.jsonl")


PIECES = [
    "{prompt}",
    "{group}",
    "{context}",
    "{",
    "}",
    "{{",
    "}}",
    "{prompt:d}",
    "{prompt:>99999999}",
    "{prompt!r}",
    "{prompt.x}",
]
PIECES += ["{prompt[0]}", "{prompt.__class__.__mro__}", "{0}", "{}", "{prompt:{group}}", "{id}", "{belief}", "a", " "]


@few()
@example("1" * 30_000, "{id}<{belief}>")
@example("{" + "a" * 30_000 + "}", "{id}")
@example("{prompt}", "b" * 30_000)
@given(st.lists(st.one_of(st.sampled_from(PIECES), TEXTS), max_size=5).map("".join), st.one_of(st.just("{id}<{belief}>"), JUNK))
def test_templates_of_prompts_are_taken_or_refused(prompt, belief):
    data = (spelled({**opinion(), "group": "g", "context": "c"}) + "\n").encode()
    with folder() as here, harmless("prompt templates", len(data), here):
        Path("d.jsonl").write_bytes(data)
        belief = belief if isinstance(belief, str) else str(belief)
        config = DataConfig(train="d.jsonl", prompt_template=prompt, belief_template=belief)
        dataset = GroupDataset(
            config, "train", Encoder(tokenizer(), config, 128), arrangement=find_objective("gdpo")().arrangement, seed=0
        )
        assert len(dataset[0].prompt)


@pytest.mark.parametrize(
    "template", ["{prompt:d}", "{prompt:>99999999}", "{prompt!r}", "{prompt.x}", "{prompt[0]}", "{prompt:{group}}"]
)
def test_a_template_knows_names_alone(template):
    with pytest.raises(UserError, match="data.prompt_template: .*(names alone|is unknown; it may use)"):
        DataConfig(prompt_template=template)
