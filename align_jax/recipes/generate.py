"""Generation: prompts in, sampled responses out, from files or in a notebook."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax

from align_jax import generation
from align_jax.config import Config, words
from align_jax.config.job_sections import GenerateConfig
from align_jax.config.jobs import JOBS
from align_jax.data import DataConfig, Encoder
from align_jax.errors import UserError
from align_jax.files import ResultsFile, check_apart
from align_jax.generation import Sample, Sampling, StopStrings, absent_ids, end_ids, sample_text, stream, stream_beliefs
from align_jax.generation.prompts import PromptRow, read_prompts, write_model_outputs
from align_jax.models import Decoder
from align_jax.objectives import name_of
from align_jax.parallel.stop import StoppedPass, StopSignal
from align_jax.recipes.memory import memory_explained, of_pass
from align_jax.recipes.models import current_model
from align_jax.recipes.prompt_rows import Encoded, by_group, encode, prompt_of
from align_jax.recipes.say import say, speaking, watching
from align_jax.recipes.setup import Setup
from align_jax.recipes.source import ModelSource, TrainedModel
from align_jax.recipes.tokenizer import load_tokenizer
from align_jax.registry import suggest

REQUIRED = JOBS["generate"].requires


def generate(model: Config | Decoder, prompts: Sequence[Any] | None = None, *, tokenizer: Any = None, **options: Any) -> list:
    """Samples responses to prompts: `generate(config)` from file to file, `generate(model, prompts, tokenizer=...)` at once.

    Args:
      model: a config whose `generate` section names prompts and output, or a model as `align_jax.load_model` gives it.
      prompts: texts, or conversations for a tokenizer with a chat template.
      tokenizer: of the model, of transformers; or its folder or hub id.
      options: `samples` (1), `max_new_tokens` (128), `temperature`, `top_k`, `top_p`, `min_p`, `repetition_penalty`, `stop`
        (strings), `seed` (0), `mesh`, `rows`: see the `generate` section.

    Returns:
      Of a config the rows of the output file; of a model the texts `[prompt][sample]`.

    Raises:
      UserError: anything wrong with prompts or options, before sampling starts.
    """
    if isinstance(model, Config):
        if prompts is not None or tokenizer is not None or options:
            raise UserError("generate(config) takes prompts and options from the config's `generate` section alone")
        with StopSignal() as stop:  # Ctrl-C raises here
            complete = run(model, stop=stop.requested)
        if not complete:
            raise UserError(f"{model.generate.output}: stopped by SIGTERM; the same call goes on from there")
        return [json.loads(line) for line in Path(model.generate.output).read_bytes().splitlines()]
    if not isinstance(model, Decoder):
        raise UserError(f"generate takes a Config, or a model that align_jax.load_model gave, not {type(model).__name__}")
    if prompts is None or tokenizer is None:
        raise UserError("generate(model, ...) needs prompts and the tokenizer")
    if isinstance(tokenizer, str | os.PathLike):
        tokenizer = load_tokenizer(tokenizer, "tokenizer")
    return _texts(model, prompts, tokenizer, options)


def _texts(model: Decoder, prompts: Sequence[Any], tokenizer: Any, options: dict[str, Any]) -> list[list[str]]:
    if isinstance(prompts, str):
        raise UserError(f"prompts must be a list, got the text {prompts[:40]!r}")
    here = {name: options.pop(name) for name in ("seed", "mesh") if name in options}
    known = {field.name for field in dataclasses.fields(GenerateConfig)} - {"prompts", "output", "alpaca_eval", "tokens"}
    if unknown := sorted(set(options) - known - {"beliefs", "belief_temperature"}):
        said = words.answer(unknown[0])
        near = f"{said.replace('generate.', '')}; " if said else suggest(unknown[0], known)
        raise UserError(f"generate has no option {unknown[0]!r}; {near}it has seed, mesh, {', '.join(sorted(known))}")
    asked = GenerateConfig(**options)
    encoder = Encoder(tokenizer, DataConfig(max_prompt_tokens=sys.maxsize), model.config.vocab_size)
    encoded = [prompt_of(prompt, encoder, f"prompt {i}").ids.tolist() for i, prompt in enumerate(prompts)]
    stops = StopStrings(tokenizer, asked.stop)
    samples = generation.generate(
        model,
        encoded,
        samples=asked.samples,
        max_new_tokens=asked.max_new_tokens,
        sampling=sampling_of(asked),
        eos_ids=(*encoder.end_ids, *end_ids(tokenizer, asked.stop_tokens)),
        never=absent_ids(tokenizer, model.config.vocab_size),
        stop=stops if stops.strings else None,
        rows=asked.rows,
        **here,
    )
    return [
        [stops.cut(sample_text(tokenizer, prompt, sample)) for sample in of_prompt]
        for prompt, of_prompt in zip(encoded, samples, strict=True)
    ]


def run(
    config: Config, *, cut_prompts: bool = False, stop: Callable[[], bool] = lambda: False, prompts: Sequence[str] | None = None
) -> bool:
    """Generates what the `generate` section asks for.

    The model is that of the newest checkpoint in `run.dir` where there is one, otherwise that of `model`.

    Args:
      cut_prompts: cut prompts to `data.max_prompt_tokens`, as training does.
      stop: asked after every prompt; when it says so, the rest is left for the next time.
      prompts: texts in place of the file `generate.prompts`.

    Returns:
      Whether all prompts have their responses.

    Raises:
      UserError: anything wrong with the prompts (file and line), the stop tokens or the files, before sampling starts.
    """
    config.require(*REQUIRED if prompts is None else (key for key in REQUIRED if key != "generate.prompts"))
    longest = f"generate.max_new_tokens (now {config.generate.max_new_tokens})"
    explained = memory_explained(lambda: of_pass("generate.rows", config.generate.rows, longest))
    with speaking(config.log.quiet, config.log.progress), explained:
        check_apart({f"generate.{key}": getattr(config.generate, key) for key in ("prompts", "output", "alpaca_eval")})
        most = sys.maxsize if not cut_prompts else (config.data or DataConfig()).max_prompt_tokens
        rows = read_prompts(config.generate.prompts) if prompts is None else _rows_of(prompts)
        return _run(_Task.of(config, rows, most), stop)


def for_prompts(config: Config) -> Config:
    """A config whose prompts are given as texts: its own prompts are not used, nor its files, unless they were options.

    Raises:
      UserError: a file of prompts was given as an option, too.
    """
    given = config.source.overridden
    if "generate.prompts" in given:
        raise UserError("--generate.prompts: give --prompt or --generate.prompts, not both")
    files = {key: getattr(config.generate, key) for key in ("output", "alpaca_eval") if f"generate.{key}" in given}
    if files.keys() == {"alpaca_eval"}:
        raise UserError("--generate.alpaca_eval: it is written from the file of --generate.output; give that, too")
    options = dataclasses.replace(config.generate, **{"prompts": None, "output": None, "alpaca_eval": None} | files)
    return dataclasses.replace(config, generate=options)


def answers(config: Config, prompts: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """(prompt, responses) of texts, in their order, as they are sampled; nothing is written.

    Args:
      config: with `model`; the `generate` section says how it is sampled.

    Raises:
      UserError: see `run`.
    """
    config.require("model")
    with speaking(config.log.quiet, config.log.progress):
        task = _Task.of(config, _rows_of(prompts), sys.maxsize)
        work = task.work()
        found, waiting = {}, list(range(len(prompts)))
        for i, columns in work.results(task.encoded, list(range(len(prompts)))):
            found[i] = columns["responses"]
            while waiting and waiting[0] in found:
                yield prompts[waiting[0]], found.pop(waiting.pop(0))


def _rows_of(prompts: Sequence[str]) -> list[PromptRow]:
    for prompt in prompts:
        if not prompt:
            raise UserError("--prompt: a prompt is empty; give a text")
    return [PromptRow(f"prompt {n}", {"prompt": prompt}) for n, prompt in enumerate(prompts, start=1)]


@dataclasses.dataclass(frozen=True)
class _Task:
    """What is sampled: prompts as rows and as tokens, of a model that is not loaded yet."""

    setup: Setup
    rows: list[PromptRow]
    encoded: list[Encoded]
    eos_ids: tuple[int, ...]

    @classmethod
    def of(cls, config: Config, given: Sequence[PromptRow], most: int) -> _Task:
        """The task of a config; prompts are cut to `most` tokens."""
        options = config.generate
        if config.head != "lm_head":
            raise UserError(f"objective.name: {name_of(config.objective)!r} trains a reward model, which generates nothing")
        with watching("starting: devices, model and tokenizer"):
            setup = Setup.of(config, _model(config))
        data, shape = setup.config.data or DataConfig(), setup.source.shape
        eos_ids = end_ids(setup.source.tokenizer, options.stop_tokens, setup.source.generation_config)
        rows = [unit for row in given for unit in by_group(row, data)]
        encoder = Encoder(setup.source.tokenizer, dataclasses.replace(data, max_prompt_tokens=most), shape.vocab_size)
        encoded = [encode(row, encoder, options, shape) for row in rows]
        return cls(setup, rows, encoded, tuple(sorted({*eos_ids, *encoder.end_ids})))

    def work(self) -> _Work:
        """Loads the model."""
        setup = self.setup
        weights, step = setup.load(setup.source)
        if step is not None:
            say(f"the model is that of step {step} in {setup.source.describe()}")
        model = Decoder(setup.source.shape, weights, dtype=setup.config.model.dtype)
        return _Work(setup, model, StopStrings(setup.source.tokenizer, setup.config.generate.stop), self.eos_ids)


def _run(task: _Task, stop: Callable[[], bool]) -> bool:
    setup, rows, encoded = task.setup, task.rows, task.encoded
    config, options = setup.config, setup.config.generate
    with ResultsFile(options.output, _settings(setup, rows, encoded), len(rows)) as results:
        _say_what_is_there(results, len(rows))
        todo = [i for i in range(len(rows)) if i not in results.done]
        if todo:
            work = task.work()
            try:
                for i, columns in work.results([encoded[i] for i in todo], todo):
                    results.write(todo[i], {**rows[todo[i]].values, **columns})
                    if stop():
                        break
            except StoppedPass:  # within the texts of a prompt, which are lost
                pass
            except BaseException:
                _say_how_far(results, len(rows))
                raise
            if len(results.done) < len(rows):
                _say_how_far(results, len(rows))
                return False
    if todo:
        say(f"responses to {len(rows)} prompts are in {options.output}")
    if options.alpaca_eval is not None and jax.process_index() == 0:
        trained = isinstance(setup.source, TrainedModel)
        name = Path(config.run.dir if trained else setup.source.describe()).name
        count = write_model_outputs(Path(options.output), Path(options.alpaca_eval), name)
        say(f"{count} outputs of {name!r} for AlpacaEval are in {options.alpaca_eval}")
    return True


def _model(config: Config) -> ModelSource:
    """The run's newest checkpoint or the starting model, with the tokenizer that the config names."""
    source = current_model(config)
    tokenizer = config.model.tokenizer or config.model.at
    return source if tokenizer is None else dataclasses.replace(source, tokenizer_at=tokenizer, key="model")


def _say_how_far(results: ResultsFile, count: int) -> None:
    say(f"{len(results.done)} of {count} prompts are in {results.path}; the same command goes on from there")


def _say_what_is_there(results: ResultsFile, count: int) -> None:
    if results.kept_as:
        say(f"{results.path} held results of other settings, or was changed since; they are kept as {results.kept_as}")
    if results.done:
        say(f"{results.path} has {len(results.done)} of {count} prompts already")


@dataclasses.dataclass(frozen=True)
class _Work:
    """What samples prompts: the model on its mesh, the strings and the tokens that end a text."""

    setup: Setup
    model: Decoder
    stops: StopStrings
    eos_ids: tuple[int, ...]

    def results(self, encoded: Sequence[Encoded], ids: list[int]) -> Iterator[tuple[int, dict[str, Any]]]:
        """(place in `encoded`, columns of the result) as prompts finish."""
        config, stops = self.setup.config, self.stops
        options = config.generate
        common = dict(
            samples=options.samples,
            max_new_tokens=options.max_new_tokens,
            sampling=sampling_of(options),
            eos_ids=self.eos_ids,
            never=absent_ids(stops.tokenizer, self.setup.source.shape.vocab_size),
            stop=stops if stops.strings else None,
            seed=config.run.seed,
            prompt_ids=ids,
            mesh=self.setup.mesh,
            rows=options.rows,
            progress=watching,
        )
        prompts = [e.prompt for e in encoded]
        if not options.beliefs:
            for i, samples in stream(self.model, prompts, **common):
                yield i, {"responses": [self._text(prompts[i], sample) for sample in samples], **_tokens(samples, options)}
            return
        statements, fixed = [e.beliefs for e in encoded], [e.fixed for e in encoded]
        first = partial(stream_beliefs, fixed=fixed, belief_temperature=options.belief_temperature)
        for i, result in first(self.model, prompts, statements, **common):
            yield (
                i,
                {
                    "responses": [self._text([*prompts[i], *statements[i][s.belief]], s.sample) for s in result.samples],
                    **_tokens([s.sample for s in result.samples], options),
                    "beliefs": [s.belief for s in result.samples],
                    "belief_probabilities": [s.probability for s in result.samples],
                    "belief_distribution": result.distribution.tolist(),
                    "belief_mass": result.mass,
                },
            )

    def _text(self, before: list[int], sample: Sample) -> str:
        return self.stops.cut(sample_text(self.stops.tokenizer, before, sample))


def _tokens(samples: Sequence[Sample], options: GenerateConfig) -> dict[str, Any]:
    if not options.tokens:
        return {}
    return {"tokens": [s.tokens.tolist() for s in samples], "finish_reasons": [s.finish_reason for s in samples]}


def sampling_of(options: GenerateConfig) -> Sampling:
    """The sampling that a config asks for."""
    names = (field.name for field in dataclasses.fields(Sampling))
    return Sampling(**{name: getattr(options, name) for name in names})


def _settings(setup: Setup, rows: Sequence[PromptRow], encoded: Sequence[Encoded]) -> dict[str, Any]:
    """Everything that decides the results; a file of other settings is not continued."""
    values, source = setup.config.to_dict(), setup.source
    free = ("prompts", "output", "alpaca_eval", "rows")
    run, step, weights = None, None, None  # a fresh model follows from the model section and the seed
    if isinstance(source, TrainedModel):
        run, step = source.describe(), source.fingerprint()
    else:
        weights = source.content()
    adapter = {"lora": values["lora"]} if run is None and values.get("lora") else {}
    return {
        "model": values["model"] | {"run": run, "step": step, "weights": weights} | adapter,
        "seed": setup.config.run.seed,
        "generate": {key: value for key, value in values["generate"].items() if key not in free},
        "prompts": _hash([dataclasses.astuple(e) for e in encoded]),
        "columns": _hash([row.values for row in rows]),
    }


def _hash(values: list) -> str:
    return hashlib.sha256(repr(values).encode()).hexdigest()
