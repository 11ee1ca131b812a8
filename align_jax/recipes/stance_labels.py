"""Who says which belief an answer expresses: a language model, a classifier of labelled texts, or a chat model at a URL."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np

from align_jax.config import Config
from align_jax.data import DataConfig, Encoder
from align_jax.data.formats import Example
from align_jax.data.formats.example import Text
from align_jax.data.formats.messages import words
from align_jax.data.opened import open_data
from align_jax.data.sources import Part, RowError, open_source
from align_jax.errors import UserError, check_range, optional
from align_jax.evaluation import Classifier, Endpoint, Question
from align_jax.evaluation.judges import api_key
from align_jax.recipes.models import current_model, model_at
from align_jax.recipes.say import say, watching
from align_jax.recipes.setup import Setup
from align_jax.registry import suggest
from align_jax.scoring.stances import StanceGroup, score_stances, stance_groups
from align_jax.terminal import plural

Place = tuple[int, int]  # (row, response)
_BLOCK = 64  # questions that an endpoint is asked before progress is shown


@dataclasses.dataclass(frozen=True)
class Labelling:
    """How answers are labelled.

    Attributes:
      by: model, classifier or endpoint.
      options: the beliefs that there are; None: those of the rows.
      model: for `model`, a folder, hub id or run folder; None: that of the config.
      prior: for `model`, of the beliefs before the answer is read: model, `pi(b|x)`; or uniform, for one that never learned
        their statements.
      labelled: for `classifier`, a file of texts whose belief is known: columns `text` and `belief`, or format gdpo.
      min_posterior: answers whose belief is less sure are left out, and counted.
      force: replace a file that is there.
    """

    by: str
    options: tuple[str, ...] | None = None
    model: str | None = None
    prior: str | None = None
    labelled: str | None = None
    min_posterior: float = 0.0
    force: bool = False

    def __post_init__(self):
        if self.by not in LABELLERS:
            raise UserError(f"--by: {self.by!r} is not one of {', '.join(LABELLERS)}")
        if self.options is not None and (len(set(self.options)) < 2 or len(set(self.options)) < len(self.options)):
            raise UserError(f"--options: expected at least two different beliefs, got {', '.join(self.options)}")
        check_range("--min-posterior", self.min_posterior, 0, 1)
        for name, by in (("model", "model"), ("prior", "model"), ("labelled", "classifier")):
            if getattr(self, name) is not None and self.by != by:
                raise UserError(f"--{name}: {getattr(self, name)} is not used by --by {self.by}, only by --by {by}")
        if self.prior not in (None, "model", "uniform"):
            raise UserError(f"--prior: {self.prior!r} is not one of model, uniform")
        if self.by == "classifier" and self.labelled is None:
            raise UserError("--by classifier needs --labelled FILE: texts whose belief is known")


@dataclasses.dataclass(frozen=True)
class Labelled:
    """What is known of the answers.

    Attributes:
      posteriors: (row, response) -> the probability of each belief, float64 `[N]`.
      problem: why others are not there. learned: answers whose label was known to who labelled them.
    """

    posteriors: dict[Place, np.ndarray]
    problem: str = ""
    learned: set[Place] = dataclasses.field(default_factory=set)


# The rows and the beliefs of each -> what is known of their answers.
Labeller = Callable[[Sequence[Example], Sequence[tuple[str, ...]]], Labelled]


def by_model(config: Config, how: Labelling) -> Labeller:
    """The model's own posterior, `softmax_b [log pi(b|x) + log pi(y|b,x)]`; see `scoring.stances`."""
    if how.model is None and config.model.path is None and config.model.config is None:
        raise UserError("--by model needs one: --model PATH, or model.path in the config")
    source = current_model(config) if how.model is None else model_at(how.model, "lm_head", "--model")
    setup = Setup.of(config, source)

    def label(examples: Sequence[Example], options: Sequence[tuple[str, ...]]) -> Labelled:
        encoder = Encoder(source.tokenizer, config.data, source.shape.vocab_size)
        groups = _encoded(examples, options, encoder)
        if cut := sum(group.cut for group in groups):
            say(f"{plural(cut, 'answer')} cut to data.max_response_tokens ({config.data.max_response_tokens})")
        _check_room(groups, source.shape.max_length)
        weights, step = setup.load(source)
        say(f"the beliefs are those that {source.describe()} finds" + (f" at step {step}" if step is not None else ""))
        scorer, posteriors, uniform = setup.under(weights), {}, how.prior == "uniform"
        with watching("labelling", sum(len(group.places) for group in groups), "answers") as watch:
            for place, values in score_stances(groups, partial(scorer.groups, rows=config.score.batch_rows), uniform):
                posteriors[place] = values
                watch.add()
        if not uniform and len({int(np.argmax(values)) for values in posteriors.values()}) == 1 < len(posteriors):
            say("every answer has the same belief: a model that never learned the statements finds one of them the most likely "
                "whatever is answered; --prior uniform leaves that out, --by classifier needs no model")  # fmt: skip
        return Labelled(posteriors)

    return label


def _encoded(examples, options, encoder: Encoder) -> list[StanceGroup]:
    with watching("tokenizing", sum(len(example.responses) for example in examples), "answers") as watch:
        groups = []
        try:
            for group in stance_groups(examples, options, encoder):
                groups.append(group)
                watch.add(len(group.places))
        except RowError as error:
            raise UserError(f"after {plural(len(groups), 'group')} of answers: {error}") from error
    return groups


def _check_room(groups: Sequence[StanceGroup], most: int) -> None:
    for group in groups:
        segments = group.tokens.segments
        longest = max(len(s.tokens) + len(segments[s.parent].tokens) for s in segments if s.parent >= 0)
        if len(group.tokens.prompt) + longest > most:
            raise UserError(
                f"a prompt with a belief and its longest answer has {len(group.tokens.prompt) + longest} tokens, more than the "
                f"{most} of the model's context; lower data.max_prompt_tokens and data.max_response_tokens"
            )


def by_classifier(config: Config, how: Labelling) -> Labeller:
    """A classifier of the texts of `--labelled`, trained once there is something to label."""
    optional("sklearn", "judge", "--by classifier")
    texts = list(labelled_texts(how.labelled))

    def label(examples: Sequence[Example], options: Sequence[tuple[str, ...]]) -> Labelled:
        wanted, there = {o for own in options for o in own}, {belief for _, belief in texts}
        _check_known(how.labelled, sorted(wanted - there), sorted(there))
        with watching("training the classifier"):
            judge = Classifier(texts, config.run.seed, balanced=False, of="--labelled")
        say("the classifier was trained on {texts} labelled texts ({different} different); held out: accuracy {accuracy:.3f}, "
            "balanced {balanced_accuracy:.3f}, always the most frequent {majority:.3f}".format(**judge.quality))  # fmt: skip
        foreign = tuple(sorted(there - wanted))
        places, questions = _questions(examples, [(*own, *foreign) for own in options])
        posteriors = {}
        with watching("labelling", len(places), "answers") as watch:
            for start in range(0, len(places), 1024):
                block = slice(start, start + 1024)
                found = judge.posteriors(questions[block])
                posteriors |= zip(places[block], found, strict=True)
                watch.add(len(found))
        seen = {text for text, _ in texts}
        known = _of_options(posteriors, options)
        problem = ""
        if foreign:
            names = ", ".join(map(repr, foreign))
            say(f"--labelled: {how.labelled} also has {names}, which no row has among its options: answers that seem to mean "
                "that are left out, of the others the probabilities are divided among the options")  # fmt: skip
            problem = f"they seem to mean what is no option ({names})"
        return Labelled(known, problem, {p for p, q in zip(places, questions, strict=True) if q.text in seen})

    return label


def _check_known(path: str, unknown: Sequence[str], there: Sequence[str]) -> None:
    """UserError for options that no labelled text has."""
    if unknown:
        near = suggest(unknown[0], there)
        raise UserError(
            f"--labelled: {path} has no text of {', '.join(map(repr, unknown))}; {near}it has {', '.join(map(repr, there))}"
        )


def _of_options(posteriors: dict[Place, np.ndarray], options: Sequence[tuple[str, ...]]) -> dict[Place, np.ndarray]:
    """The posteriors over a row's options alone, without the answers that more probably mean something else."""
    kept = {place: (values, len(options[place[0]])) for place, values in posteriors.items()}
    return {place: values[:n] / values[:n].sum() for place, (values, n) in kept.items() if np.argmax(values) < n}


def labelled_texts(path: str) -> Iterator[tuple[str, str]]:
    """(text, belief) of a file with columns `text` and `belief`, or of the accepted texts of format gdpo: these hold a belief
    as often as people do, and rejected ones were chosen to differ.

    Raises:
      UserError: a file that is neither.
    """
    source = open_source(path, Part())
    if {"text", "belief"} <= source[0].keys():
        for number in range(len(source)):
            row = source[number]
            if not all(isinstance(row.get(name), str) and row[name].strip() for name in ("text", "belief")):
                raise UserError(f"{source.where(number)}: expected texts in the columns `text` and `belief`")
            yield row["text"], row["belief"]
        return
    opened = open_data(DataConfig(train=path), "train", None)
    for number in range(len(opened.source)):
        try:
            example = opened.format.read(opened.source[number])
        except RowError as error:
            raise UserError(f"{opened.source.where(number)}: {error}") from error
        opinion = example.opinion
        if opinion is None or opinion.accepted is None:
            raise UserError(
                f"--labelled: {opened.source.where(number)} has no labels: give columns `text` and `belief`, or format gdpo"
            )
        yield _plain(example.responses[0]), opinion.options[opinion.accepted]


def by_endpoint(config: Config, how: Labelling) -> Labeller:
    """A chat model behind `evaluate.judge`, which names one belief or none: what it names has posterior 1."""
    options = config.evaluate
    if not options.judge.startswith(("http://", "https://")):
        raise UserError("--by endpoint needs --evaluate.judge http://.../v1 and --evaluate.judge_model NAME")
    judge = Endpoint(
        options.judge,
        options.judge_model,
        key=api_key(options.judge_key_variable),
        max_tokens=options.judge_max_tokens,
        timeout=options.judge_timeout,
        concurrency=options.judge_concurrency,
    )

    def label(examples: Sequence[Example], options: Sequence[tuple[str, ...]]) -> Labelled:
        places, questions = _questions(examples, options)
        posteriors, problem = {}, ""
        with watching("labelling", len(places), "answers") as watch:
            for start in range(0, len(places), _BLOCK):
                now, asked = places[start : start + _BLOCK], questions[start : start + _BLOCK]
                verdicts = judge(asked)
                problem = problem or verdicts.problem
                for place, question, answer in zip(now, asked, verdicts.answers, strict=True):
                    if answer is not None:
                        posteriors[place] = np.eye(len(question.options))[answer]
                watch.add(len(now))
                if all(answer is None for answer in verdicts.answers):
                    problem = f"{verdicts.problem}; gave up after {start + len(now)} of {len(places)}"
                    break
        return Labelled(posteriors, problem)

    return label


def _questions(examples: Sequence[Example], options: Sequence[tuple[str, ...]]) -> tuple[list[Place], list[Question]]:
    places = [(i, k) for i, example in enumerate(examples) for k in range(len(example.responses))]
    questions = [Question(_plain(examples[i].prompt), options[i], _plain(examples[i].responses[k])) for i, k in places]
    return places, questions


def _plain(text: Text) -> str:
    """The words of a text or conversation."""
    return text if isinstance(text, str) else "\n".join(words(message) for message in text)


# `--by` -> what makes a labeller, which checks at once what it needs.
LABELLERS: dict[str, Callable[[Config, Labelling], Labeller]] = {
    "model": by_model,
    "classifier": by_classifier,
    "endpoint": by_endpoint,
}
