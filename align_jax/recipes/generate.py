"""`align-jax generate CONFIG.yaml [--section.key value ...]`: prompts in, responses out, both JSONL."""

from __future__ import annotations

import dataclasses
import hashlib
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax

from align_jax import hf
from align_jax.config import Config, load_config, parse_overrides
from align_jax.config.sections import GenerateConfig
from align_jax.data import Encoder
from align_jax.data.config import DataConfig
from align_jax.errors import UserError
from align_jax.files import ResultsFile, check_apart, fingerprint_files
from align_jax.generation import Sample, Sampling, StopStrings, end_ids, sample_text, stream, stream_beliefs
from align_jax.generation.prompts import PromptRow, read_prompts, write_model_outputs
from align_jax.models import Decoder, ModelConfig, weight_shardings
from align_jax.objectives import name_of
from align_jax.parallel.stop import STOPPED, StopSignal
from align_jax.recipes import setup as assemble
from align_jax.recipes.export import trained_config, trained_weights
from align_jax.recipes.folder import fingerprint_checkpoint, has_checkpoints, newest_run

REQUIRED = ("model", "generate.prompts", "generate.output")


def main(argv: list[str]) -> int:
    """Samples responses; a run that was interrupted goes on where it was. SIGTERM keeps what there is, status 143."""
    if not argv or argv[0].startswith("--"):
        raise UserError("give a config: align-jax generate CONFIG.yaml [--section.key value ...]")
    config = load_config(argv[0], parse_overrides(argv[1:]), require=REQUIRED)
    with StopSignal() as stop:
        return 0 if run(config, stop=stop.requested) else STOPPED


@dataclasses.dataclass(frozen=True)
class Encoded:
    """A prompt as tokens; with beliefs, their statements and which one is fixed."""

    prompt: list[int]
    beliefs: list[list[int]] = dataclasses.field(default_factory=list)
    fixed: int | None = None


def run(config: Config, *, cut_prompts: bool = False, stop: Callable[[], bool] = lambda: False) -> bool:
    """Generates what the `generate` section asks for.

    The model is that of the newest checkpoint in `run.dir` where there is one, otherwise that of `model`.

    Args:
      cut_prompts: cut prompts to `data.max_prompt_tokens`, as training does.
      stop: asked after every prompt; when it says so, the rest is left for the next time.

    Returns:
      Whether all prompts have their responses.

    Raises:
      UserError: anything wrong with the prompts (file and line), the stop tokens or the files, before sampling starts.
    """
    options = config.generate
    if config.head != "lm_head":
        raise UserError(f"objective.name: {config.objective.name!r} trains a reward model, which generates nothing")
    mesh = assemble.mesh_of(config)
    shape, from_run = _shape_of(config)
    check_apart({f"generate.{key}": getattr(options, key) for key in ("prompts", "output", "alpaca_eval")})
    tokenizer = assemble.tokenizer_of(config)
    generation_config = hf.load_generation_config(config.model.path) if config.model.path else None
    ends = end_ids(tokenizer, options.stop_tokens, generation_config)
    data = config.data or DataConfig()
    rows = [unit for row in read_prompts(options.prompts) for unit in by_group(row, data)]
    most = data.max_prompt_tokens if cut_prompts else sys.maxsize
    encoder = Encoder(tokenizer, dataclasses.replace(data, max_prompt_tokens=most), shape.vocab_size)
    encoded = [encode(row, encoder, options, shape) for row in rows]
    with ResultsFile(options.output, _settings(config, from_run, rows, encoded), len(rows)) as results:
        _say_what_is_there(results, len(rows))
        todo = [i for i in range(len(rows)) if i not in results.done]
        if todo:
            model = Decoder(shape, _weights(config, shape, from_run, mesh), dtype=config.model.dtype)
            stops = StopStrings(tokenizer, options.stop)
            try:
                for i, columns in _results(model, [encoded[i] for i in todo], todo, config, mesh, ends, stops):
                    results.write(todo[i], {**rows[todo[i]].values, **columns})
                    if stop():
                        break
            except BaseException:
                _say_how_far(results, len(rows))
                raise
            if len(results.done) < len(rows):
                _say_how_far(results, len(rows))
                return False
    if todo:
        _say(f"responses to {len(rows)} prompts are in {options.output}")
    if options.alpaca_eval is not None and jax.process_index() == 0:
        name = Path(config.run.dir if from_run else config.model.path or "fresh model").name
        count = write_model_outputs(Path(options.output), Path(options.alpaca_eval), name)
        _say(f"{count} outputs of {name!r} for AlpacaEval are in {options.alpaca_eval}")
    return True


def _say(line: str) -> None:
    if jax.process_index() == 0:
        print(f"align-jax: {line}", file=sys.stderr, flush=True)


def _say_how_far(results: ResultsFile, count: int) -> None:
    _say(f"{len(results.done)} of {count} prompts are in {results.path}; the same command goes on from there")


def _say_what_is_there(results: ResultsFile, count: int) -> None:
    if results.kept_as:
        _say(f"{results.path} held results of other settings; they are kept as {results.kept_as}")
    if results.done:
        _say(f"{results.path} has {len(results.done)} of {count} prompts already")


def by_group(row: PromptRow, data: DataConfig) -> list[PromptRow]:
    """The row, or one row for each of its `groups`, each with its `group`."""
    groups = row.values.get("groups")
    if groups is None:
        return [row]
    if not isinstance(groups, list) or not groups or not all(isinstance(group, str) for group in groups):
        raise UserError(f"{row.where}: `groups` must be a list of names, got {groups!r}")
    if "{group}" not in data.prompt_template or not isinstance(row.values["prompt"], str):
        raise UserError(
            f"{row.where}: the prompt is the same for all of its `groups`: they are used by {{group}} in "
            "data.prompt_template, in prompts of plain text"
        )
    rest = {key: value for key, value in row.values.items() if key != "groups"}
    return [PromptRow(row.where, {**rest, "group": group}) for group in groups]


def encode(row: PromptRow, encoder: Encoder, options: GenerateConfig, shape: ModelConfig) -> Encoded:
    """The row's tokens.

    Raises:
      UserError: it leaves no room in the context, or it has no such beliefs; names file and line.
    """
    values = row.values
    texts = {key: values.get(key) or "" for key in ("group", "context")}
    for key, value in texts.items():
        if not isinstance(value, str):
            raise UserError(f"{row.where}: `{key}` must be text, got {value!r}")
    try:
        prompt = encoder.encode_prompt(values["prompt"], **texts)[0].tolist()
    except ValueError as error:
        raise UserError(f"{row.where}: {error}") from error
    beliefs, fixed = _beliefs(row, encoder) if options.beliefs else ([], None)
    room = shape.max_length - len(prompt) - max(map(len, beliefs), default=0)
    if room < 1:
        what = "the prompt with its longest belief" if beliefs else "the prompt"
        raise UserError(
            f"{row.where}: {what} has {shape.max_length - room} tokens, which leaves no room in the model's context of "
            f"{shape.max_length}; shorten it to at most {shape.max_length - 1}"
        )
    return Encoded(prompt, beliefs, fixed)


def _beliefs(row: PromptRow, encoder: Encoder) -> tuple[list[list[int]], int | None]:
    options = row.values.get("options")
    if not isinstance(options, list) or not options or not all(isinstance(o, str) for o in options):
        raise UserError(f"{row.where}: generate.beliefs needs `options`, a list of the beliefs, got {options!r}")
    fixed = row.values.get("belief")
    if isinstance(fixed, str) and fixed in options:
        fixed = options.index(fixed)
    if isinstance(fixed, float) and fixed.is_integer():  # so written by tools that have no missing integers
        fixed = int(fixed)
    if fixed is not None and (isinstance(fixed, (bool, str)) or fixed not in range(len(options))):
        raise UserError(f"{row.where}: `belief` {fixed!r} is not one of the options {options} or a number below {len(options)}")
    return [encoder.encode_belief(n, option).tolist() for n, option in enumerate(options)], fixed


def _results(
    model: Decoder, encoded: Sequence[Encoded], ids: list[int], config: Config, mesh, ends: tuple[int, ...], stops: StopStrings
) -> Iterator[tuple[int, dict[str, Any]]]:
    """(place in `encoded`, columns of the result) as prompts finish."""
    options = config.generate
    common = dict(
        samples=options.samples,
        max_new_tokens=options.max_new_tokens,
        sampling=sampling_of(options),
        eos_ids=ends,
        stop=stops if stops.strings else None,
        seed=config.run.seed,
        prompt_ids=ids,
        mesh=mesh,
        rows=options.rows,
        progress=config.log.progress and jax.process_index() == 0,
    )
    prompts = [e.prompt for e in encoded]

    def text(before: list[int], sample) -> str:
        return stops.cut(sample_text(stops.tokenizer, before, sample))

    if not options.beliefs:
        for i, samples in stream(model, prompts, **common):
            yield i, {"responses": [text(prompts[i], sample) for sample in samples], **_tokens(samples, options)}
        return
    statements, fixed = [e.beliefs for e in encoded], [e.fixed for e in encoded]
    first = partial(stream_beliefs, fixed=fixed, belief_temperature=options.belief_temperature)
    for i, result in first(model, prompts, statements, **common):
        yield i, {
            "responses": [text([*prompts[i], *statements[i][s.belief]], s.sample) for s in result.samples],
            **_tokens([s.sample for s in result.samples], options),
            "beliefs": [s.belief for s in result.samples],
            "belief_probabilities": [s.probability for s in result.samples],
            "belief_distribution": result.distribution.tolist(),
            "belief_mass": result.mass,
        }


def _tokens(samples: Sequence[Sample], options: GenerateConfig) -> dict[str, Any]:
    if not options.tokens:
        return {}
    return {"tokens": [s.tokens.tolist() for s in samples], "finish_reasons": [s.finish_reason for s in samples]}


def sampling_of(options: GenerateConfig) -> Sampling:
    """The sampling that a config asks for."""
    names = (field.name for field in dataclasses.fields(Sampling))
    return Sampling(**{name: getattr(options, name) for name in names})


def _shape_of(config: Config) -> tuple[ModelConfig, Path | None]:
    """The model's shape, and the run folder where its weights come from one."""
    folder = newest_run(Path(config.run.dir)) if config.run.dir else None
    if folder and (folder / "config.yaml").exists() and has_checkpoints(folder):
        trained = load_config(folder / "config.yaml")
        if trained.head != config.head:
            name = name_of(trained.objective)
            raise UserError(f"run.dir: {folder} holds a reward model (objective {name}), no language model")
        return trained_config(folder, config)[0], folder
    return assemble.start_of(config).config, None


def _weights(config: Config, shape: ModelConfig, run_dir: Path | None, mesh) -> dict:
    if run_dir is None:
        return assemble.weights_of(assemble.start_of(config), config, mesh)
    weights, step = trained_weights(run_dir, config, shape, None, weight_shardings(shape, mesh))
    _say(f"the model is that of step {step} in {run_dir}")
    return weights


def _settings(
    config: Config, run_dir: Path | None, rows: Sequence[PromptRow], encoded: Sequence[Encoded]
) -> dict[str, Any]:
    """Everything that decides the results; a file of other settings is not continued."""
    values = config.to_dict()
    free = ("prompts", "output", "alpaca_eval", "rows")
    newest = weights = None
    if run_dir is None and config.model.path is not None:
        weights = fingerprint_files(hf.resolve_folder(config.model.path).glob("*.safetensors"))
    if run_dir is not None:
        newest = fingerprint_checkpoint(run_dir)
    return {
        "model": values["model"] | {"run": str(run_dir) if run_dir else None, "step": newest, "weights": weights},
        "seed": config.run.seed,
        "generate": {key: value for key, value in values["generate"].items() if key not in free},
        "prompts": _hash([dataclasses.astuple(e) for e in encoded]),
        "columns": _hash([row.values for row in rows]),
    }


def _hash(values: list) -> str:
    return hashlib.sha256(repr(values).encode()).hexdigest()
