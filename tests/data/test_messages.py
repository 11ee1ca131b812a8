"""Messages come whole, without what Arrow fills in; columns beside them reach the example."""

from __future__ import annotations

import json

import datasets
import pytest

from align_jax.data import open_source
from align_jax.data.formats import FORMATS
from align_jax.data.formats.messages import conversation, is_empty
from align_jax.data.sources import RowError, given_rows

USER = {"role": "user", "content": "What is the weather in Paris?"}
CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Paris"}}}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}


def bot(text):
    return {"role": "assistant", "content": text}


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ({"role": "user", "content": "hi", "name": "ann"}, {"role": "user", "content": "hi", "name": "ann"}),
        ({"role": "user", "content": "hi", "name": None, "tool_calls": None}, {"role": "user", "content": "hi"}),
        (
            {"role": "assistant", "content": "", "tool_calls": [CALL]},
            {"role": "assistant", "content": "", "tool_calls": [CALL]},
        ),
        ({"role": "assistant", "content": None, "tool_calls": [CALL]}, {"role": "assistant", "tool_calls": [CALL]}),
        ({"role": "assistant", "tool_calls": json.dumps([CALL])}, {"role": "assistant", "tool_calls": [CALL]}),
        ({"role": "assistant", "content": None, "tool_calls": []}, bot("")),
        ({"role": "assistant", "content": None}, bot("")),
        (
            {"role": "tool", "content": "20 degrees", "tool_call_id": "c1", "name": "weather"},
            {"role": "tool", "content": "20 degrees", "tool_call_id": "c1", "name": "weather"},
        ),
        (
            {"role": "assistant", "content": "so", "reasoning_content": "hm"},
            {"role": "assistant", "content": "so", "reasoning_content": "hm"},
        ),
        (
            {"role": "user", "content": [{"type": "text", "text": "a", "image_url": None}, {"type": "text", "text": "b"}]},
            {"role": "user", "content": "ab"},
        ),
        ({"role": "user", "content": [{"type": None, "text": "a "}, {"text": "b"}]}, {"role": "user", "content": "a b"}),
        ({"role": "user", "content": []}, {"role": "user", "content": ""}),
        ({"role": "assistant", "content": [], "tool_calls": [CALL]}, bot("") | {"tool_calls": [CALL]}),
        ({"from": "human", "value": "hi"}, {"role": "user", "content": "hi"}),
        ({"from": "gpt", "value": "yes"}, bot("yes")),
        ({"from": "observation", "value": "20"}, {"role": "tool", "content": "20"}),
        ({"role": "model", "content": "x"}, {"role": "model", "content": "x"}),
        # arguments as text stay text, empty ones too
        (
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]},
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]},
        ),
        # what is null below a message was written so
        (
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {"x": None, "y": [None]}}}]},
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {"x": None, "y": [None]}}}]},
        ),
    ],
)
def test_a_message_is_kept_whole(message, expected):
    assert conversation([message], "m") == (expected,)


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (
            {"role": "user", "content": [{"type": "image", "url": "x.png"}]},
            r"'m\[0\]'.* part of type 'image'; only text is read",
        ),
        ({"role": "user", "content": [{"type": "text"}]}, "part of type 'text'"),
        ({"role": "user", "content": ["hi"]}, "part of type 'str'"),
        ({"role": "user", "content": None}, "a message needs text"),
        ({"role": "user", "content": 3}, "a message needs text"),
        ({"role": None, "content": "x"}, "a message needs text"),
        ({"content": "x"}, "a message needs text"),
        ({"role": "assistant", "text": "Blue."}, "needs text in 'content', and this one has it in 'text'"),
        ({"from": "gpt", "text": "Blue."}, "and this one has it in 'text'"),
        ({"role": "assistant", "content": None, "text": "Blue."}, "and this one has it in 'text'"),
        ("hi", "a message needs 'role' and 'content', got 'hi'"),
        ({"role": "assistant", "tool_calls": "call me"}, r"'m\[0\].tool_calls': expected a list of objects, or JSON text"),
        ({"role": "assistant", "tool_calls": ["a"]}, "expected a list of objects"),
    ],
)
def test_a_message_that_cannot_be_kept_is_refused(message, said):
    with pytest.raises(RowError, match=said):
        conversation([message], "m")


def test_what_arrow_fills_in_is_not_there(tmp_path):
    rows = [
        {"prompt": [USER], "chosen": [{"role": "assistant", "content": "", "tool_calls": [CALL]}], "rejected": [bot("no")]},
        {"prompt": [USER], "chosen": [bot("sunny")], "rejected": [bot("no")]},
    ]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "rows.parquet")
    source = open_source(str(tmp_path / "rows.parquet"), split="train")
    first, second = (FORMATS["pairs"].read(source[i]).responses for i in range(2))
    assert first[0] == ({"role": "assistant", "content": "", "tool_calls": [CALL]},)
    assert second == ((bot("sunny"),), (bot("no"),))


OTHER = {"type": "function", "function": {"name": "time", "arguments": {"zone": "CET"}}}


def stored(rows, kind, folder, monkeypatch):
    """A source of rows that Arrow has held."""
    table = datasets.Dataset.from_list(rows)
    if kind == "parquet":
        table.to_parquet(folder / "rows.parquet")
        return open_source(str(folder / "rows.parquet"))
    if kind == "saved":
        table.save_to_disk(folder / "saved")
        return open_source(str(folder / "saved"))
    if kind == "given":
        return open_source(given_rows(table, "data.train"))
    streaming = kind == "streamed"
    loaded = table.to_iterable_dataset() if streaming else table
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: loaded)
    return open_source("some/data", streaming=streaming, spool_dir=folder)


@pytest.mark.parametrize("kind", ["parquet", "saved", "given", "hub", "streamed"])
def test_what_arrow_fills_in_at_any_depth_is_not_there(kind, tmp_path, monkeypatch):
    messages = [USER, {"role": "assistant", "content": "", "tool_calls": [CALL, OTHER]}, bot("It is.")]
    tools = [CALL, {"type": "function", "function": {"name": "time", "strict": True}}]
    text = json.dumps([{"type": "function", "function": {"name": "f", "default": None}}])
    source = stored([{"messages": messages, "documents": tools, "tools": text}], kind, tmp_path, monkeypatch)
    example = FORMATS["messages"].read(source[0])
    call = {"role": "assistant", "content": "", "tool_calls": [CALL, OTHER]}
    assert example.prompt == (USER,) and example.responses == ((call, bot("It is.")),)
    assert example.documents == tuple(tools)
    assert example.tools == tuple(json.loads(text))  # what is JSON text keeps its nulls


@pytest.mark.parametrize("kind", ["parquet", "saved", "given", "hub", "streamed"])
def test_what_arrow_keeps_as_json_keeps_its_nulls(kind, tmp_path, monkeypatch):
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": None, "y": 1}}}
    other = {"type": "function", "function": {"name": "g", "arguments": {"x": "text"}}}
    messages = [USER, {"role": "assistant", "content": "", "tool_calls": [call, other]}]
    rows = datasets.Dataset.from_list([{"messages": messages}], on_mixed_types="use_json")
    monkeypatch.setattr(datasets.Dataset, "from_list", lambda _: rows)
    source = stored(None, kind, tmp_path, monkeypatch)
    function = {"role": "assistant", "content": "", "tool_calls": [call, other]}
    assert FORMATS["messages"].read(source[0]).responses == ((function,),)


@pytest.mark.parametrize("name", ["tools", "documents"])
@pytest.mark.parametrize("value", [[TOOL], json.dumps([TOOL]), [json.dumps(TOOL)], (TOOL,)])
def test_tools_and_documents_are_objects(name, value):
    example = FORMATS["pairs"].read({"prompt": [USER], "chosen": [bot("a")], "rejected": [bot("b")], name: value})
    assert getattr(example, name) == (TOOL,)


@pytest.mark.parametrize("schema", [{"default": None, "enum": ["x", None]}, {"default": None}])
@pytest.mark.parametrize("written", [lambda tools: tools, json.dumps])
def test_nulls_of_a_schema_stay(schema, written):
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"properties": {"a": schema}}}}]
    assert FORMATS["prompts"].read({"prompt": "p", "tools": written(tools)}).tools == tuple(tools)


@pytest.mark.parametrize("value", [None, "", "[]", [], "null", " "])
def test_no_tools_are_none(value):
    assert FORMATS["prompts"].read({"prompt": "p", "tools": value}).tools is None


def test_json_text_with_a_key_twice_is_refused():
    with pytest.raises(RowError, match="'tools': key 'name' stands twice"):
        FORMATS["prompts"].read({"prompt": "p", "tools": '[{"name": "f", "name": "g"}]'})


@pytest.mark.parametrize("value", [3, "weather", '{"a": 1}', ["weather"], [3]])
def test_tools_of_another_kind_are_refused(value):
    with pytest.raises(RowError, match="'tools': expected a list of objects, or JSON text of one"):
        FORMATS["prompts"].read({"prompt": "p", "tools": value})


SYSTEM = {"role": "system", "content": "Be brief."}


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [("hi", (SYSTEM, {"role": "user", "content": "hi"})), ([USER], (SYSTEM, USER)), ([SYSTEM, USER], (SYSTEM, USER))],
)
def test_a_system_column_opens_the_conversation(prompt, expected):
    assert FORMATS["prompts"].read({"prompt": prompt, "system": "Be brief."}).prompt == expected


def test_a_system_column_beside_another_system_turn_is_refused():
    with pytest.raises(RowError, match="'system': the conversation has another system turn, 'Be brief.'"):
        FORMATS["prompts"].read({"prompt": [SYSTEM, USER], "system": "Be long."})
    with pytest.raises(RowError, match="'system': expected text, got int"):
        FORMATS["prompts"].read({"prompt": "p", "system": 3})
    assert FORMATS["prompts"].read({"prompt": "p", "system": " "}).prompt == "p"


@pytest.mark.parametrize(
    ("response", "empty"),
    [
        ("", True),
        (" \n", True),
        ("a", False),
        ((bot(""),), True),
        ((bot("a"),), False),
        (({"role": "assistant", "tool_calls": [CALL]},), False),
        (({"role": "assistant", "content": "", "reasoning_content": "hm"},), False),
        (({"role": "assistant", "content": [{"type": "text", "text": " "}]},), True),
    ],
)
def test_what_is_an_empty_answer(response, empty):
    assert is_empty(response) == empty
