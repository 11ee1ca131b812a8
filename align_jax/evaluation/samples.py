"""What a model does when it speaks: responses for the KL to the reference, beliefs and texts for GDPO."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Hashable, Sequence

import numpy as np

from align_jax.data import Segment, TokenGroup
from align_jax.data.packing.plan import GroupSize, group_size
from align_jax.evaluation.responses import Responses
from align_jax.evaluation.table import Sums
from align_jax.generation import Sample, generate, generate_beliefs
from align_jax.losses import jensen_shannon_distance
from align_jax.models import Decoder

_SIZES = 256  # groups whose lengths stand for those of all


def distinct(keys: Sequence[Hashable], most: int | None) -> np.ndarray:
    """Where each different key stands first, int; of more than `most`, that many evenly spaced ones."""
    first = np.asarray(sorted({key: i for i, key in reversed(list(enumerate(keys)))}.values()))
    if most is None or len(first) <= most:
        return first
    return first[np.linspace(0, len(first) - 1, most).round().astype(int)]


class SampledGroups:
    """Sampled responses as a data set of groups, for `data.BatchLoader`: the same prompts, other responses.

    Args:
      prompts: int32 `[m]` each. responses: the tokens of every prompt's responses, equally many each.
    """

    def __init__(self, prompts: Sequence[np.ndarray], responses: Sequence[Sequence[np.ndarray]]):
        self._prompts, self._responses = prompts, responses
        self.slots = len(responses[0])
        longest = max(len(tokens) for of_prompt in responses for tokens in of_prompt)
        self.limits = (max(1, max(map(len, prompts)) - 1), longest)

    def __len__(self) -> int:
        return len(self._prompts)

    def __getitem__(self, index: int) -> TokenGroup:
        segments = tuple(Segment(np.asarray(tokens, np.int32), k) for k, tokens in enumerate(self._responses[index]))
        return TokenGroup(int(index), self._prompts[index], segments, self.slots)

    @functools.cached_property
    def sizes(self) -> list[GroupSize]:
        return [group_size(self[i]) for i in range(min(len(self), _SIZES))]


def sample_responses(model: Decoder, prompts: Sequence[np.ndarray], **options) -> SampledGroups:
    """Responses at temperature 1, no filter: draws from the policy itself; options as of `align_jax.generation.stream`."""
    drawn: list[list[Sample]] = generate(model, [p.tolist() for p in prompts], **options)
    return SampledGroups(prompts, [[sample.tokens for sample in of_prompt] for of_prompt in drawn])


def divergence_metrics(policy: Responses, reference: np.ndarray) -> Sums:
    """KL to the reference, from the policy's own samples; a (sum, weight) per prompt.

      kl/reference = E_{y ~ pi}[ log pi(y|x) - log pi_ref(y|x) ],  in nats per response,

    the plain Monte-Carlo estimator over whole responses: unbiased for responses of at most the sampled length, so a
    sample of it may be negative. `kl/reference_per_token` divides the sum over all responses by all their tokens.

    Args:
      policy: the samples `[n, S]` scored by the policy. reference: the same, scored by the reference.
    """
    ratios = np.where(policy.mask, policy.logps - reference, 0.0).sum(-1)
    count, tokens = policy.mask.sum(-1), np.where(policy.mask, policy.lengths, 0).sum(-1)
    return {"kl/reference": (ratios, count), "kl/reference_per_token": (ratios, tokens)}


@dataclasses.dataclass(frozen=True)
class Opinions:
    """The belief side of some groups: statements as tokens, names, and the target distribution of each."""

    prompts: list[np.ndarray]
    statements: list[list[list[int]]]
    options: list[tuple[str, ...]]
    targets: list[np.ndarray]


def opinions_of(groups: Sequence[TokenGroup], options: Sequence[tuple[str, ...]]) -> Opinions:
    """Takes the beliefs out of groups of arrangement `Beliefs`, whose first segments are the statements of the options."""
    statements = [[s.tokens.tolist() for s in g.segments[: len(o)]] for g, o in zip(groups, options, strict=True)]
    targets = [g.labels["target_probs"][: len(o)] for g, o in zip(groups, options, strict=True)]
    return Opinions([g.prompt for g in groups], statements, list(options), targets)


def draw_beliefs(model: Decoder, opinions: Opinions, prompt_ids: Sequence[int], **options) -> list[np.ndarray]:
    """Draws of a belief, `b ~ pi(b|x)` renormalised over the beliefs: int `[samples]` for each prompt."""
    options |= {"prompt_ids": prompt_ids, "max_new_tokens": 1}  # the sampler draws a text too
    results = generate_beliefs(model, [p.tolist() for p in opinions.prompts], opinions.statements, **options)
    return [np.asarray([s.belief for s in result.samples]) for result in results]


def texts_of_every_belief(
    model: Decoder, opinions: Opinions, samples: int, prompt_ids: Sequence[int], **options
) -> list[list[tuple[int, Sample]]]:
    """(belief, text) at temperature 1, `y ~ pi(y|b,x)`: about `samples` of each prompt, of every belief equally many."""
    each = max(1, samples // max(map(len, opinions.options)))
    jobs = [(i, b) for i, names in enumerate(opinions.options) for b in range(len(names))]
    results = generate_beliefs(
        model,
        [opinions.prompts[i].tolist() for i, _ in jobs],
        [opinions.statements[i] for i, _ in jobs],
        fixed=[b for _, b in jobs],
        samples=each,
        prompt_ids=[prompt_ids[i] for i, _ in jobs],
        **options,
    )
    texts: list[list[tuple[int, Sample]]] = [[] for _ in opinions.prompts]
    for (i, b), result in zip(jobs, results, strict=True):
        texts[i] += [(b, s.sample) for s in result.samples]
    return texts


def sampled_belief_metrics(drawn: Sequence[np.ndarray], targets: Sequence[np.ndarray]) -> Sums:
    """Jensen-Shannon distance between the frequencies of the drawn beliefs and the target; a (sum, weight) per prompt.

    Frequencies of S draws are not a distribution known exactly: a model that predicts p* is still at a distance of about
    `sqrt((N - 1) / (8 S))` for N beliefs. A prompt whose target nobody knows (NaN) counts nothing.
    """
    distances = []
    for beliefs, target in zip(drawn, targets, strict=True):
        counts = np.bincount(beliefs, minlength=len(target)).astype(np.float64)
        distances.append(float(jensen_shannon_distance(counts / counts.sum(), target)))
    found = np.asarray(distances)
    return {"beliefs/js_distance_sampled": (np.where(np.isnan(found), 0.0, found), (~np.isnan(found)).astype(float))}


def consistency_metrics(
    drawn: Sequence[Sequence[int]], judged: Sequence[Sequence[int | None]], options: Sequence[tuple[str, ...]]
) -> Sums:
    """How often a text says the belief that it was conditioned on, by a judge; a (sum, weight) per prompt.

    With equally many texts of every belief (`texts_of_every_belief`), a model whose texts ignore the belief has 1/N,
    whatever it says, and models that predict different beliefs can be compared. `consistency/belief/<name>` is the same
    among the texts of one belief.

    Args:
      drawn: beliefs of each prompt's texts. judged: what the judge read in them; None was not judged and does not count.
      options: names of each prompt's beliefs.
    """
    names = sorted({name for of_prompt in options for name in of_prompt})
    totals = {name: np.zeros((2, len(drawn))) for name in ["", *names]}
    for i, (beliefs, answers) in enumerate(zip(drawn, judged, strict=True)):
        for belief, answer in zip(beliefs, answers, strict=True):
            for name in ("", options[i][belief]) if answer is not None else ():
                totals[name][:, i] += (belief == answer, 1)
    whole = totals.pop("")
    if not whole[1].any():
        return {}
    by_belief = {f"consistency/belief/{name}": tuple(both) for name, both in totals.items()}
    chance = whole[1] / np.asarray([max(len(of_prompt), 1) for of_prompt in options])
    return {"consistency/accuracy": tuple(whole), "consistency/chance": (chance, whole[1]), **by_belief}


def repetition_metrics(texts: Sequence[Sequence[str]], statements: Sequence[Sequence[str]]) -> Sums:
    """`consistency/repeats_statement`: how many texts hold a belief statement of their prompt once more.

    A statement counts with its marks (`(Negative)`, `1<Yes>`) wherever it stands, and one that is only words, which people
    use too, where it is a line of its own.

    Args:
      texts: of each prompt, without the statement that they were conditioned on. statements: all of each prompt, as text.
    """
    again = [sum(map(_repeats(names), of_prompt)) for of_prompt, names in zip(texts, statements, strict=True)]
    return {"consistency/repeats_statement": (np.asarray(again, np.float64), np.asarray([len(t) for t in texts]))}


def _repeats(statements: Sequence[str]) -> Callable[[str], bool]:
    stripped = [re.escape(s.strip()) for s in statements if s.strip()]
    plain = [s.strip().replace(" ", "").isalnum() for s in statements if s.strip()]
    parts = [f"^[ \t]*{s}[ \t]*$" if is_plain else s for s, is_plain in zip(stripped, plain, strict=True)]
    found = re.compile("|".join(parts) or "(?!)", re.MULTILINE)
    return lambda text: found.search(text) is not None
