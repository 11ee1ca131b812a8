"""`data.eval` under a model: what the job `evaluate` and evaluations during training share."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from align_jax.config import Config
from align_jax.config.job_sections import EvaluateConfig
from align_jax.data import BatchLoader, GroupDataset, TokenGroup
from align_jax.data.formats import spelled
from align_jax.data.formats.example import Example
from align_jax.errors import MissingPackage, UserError
from align_jax.evaluation import (
    Classifier,
    Endpoint,
    Judge,
    Question,
    Responses,
    Table,
    Verdicts,
    collect,
    evaluated_as,
    measure,
    table_of,
)
from align_jax.evaluation import samples as sampling
from align_jax.evaluation.judges import api_key
from align_jax.evaluation.metrics import Metric, find_metrics
from align_jax.generation import absent_ids, end_ids, response_text, sample_text
from align_jax.models import Decoder
from align_jax.objectives import Objective
from align_jax.recipes.before import report_data
from align_jax.recipes.say import say, say_once, watched, watching
from align_jax.recipes.setup import Setup
from align_jax.terminal import plural

_JUDGE_TEXTS = 20_000  # that the classifier is trained on, at most


@dataclasses.dataclass(frozen=True)
class EvalData:
    """`data.eval`, arranged, with reference log-probs, ready to be scored by any weights of the model's shape.

    Attributes:
      objective: whose metrics are measured. dataset: `data.eval`. loader: its batches.
      metrics: that are measured beside the objective's own. name: of several evaluation sets.
    """

    setup: Setup
    objective: Objective
    dataset: GroupDataset
    loader: BatchLoader
    metrics: list[Metric]
    name: str = ""

    @property
    def key(self) -> str:
        """Its place in the config."""
        return f"data.eval.{self.name}" if self.name else "data.eval"

    def named(self, metric: str) -> str:
        """What a metric of this set is called among those of all."""
        return f"{self.name}/{metric}" if self.name else metric

    @property
    def config(self) -> Config:
        return self.setup.config

    @property
    def beta(self) -> float:
        """Of implicit rewards; a reward model's scores are rewards."""
        return getattr(self.objective, "beta", 1.0)

    @property
    def clusters(self) -> np.ndarray:
        """int `[rows]`; rows with the same prompt are one cluster of the bootstrap."""
        return self.dataset.prompt_ids

    @functools.cached_property
    def units(self) -> np.ndarray:
        """Rows that stand for the different prompts that are sampled, int."""
        return sampling.distinct(self.dataset.unit_ids.tolist(), self.config.evaluate.sampled_prompts)

    def check_room(self, key: str) -> None:
        """UserError where a prompt that is sampled for fills the model's context; `key` asks for the samples."""
        context = self.setup.source.shape.max_length
        full = sum(len(self.dataset[i].prompt) >= context for i in self.units)
        if full:
            raise UserError(
                f"{key}: nothing can be sampled for {plural(full, 'prompt')} of {self.key} as long as the model's context, "
                f"{context} tokens; lower data.max_prompt_tokens ({self.config.data.max_prompt_tokens}), or set {key} to 0"
            )

    @property
    def has_beliefs(self) -> bool:
        return self.objective.arrangement.has_beliefs

    def score(self, params: dict, loader: BatchLoader | None = None) -> Responses:
        """Log-probs of all groups under some weights."""
        data, what = (self.dataset, "evaluating") if loader is None else (self.units, "scoring samples")
        batches = watched(what, (loader or self.loader).eval_batches(), len(data), self.setup.mesh)
        scorer = self.setup.under(params)
        return collect(scorer.for_objective if self.objective.needs_collisions else scorer.batch, batches)

    def report_cut(self, responses: Responses) -> None:
        """Says how many prompts and responses were cut to the `data` section's lengths."""
        prompts, texts = cut_in(responses)
        if prompts or texts:
            limits = f"{self.config.data.max_prompt_tokens} and {self.config.data.max_response_tokens} tokens"
            say(f"{self.key}: cut to {limits}: {plural(prompts, 'prompt')} and {plural(texts, 'response')}")

    def table(self, responses: Responses) -> Table:
        """What log-probs alone say."""
        same = type(self.objective) is type(self.config.objective)
        names, sources, further = self.dataset.group_names, self.dataset.source_names, self.metrics
        return measure(responses, self.objective, self.clusters, names, keep_loss=same, further=further, source_names=sources)

    def unit_table(self, metrics: dict) -> Table:
        """A table of metrics of the sampled prompts."""
        data = self.dataset
        labels = [data[i].labels for i in self.units] if data.group_names or data.source_names else []
        groups = np.asarray([of.get("group_id", -1) for of in labels]) if data.group_names else None
        sources = np.asarray([of["source_id"] for of in labels]) if data.source_names else None
        return table_of(
            metrics, self.clusters[self.units], groups, data.group_names, source_ids=sources, source_names=data.source_names
        )


def cut_in(responses: Responses) -> tuple[int, int]:
    """How many prompts and how many responses were cut."""
    prompts, texts = responses.labels["truncated"].sum(axis=0).tolist()
    return prompts, texts


def eval_data(setup: Setup, passes: int, name: str = "", moving: bool = False) -> EvalData:
    """Reads `data.eval`, with the reference's log-probs where its metrics need them.

    Args:
      passes: how often it will be scored; batches get more shapes where that pays.
      name: of the set, where `setup` is that of one of several, see `eval_sets`.
      moving: the reference is that of a training state, whose log-probs are computed when they are needed.
    """
    config = setup.config
    opened, metrics = setup.opened("eval"), find_metrics(config.evaluate.metrics)
    objective = evaluated_as(config.objective, spelled(opened.format))
    dataset = setup.dataset("eval", objective, opened)
    report_data(f"eval.{name}" if name else "eval", dataset, setup.folder.path)
    loader = setup.loader(dataset, passes + objective.needs_reference)
    if objective.needs_reference and not moving:
        loader.join(setup.reference_logps(dataset, np.arange(len(dataset)), loader.eval_batches()))
    return EvalData(setup, objective, dataset, loader, metrics, name)


def eval_sets(setup: Setup, passes: int, moving: bool = False) -> list[EvalData]:
    """Reads all sets of `data.eval`, one or several by name; none where there is none. `passes`, `moving`: see `eval_data`.

    Raises:
      UserError: one cannot be read; names it.
    """
    found = []
    for name, section in setup.config.data.eval_sets().items():
        try:
            found.append(eval_data(setup.with_data(section) if name else setup, passes, name, moving))
        except UserError as error:
            if not name:
                raise
            raise UserError(f"data.eval.{name}: {error}") from error
    return found


@dataclasses.dataclass(frozen=True)
class Spoken:
    """What a model said: the tables that are known of it, and what is still needed.

    Attributes:
      tables: metrics of the samples. rows: the samples as text, for a file.
      loader, policy: sampled responses and their log-probs, whose KL waits for the reference; or None.
      problem: why not everything was judged, or empty.
    """

    tables: list[Table]
    rows: list[dict]
    loader: BatchLoader | None = None
    policy: Responses | None = None
    problem: str = ""


def speak(data: EvalData, params: dict, samples: int, judge: Judge | None) -> Spoken:
    """Samples for every unit of the data: beliefs and texts where it has beliefs, or responses."""
    speaker = _Speaker(data, Decoder(data.setup.source.shape, params, dtype=data.config.model.dtype), samples)
    if data.has_beliefs:
        return speaker.beliefs(judge)
    sampled, rows = speaker.responses()
    loader = data.setup.loader(sampled, 2)  # under the model and under the reference
    return Spoken([], rows, loader, data.score(params, loader))


@dataclasses.dataclass(frozen=True)
class _Speaker:
    """A model that samples for every unit of the data."""

    data: EvalData
    model: Decoder
    samples: int

    @property
    def options(self) -> dict[str, Any]:
        """Of the sampler."""
        setup, config = self.data.setup, self.data.config
        return dict(
            samples=self.samples,
            max_new_tokens=config.evaluate.max_new_tokens,
            eos_ids=(*setup.encoder.end_ids, *end_ids(setup.encoder.tokenizer, (), setup.source.generation_config)),
            never=absent_ids(setup.encoder.tokenizer, setup.source.shape.vocab_size),
            seed=config.run.seed,
            prompt_ids=self.data.units.tolist(),
            mesh=setup.mesh,
            rows=config.generate.rows,
            progress=watching,
        )

    def units(self) -> tuple[list[TokenGroup], list[Example], list[dict]]:
        """The units as tokens, as rows of the data, and as rows of the file of samples."""
        groups = [self.data.dataset[i] for i in self.data.units]
        examples = [self.data.dataset.example_of(i) for i in self.data.units]
        return groups, examples, [{"prompt": e.prompt} | ({"group": e.group} if e.group else {}) for e in examples]

    def responses(self) -> tuple[sampling.SampledGroups, list[dict]]:
        """Responses to every unit, as a data set and as rows."""
        groups, _, rows = self.units()
        sampled = sampling.sample_responses(self.model, [g.prompt for g in groups], **self.options)
        tokenizer = self.data.setup.encoder.tokenizer
        for row, group, i in zip(rows, groups, range(len(sampled)), strict=True):
            row["responses"] = [response_text(tokenizer, group.prompt, s.tokens.tolist()) for s in sampled[i].segments]
        return sampled, rows

    def beliefs(self, judge: Judge | None) -> Spoken:
        """Beliefs of every unit, and texts of every belief where there is a judge for them."""
        groups, examples, rows = self.units()
        opinions = sampling.opinions_of(groups, [e.opinion.options for e in examples])
        drawn = sampling.draw_beliefs(self.model, opinions, **self.options)
        metrics, problem = sampling.sampled_belief_metrics(drawn, opinions.targets), ""
        for row, beliefs, names in zip(rows, drawn, opinions.options, strict=True):
            row["options"], row["drawn"] = list(names), np.bincount(beliefs, minlength=len(names)).tolist()
        if judge is not None:
            texts = sampling.texts_of_every_belief(self.model, opinions, **self.options)
            _add_texts(rows, texts, opinions, self.data.setup.encoder.tokenizer)
            verdicts = judge_rows(judge, rows)
            problem = verdicts.problem
            metrics |= sampling.consistency_metrics([r["beliefs"] for r in rows], [r["judged"] for r in rows], opinions.options)
            tokenizer = self.data.setup.encoder.tokenizer
            said = [[response_text(tokenizer, [], s) for s in of_prompt] for of_prompt in opinions.statements]
            metrics |= sampling.repetition_metrics([r["responses"] for r in rows], said)
        return Spoken([self.data.unit_table(metrics)], rows, problem=problem)


def _add_texts(rows: list[dict], texts, opinions: sampling.Opinions, tokenizer) -> None:
    for row, pairs, prompt, statements in zip(rows, texts, opinions.prompts, opinions.statements, strict=True):
        row["beliefs"] = [belief for belief, _ in pairs]
        row["responses"] = [sample_text(tokenizer, [*prompt.tolist(), *statements[b]], sample) for b, sample in pairs]


def judge_rows(judge: Judge, rows: Sequence[dict]) -> Verdicts:
    """Has every text judged and writes the answers to `row["judged"]`."""
    flat = [(row, text) for row in rows for text in row["responses"]]
    with watching(f"judging {len(flat)} texts"):
        verdicts = _one_judge(judge, [Question(str(row["prompt"]), tuple(row["options"]), text) for row, text in flat])
    answers = iter(verdicts.answers)
    for row in rows:
        row["judged"] = [next(answers) for _ in row["responses"]]
    return verdicts


def _one_judge(judge: Judge, questions: list[Question]) -> Verdicts:
    """The judge's verdicts; of several processes the first one asks, and all have its answers."""
    if jax.process_count() == 1:
        return judge(questions)
    verdicts = judge(questions) if jax.process_index() == 0 else Verdicts([None] * len(questions))
    codes = np.asarray([-1 if answer is None else answer for answer in verdicts.answers], np.int32)
    codes = multihost_utils.broadcast_one_to_all(codes).tolist()
    return dataclasses.replace(verdicts, answers=[None if code < 0 else code for code in codes])


def divergence_table(data: EvalData, spoken: Spoken, reference: dict) -> Table:
    """The KL to the reference of what a model said, under the reference's weights."""
    scored = data.score(reference, spoken.loader)
    return data.unit_table(sampling.divergence_metrics(spoken.policy, scored.logps))


def judge_of(setup: Setup, sets: Sequence[EvalData]) -> Judge | None:
    """The judge that the config asks for; None where there is nothing to judge, `none` was asked for, or it needs a package.

    Args:
      sets: that are evaluated, of the config of `setup`.
    """
    options: EvaluateConfig = setup.config.evaluate
    with_beliefs = [data for data in sets if data.has_beliefs]
    if options.judge == "none" or not with_beliefs:
        return None
    if options.judge == "classifier":
        try:
            with watching("training the judge"):
                judge = Classifier(_texts(setup, with_beliefs[0]), setup.config.run.seed)
        except MissingPackage as error:
            say_once(f"the consistency of texts and beliefs is not measured: {error}, or set evaluate.judge: none")
            return None
        say("the judge is a classifier of {texts} texts; held out: accuracy {accuracy:.3f}, balanced "
            "{balanced_accuracy:.3f}, always the majority {majority:.3f}".format(**judge.quality))  # fmt: skip
        return judge
    return Endpoint(
        options.judge,
        options.judge_model,
        key=api_key(options.judge_key_variable),
        max_tokens=options.judge_max_tokens,
        timeout=options.judge_timeout,
        concurrency=options.judge_concurrency,
    )


def _texts(setup: Setup, data: EvalData):
    """(text, belief) of people, from `data.train` where it is set."""
    dataset = data.dataset
    if setup.config.data.train is not None:
        dataset = setup.dataset("train", data.objective)
    for i in np.unique(np.linspace(0, len(dataset) - 1, min(len(dataset), _JUDGE_TEXTS // 2)).round().astype(int)):
        example = dataset.example_of(int(i))
        for text, belief in zip(example.responses, (example.opinion.accepted, example.opinion.rejected), strict=True):
            if isinstance(text, str) and belief is not None:
                yield text, example.opinion.options[belief]
