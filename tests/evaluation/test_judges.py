"""Judges: the classifier on texts that it can and cannot tell apart; an endpoint that answers, babbles, fails or is silent."""

from __future__ import annotations

import contextlib
import http.server
import json
import sys
import threading
import time

import numpy as np
import pytest

from align_jax.errors import UserError
from align_jax.evaluation import Classifier, Endpoint, Question
from align_jax.evaluation.judges import _split, api_key, options_in
from align_jax.experiments import opinions

OPTIONS = ("Negative", "Neutral", "Positive")


def texts(count, seed):
    rng = np.random.default_rng(seed)
    for i in range(count):
        belief = opinions.BELIEFS[0 if i % 10 else 1 + i // 10 % 3]  # 90% of one belief
        yield opinions.sentence(rng, str(rng.choice(opinions.TOPICS)), belief), belief


def test_the_classifier_reads_imbalanced_beliefs():
    judge = Classifier(texts(1500, 0))
    assert judge.quality["accuracy"] > 0.97 and judge.quality["balanced_accuracy"] > 0.9
    assert 0.5 < judge.quality["majority"] < 0.95
    fresh = list(texts(200, 1))
    verdicts = judge([Question("?", opinions.BELIEFS, text) for text, _ in fresh])
    right = np.mean([opinions.BELIEFS[a] == belief for a, (_, belief) in zip(verdicts.answers, fresh, strict=True)])
    assert right > 0.95 and verdicts.problem == ""
    # Only the options that a question has can be answered, in its own order.
    swapped = judge([Question("?", ("unsure", "oppose"), "i am against city parks because they cost too much .")])
    assert swapped.answers == [1]
    unknown = judge([Question("?", ("ja", "nein"), "no")])
    assert unknown.answers == [None] and "never saw" in unknown.problem


def test_its_held_out_accuracy_is_of_texts_that_it_was_not_trained_on():
    rng = np.random.default_rng(0)
    noise = [("".join(rng.choice(list("abcdefgh "), 40)), f"belief {i % 2}") for i in range(400)]
    assert Classifier(noise).quality["accuracy"] < 0.7  # there is nothing to learn


def test_doubles_count_in_probabilities_and_are_never_on_both_sides_of_the_split():
    plain = [(f"{word} number {i}", belief) for belief, word in (("yes", "surely"), ("no", "never")) for i in range(5)]
    torn = [("It depends on the day.", "yes")] * 90 + [("It depends on the day.", "no")] * 10
    judge = Classifier(plain + torn, balanced=False)
    (found,) = judge.posteriors([Question("?", ("no", "yes"), "It depends on the day.")])
    np.testing.assert_allclose(found, (0.1, 0.9), atol=0.03)
    assert (judge.quality["texts"], judge.quality["different"]) == (110, 11)
    for seed in range(5):
        train, held = _split(sorted(plain + torn), seed, whole=True)
        assert len(train) + len(held) == 110 and not {text for text, _ in train} & {text for text, _ in held}
        assert len({text for text, _ in held}) == 3
    assert Classifier(plain + torn).quality["texts"] == 12  # a judge must find the rare: each text and belief once


def test_without_scikit_learn_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(UserError, match=r"evaluate.judge: classifier needs sklearn: pip install 'align-jax\[judge\]'"):
        Classifier(texts(100, 0))


def test_too_few_texts_are_refused():
    with pytest.raises(UserError, match="at least 5 texts of each of two or more beliefs.*'no': 2"):
        Classifier([("yes", "yes"), ("yes!", "yes"), ("no", "no"), ("no!", "no"), ("no", "no")])


@contextlib.contextmanager
def server(answer):
    """A local endpoint; `answer(body)` -> (status, bytes) or None to stay silent. Yields (url, requests seen)."""
    seen = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            seen.append((self.path, self.headers.get("Authorization"), body))
            reply = answer(body)
            if reply is None:
                time.sleep(0.5)
                return
            self.send_response(reply[0])
            self.end_headers()
            self.wfile.write(reply[1])

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{running.server_port}/v1", seen
        finally:
            running.shutdown()
            thread.join()


def says(text):
    return 200, json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]}).encode()


def questions(count):
    return [Question("How are you?", OPTIONS, f"text {i}") for i in range(count)]


def fast(url, **options):
    return Endpoint(url, "a-model", **{"timeout": 60.0, "wait": 0.01, **options})


def test_an_endpoint_that_answers():
    def answer(body):
        number = int(body["messages"][0]["content"].split("text ")[1].split()[0])
        return says(["The answer is **positive**.", "Negative", "neutral\n"][number % 3])

    with server(answer) as (url, seen):
        verdicts = fast(url, key="secret", concurrency=3)(questions(7))
    assert verdicts.answers == [2, 0, 1, 2, 0, 1, 2] and verdicts.problem == ""
    path, authorization, body = seen[0]
    assert path == "/v1/chat/completions" and authorization == "Bearer secret"
    assert body["model"] == "a-model" and body["temperature"] == 0
    assert all(part in body["messages"][0]["content"] for part in ("How are you?", "Negative, Neutral, Positive"))


@pytest.mark.parametrize(
    "reply, reason",
    [
        (says("I cannot say."), "an answer that names no single option: 'I cannot say.'"),
        (says("Positive or Negative"), "names no single option"),
        ((200, b"<html>hello</html>"), "not a chat completion: '<html>hello</html>'"),
        ((200, b'{"choices": []}'), "not a chat completion"),
        (says(None), r"an answer without text (evaluate.judge_max_tokens is 32)"),
        (says([{"type": "image"}]), "an answer without text"),
        (says(["Positive"]), "not a chat completion"),
        (says(3), "not a chat completion"),
    ],
    ids=["no option", "two options", "no JSON", "no choice", "no content", "no text", "bad parts", "a number"],
)
def test_nonsense_is_left_out_and_the_rest_is_kept(reply, reason):
    def answer(body):
        return reply if "text 1\n" in body["messages"][0]["content"] else says("Neutral")

    with server(answer) as (url, _):
        verdicts = fast(url)(questions(4))
    assert verdicts.answers == [1, None, 1, 1]
    assert reason in verdicts.problem and "3 of 4 texts judged" in verdicts.problem and "\n" not in verdicts.problem


def test_an_answer_in_parts_and_as_long_as_asked_for():
    with server(lambda body: says([{"type": "text", "text": "Posi"}, {"type": "text", "text": "tive"}])) as (url, seen):
        assert fast(url, max_tokens=900)(questions(1)).answers == [2]
    assert seen[0][2]["max_tokens"] == 900


def test_an_error_of_the_server_is_tried_again():
    codes = iter([500, 429, 503])

    def answer(_):
        code = next(codes, None)
        return says("Positive") if code is None else (code, b"busy")

    with server(answer) as (url, seen):
        verdicts = fast(url, concurrency=1)(questions(3))
    assert verdicts.answers == [None, 2, 2] and len(seen) == 5
    assert "HTTP 503" in verdicts.problem


@pytest.mark.parametrize("reply, reason", [((401, b"no key"), "HTTP 401"), ((500, b""), "HTTP 500"), (None, "no answer")])
def test_an_endpoint_that_fails_is_given_up(reply, reason):
    with server(lambda _: reply) as (url, seen):
        limit = {"timeout": 0.2} if reply is None else {}
        verdicts = fast(url, concurrency=1, retries=1, **limit)(questions(50))
    assert verdicts.answers == [None] * 50
    assert reason in verdicts.problem and "0 of 50 texts judged" in verdicts.problem
    assert len(seen) <= 8


def test_nobody_there():
    with server(lambda _: None) as (url, _):
        pass  # the port is closed again
    began = time.perf_counter()
    verdicts = fast(url)(questions(1000))
    assert "no answer" in verdicts.problem and set(verdicts.answers) == {None} and time.perf_counter() - began < 30


@pytest.mark.parametrize(
    "content, numbers",
    [("Strongly agree", [1]), ("agree", [0]), ("disagree", []), ("AGREE.", [0]), ("agree; strongly agree", [0, 1]), ("", [])],
)
def test_options_are_whole_words_and_the_longest(content, numbers):
    assert options_in(content, ("Agree", "Strongly agree")) == numbers


def test_a_key_that_is_not_set_is_named(monkeypatch):
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    with pytest.raises(UserError, match="environment variable NO_SUCH_KEY is not set"):
        api_key("NO_SUCH_KEY")
    monkeypatch.setenv("A_KEY", "x")
    assert (api_key("A_KEY"), api_key(None)) == ("x", "")
