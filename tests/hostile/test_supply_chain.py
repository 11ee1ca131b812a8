"""What comes from strangers is data: no pickle is opened, no code of theirs is run, no template of theirs goes on for ever."""

from __future__ import annotations

import functools
import json
import pickle
import sys
import threading
import time
from pathlib import Path

import pytest

from align_jax import hf
from align_jax.data import DataConfig, Encoder, guarded, template
from align_jax.data.formats import Example
from align_jax.data.sources import RowError
from align_jax.errors import UserError
from align_jax.hf.files import DOWNLOADED, Checkpoint
from align_jax.recipes.tokenizer import load_tokenizer
from tests.data.toys import CHAT, char_tokenizer
from tests.hostile.given import safetensors_of
from tests.hostile.guards import harmless
from tests.hostile.test_models import CONFIG, HEADER

PICKLES = ("pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "optimizer.pt", "training_args.bin", "adapter_model.bin")


class Poison:
    """Unpickled, it would write a file."""

    def __init__(self, file: Path):
        self._file = file

    def __reduce__(self):
        return Path.write_text, (self._file, "poisoned")


@pytest.fixture
def poisoned(tmp_path):
    """A model's folder with pickles and code in it, and what would be there once one of them had been run."""
    folder, mark = tmp_path / "model", tmp_path / "mark"
    folder.mkdir()
    for name in PICKLES:
        (folder / name).write_bytes(pickle.dumps(Poison(mark)))
    (folder / "evil.py").write_text(f"from pathlib import Path\nPath({str(mark)!r}).write_text('run')\nclass Evil: pass\n")
    code = {name: "evil.Evil" for name in ("AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoTokenizer")}
    (folder / "config.json").write_text(
        json.dumps({**CONFIG, "auto_map": code, "custom_pipelines": {"x": {"impl": "evil.Evil"}}})
    )
    char_tokenizer(chat=CHAT).save_pretrained(folder)
    yield folder
    assert not mark.exists()
    assert "evil" not in sys.modules


@pytest.fixture
def opened():
    """Every file that is opened."""
    found, on = [], [True]

    def note(event, arguments):
        if event == "open" and on and isinstance(arguments[0], str | bytes):
            found.append(Path(arguments[0] if isinstance(arguments[0], str) else arguments[0].decode()).name)

    sys.addaudithook(note)
    yield found
    on.clear()


def test_the_pickle_would_be_poison(tmp_path):
    pickle.loads(pickle.dumps(Poison(tmp_path / "mark")))
    assert (tmp_path / "mark").exists()


def test_pickles_beside_safetensors_are_never_opened(poisoned, opened):
    (poisoned / "model.safetensors").write_bytes(safetensors_of(HEADER, bytes(24)))
    with harmless("poison", 0, poisoned):
        hf.load_config(poisoned)
        Checkpoint(poisoned).read("a", (slice(None), slice(None)))
        with pytest.raises(UserError):  # other tensors than the config has
            hf.load_weights(poisoned, hf.load_config(poisoned)[0])
    assert not set(opened) & {*PICKLES, "evil.py"}


def test_pickles_alone_are_refused_unopened(poisoned, opened):
    with pytest.raises(UserError, match="only pickled weights .*never loaded"):
        hf.load_model(poisoned)
    (poisoned / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    with pytest.raises(UserError, match="adapter_model.safetensors: absent"):
        hf.read_adapter(poisoned, hf.load_config(poisoned)[0])
    assert not set(opened) & {*PICKLES, "evil.py"}


def test_code_of_a_model_is_not_run(poisoned, opened):
    shape, _ = hf.load_config(poisoned)
    assert shape.layers == CONFIG["num_hidden_layers"]
    assert "evil.py" not in opened


@pytest.mark.parametrize(
    "named", [{"auto_map": {"AutoTokenizer": ["evil.Evil", None]}}, {"auto_map": {"AutoTokenizer": "evil.Evil"}}]
)
def test_a_tokenizer_with_code_is_refused(poisoned, opened, named):
    file = poisoned / "tokenizer_config.json"
    known = json.loads(file.read_text())
    known.pop("tokenizer_class", None)
    file.write_text(json.dumps({**known, **named, "tokenizer_class": "Evil"}))
    began = time.monotonic()
    with harmless("poison", 0, poisoned), pytest.raises(UserError, match="model.tokenizer: .*auto_map.*never done here"):
        load_tokenizer(poisoned, "model.tokenizer")
    assert time.monotonic() - began < 60  # and nobody is asked whether to run it
    assert "evil.py" not in opened


def test_nothing_that_could_hold_code_is_downloaded():
    assert not [pattern for pattern in DOWNLOADED if pattern.endswith((".py", ".bin", ".pt", ".pkl", "*"))]


def rendered(text: str) -> str:
    made = char_tokenizer(chat="x")
    made.chat_template = text
    return Encoder(made, DataConfig(), 200).prompt(Example(({"role": "user", "content": "q"},), ("a",))).text


@pytest.mark.parametrize(
    "text",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.system('touch mark') }}",
        "{{ raise_exception.__globals__['os'].system('touch mark') }}",
        "{{ self.__init__.__globals__ }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}{{ os.system('touch mark') }}",
        "{{ range(10 ** 1) }}{{ messages.append(1) }}",
        "{{ '{0.__class__}'.format(messages) }}",
    ],
)
def test_a_template_reaches_nothing(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((RowError, UserError), match="the chat template"):
        rendered(text)
    assert not (tmp_path / "mark").exists()


LOOPS = "{% for a in range(99999) %}" * 4 + "{% endfor %}" * 4
DOUBLES = "{% set n = namespace(x='a') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x | length }}"


@pytest.mark.parametrize("text", [LOOPS, DOUBLES, "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}"])
def test_a_template_that_does_not_end_is_stopped(text, monkeypatch):
    monkeypatch.setattr(template, "bounded", functools.partial(guarded.bounded, 0.3))
    monkeypatch.setattr(guarded, "GROWTH", 256 << 20)
    with pytest.raises(RowError, match="does not end with this conversation|maximum recursion depth"):
        rendered(text)
    monkeypatch.undo()
    assert rendered("{{ messages[0].content }}") == "q"


def test_one_is_stopped_in_a_worker_too_and_no_other_thread(monkeypatch):
    monkeypatch.setattr(template, "bounded", functools.partial(guarded.bounded, 0.3))
    found = []

    def work():
        try:
            rendered(LOOPS)
        except RowError as error:
            found.append(str(error))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    assert len(found) == 2 and all("does not end" in said for said in found)
    assert not guarded._running


@pytest.mark.parametrize(
    "text", ["{{ 10 ** 10 ** 8 }}", "{{ 'a' * 1000000 }}", "{{ messages[0].content * x }}", "{{ 9 * (9 * x) }}"]
)
def test_a_step_that_may_never_end_is_refused(text):
    with pytest.raises(UserError, match="the chat template has a (power|product)"):
        rendered(text)
    assert rendered("{{ '-' * 20 }}{{ messages[0].content }}").endswith("q")
