"""Judges of texts: which belief does a text express? A classifier of the data's own texts, or a chat model at a URL."""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import json
import math
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import numpy as np

from align_jax.errors import UserError, optional


@dataclasses.dataclass(frozen=True)
class Question:
    """A text to judge: what it answers, the beliefs that there are, and the text."""

    prompt: str
    options: tuple[str, ...]
    text: str


@dataclasses.dataclass(frozen=True)
class Verdicts:
    """One answer a question, the number of an option or None; `problem` says why there are None, or is empty."""

    answers: list[int | None]
    problem: str = ""


class Judge(Protocol):
    """What reads beliefs in texts.

    Attributes:
      quality: what is known of the judge itself, for the report.
    """

    quality: dict

    def __call__(self, questions: Sequence[Question]) -> Verdicts: ...


_OF = "evaluate.judge: classifier"


class Classifier:
    """Logistic regression on character n-grams, trained on texts whose belief is known; any language, no download.

    A fifth of the texts is held out to measure it, then it is trained again on all.

    Args:
      texts: (text, belief) of people. seed: of the split.
      balanced: classes are weighted by the inverse of their frequency, because beliefs are imbalanced and a judge must find
        the rare ones, and doubles are dropped; False leaves texts and beliefs as frequent as they are, for probabilities that
        are to be counted, and holds out texts with all their doubles.
      of: who needs it, begins errors.

    Attributes:
      beliefs: that it knows.
      quality: `accuracy`, `balanced_accuracy` and `majority` (the accuracy of always naming the most frequent belief) on
        the held-out texts, how many `texts` there were, and how many of them are `different`.

    Raises:
      UserError: too few texts, or of one belief only.
      MissingPackage: scikit-learn is not installed.
    """

    def __init__(self, texts: Iterable[tuple[str, str]], seed: int = 0, *, balanced: bool = True, of: str = _OF):
        optional("sklearn", "judge", of)
        from sklearn.metrics import accuracy_score, balanced_accuracy_score

        pairs = sorted(texts)
        distinct = sorted(set(pairs))
        _check_enough([belief for _, belief in distinct], of)
        if balanced:
            pairs = distinct
        train, held = (list(zip(*part, strict=True)) for part in _split(pairs, seed, whole=not balanced))
        held_texts, held_labels = held
        guesses = _fit(*train, balanced).predict(list(held_texts))
        self.quality = {
            "judge": "classifier",
            "texts": len(pairs),
            "different": len({text for text, _ in pairs}),
            "accuracy": float(accuracy_score(held_labels, guesses)),
            "balanced_accuracy": float(balanced_accuracy_score(held_labels, guesses)),
            "majority": max(held_labels.count(b) for b in set(held_labels)) / len(held_labels),
        }
        self._model = _fit(*zip(*pairs, strict=True), balanced)
        self.beliefs = tuple(map(str, self._model.classes_))

    def __call__(self, questions: Sequence[Question]) -> Verdicts:
        if not questions:
            return Verdicts([])
        logits = self._model.predict_log_proba([q.text for q in questions])
        column = {belief: i for i, belief in enumerate(self._model.classes_)}
        answers = []
        for question, row in zip(questions, logits, strict=True):
            scores = [row[column[o]] if o in column else -np.inf for o in question.options]
            answers.append(int(np.argmax(scores)) if np.isfinite(scores).any() else None)
        unknown = answers.count(None)
        return Verdicts(answers, f"{unknown} texts have beliefs that the classifier never saw" if unknown else "")

    def posteriors(self, questions: Sequence[Question]) -> list[np.ndarray]:
        """The probability of each option of each question, all of which it knows; they add to 1."""
        column = {belief: i for i, belief in enumerate(self.beliefs)}
        found = self._model.predict_proba([q.text for q in questions])
        chosen = [row[[column[option] for option in q.options]] for q, row in zip(questions, found, strict=True)]
        return [values / values.sum() for values in chosen]


def _check_enough(labels: Sequence[str], of: str) -> None:
    rare = min((labels.count(b) for b in set(labels)), default=0)
    if len(set(labels)) < 2 or rare < 5:
        raise UserError(
            f"{of} needs at least 5 texts of each of two or more beliefs, and the data has "
            f"{dict((b, labels.count(b)) for b in sorted(set(labels)))}; use another judge, or none"
        )


def _split(pairs: Sequence[tuple[str, str]], seed: int, whole: bool) -> tuple[list, list]:
    """(text, belief) to train on, and a fifth that is held out; `whole`: a text stays together, whoever says what of it."""
    from sklearn.model_selection import train_test_split

    units: dict[Any, list[tuple[str, str]]] = collections.defaultdict(list)
    for pair in pairs:
        units[pair[0] if whole else pair].append(pair)
    usual = [collections.Counter(belief for _, belief in unit).most_common(1)[0][0] for unit in units.values()]
    count = collections.Counter(usual)
    strata = [belief if count[belief] > 1 else count.most_common(1)[0][0] for belief in usual]
    fits = min(collections.Counter(strata).values()) > 1 and math.ceil(0.2 * len(units)) >= len(set(strata))
    parts = train_test_split(list(units.values()), test_size=0.2, random_state=seed, stratify=strata if fits else None)
    return tuple([pair for unit in part for pair in unit] for part in parts)


def _fit(texts: Sequence[str], labels: Sequence[str], balanced: bool):
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    features = TfidfVectorizer(analyzer="char_wb", ngram_range=(1, 4), min_df=2, max_features=30_000, sublinear_tf=True)
    model = LogisticRegression(C=3.0, class_weight="balanced" if balanced else None, max_iter=300, tol=1e-3)
    return make_pipeline(features, model).fit(list(texts), list(labels))


_LOST = 4  # questions in a row without any reply, after which an endpoint is given up
_INSTRUCTION = (
    "Question: {prompt}\n\nAnswer of a person: {text}\n\nWhich of these does the answer express: {options}? "
    "Reply with exactly one of them and nothing else."
)


class Endpoint:
    """A chat model behind an OpenAI-compatible URL.

    Args:
      url: the base (`http://localhost:8000/v1`); `/chat/completions` is added.
      model: the model's name there. key: sent as a bearer token where it is set.
      max_tokens: of an answer; a model that reasons first needs many.
      timeout: seconds that an answer may take. retries: tries after the first, for errors of the server and the network.
      concurrency: questions asked at one time.
      wait: seconds before the first new try, doubled for each further one.
    """

    def __init__(self, url: str, model: str, *, key="", max_tokens=32, timeout=60.0, retries=2, concurrency=4, wait=1.0):
        base = url.rstrip("/")
        self.url = base if base.endswith("/chat/completions") else f"{base}/chat/completions"
        self.quality = {"judge": self.url, "model": model}
        self._model, self._key, self._most = model, key, max_tokens
        self._timeout, self._retries, self._concurrency, self._wait = timeout, retries, concurrency, wait
        self._lost: list[str] = []  # why the latest questions got no reply

    def __call__(self, questions: Sequence[Question]) -> Verdicts:
        """Asks all; questions that get no answer, or one that names no option, are left out and counted."""
        if not questions:
            return Verdicts([])
        self._lost.clear()
        with concurrent.futures.ThreadPoolExecutor(self._concurrency) as pool:
            results = list(pool.map(self._ask, questions))
        failed = [r for r in results if isinstance(r, str)]
        answers = [None if isinstance(r, str) else r for r in results]
        done = len(results) - len(failed)
        return Verdicts(answers, f"{self.url}: {failed[0]}; {done} of {len(results)} texts judged" if failed else "")

    def _ask(self, question: Question) -> int | str:
        """The number of an option, or why there is none."""
        if len(self._lost) >= _LOST:
            return self._lost[0]  # nobody is there: do not wait for the others one after the other
        text = _INSTRUCTION.format(prompt=question.prompt, text=question.text, options=", ".join(question.options))
        messages = [{"role": "user", "content": text}]
        body = {"model": self._model, "temperature": 0, "max_tokens": self._most, "messages": messages}
        reply = self._post(json.dumps(body).encode())
        if isinstance(reply, str):
            self._lost.append(reply)
            return reply
        self._lost.clear()
        try:
            content = _text_of(json.loads(reply)["choices"][0]["message"]["content"])
        except (ValueError, KeyError, IndexError, TypeError, AttributeError):
            return f"not a chat completion: {_short(reply.decode(errors='replace'))}"
        if not content.strip():
            return f"an answer without text (evaluate.judge_max_tokens is {self._most})"
        named = options_in(content, question.options)
        return named[0] if len(named) == 1 else f"an answer that names no single option: {_short(content)}"

    def _post(self, body: bytes) -> bytes | str:
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self._key}"} if self._key else {})
        request, reason = urllib.request.Request(self.url, body, headers), ""
        for n in range(self._retries + 1):
            if n:
                time.sleep(self._wait * 2 ** (n - 1))
            try:
                with urllib.request.urlopen(request, timeout=self._timeout) as response:
                    return response.read()
            except urllib.error.HTTPError as error:
                reason = f"HTTP {error.code} {error.reason}"
                if error.code < 500 and error.code != 429:
                    return reason
            except (urllib.error.URLError, TimeoutError, OSError) as error:
                reason = f"no answer ({getattr(error, 'reason', None) or error or type(error).__name__})"
            except Exception as error:  # http.client's, for what is not HTTP
                reason = f"not HTTP: {type(error).__name__}"
        return reason


def _text_of(content: str | list | None) -> str:
    """The text of a reply, which may come in parts, or be absent (a refusal, or reasoning that took all tokens)."""
    if content is None:
        return ""
    if isinstance(content, list):
        return "".join(part["text"] for part in content if part.get("type") == "text")
    if not isinstance(content, str):
        raise TypeError(f"content is {type(content).__name__}")
    return content


def options_in(content: str, options: Sequence[str]) -> list[int]:
    """Numbers of the options that a reply names as whole words, whatever the case; the longer name where one holds another."""
    rest, found = content.casefold(), []
    for i in sorted(range(len(options)), key=lambda i: -len(options[i])):
        name = rf"(?<!\w){re.escape(options[i].casefold())}(?!\w)"
        if re.search(name, rest):
            found.append(i)
            rest = re.sub(name, " ", rest)
    return sorted(found)


def _short(text: str) -> str:
    text = " ".join(text.split())
    return repr(text if len(text) <= 60 else text[:57] + "...")


def api_key(variable: str | None) -> str:
    """The value of an environment variable; UserError where it is named and not set."""
    if variable is None:
        return ""
    if variable not in os.environ:
        raise UserError(f"evaluate.judge_key_variable: the environment variable {variable} is not set")
    return os.environ[variable]
