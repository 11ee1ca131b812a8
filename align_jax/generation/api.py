"""Samples of prompts: all at once, or as they finish."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

from jax.sharding import Mesh

from align_jax.errors import UserError
from align_jax.generation.engine import ROWS, run_requests
from align_jax.generation.sampling import Sampling
from align_jax.generation.slots import Request, Sample, Stop
from align_jax.models import Decoder
from align_jax.terminal import Watch


def generate(model: Decoder, prompts: Sequence[Sequence[int]], **options) -> list[list[Sample]]:
    """All samples of all prompts, in order: `[prompt][sample]`; see `stream` for the options."""
    results: list[list[Sample]] = [[] for _ in prompts]
    for index, samples in stream(model, prompts, **options):
        results[index] = samples
    return results


def stream(
    model: Decoder,
    prompts: Sequence[Sequence[int]],
    *,
    samples: int = 1,
    max_new_tokens: int,
    sampling: Sampling = Sampling(),  # noqa: B008 (frozen)
    eos_ids: Iterable[int] = (),
    never: Iterable[int] = (),
    stop: Stop | None = None,
    seed: int = 0,
    prompt_ids: Sequence[int] | None = None,
    mesh: Mesh | None = None,
    rows: int = ROWS,
    progress: bool | Callable[[str, int, str], Watch] = False,
) -> Iterator[tuple[int, list[Sample]]]:
    """Samples prompts; yields (index of the prompt, its samples) as prompts finish.

    A sample is a function of the weights, its prompt, the sampling, the seed, the prompt's id and the sample's number:
    the mesh, the batch and `rows` do not change it (beyond the rounding of logits).

    Args:
      model: the decoder.
      prompts: token ids, at least one each; of any lengths.
      samples: how many of each prompt.
      max_new_tokens: of each sample; fewer where the model's context ends before.
      sampling: temperature and filters.
      eos_ids: tokens that end a text.
      never: tokens that are not drawn, such as those that the tokenizer does not have (`text.absent_ids`); log-probs remain
        the model's own, over all tokens.
      stop: called on the host as `stop(tokens so far, how many of them are new)`; returns how many tokens to keep, or
        None to go on (`text.StopStrings`).
      seed: of all randomness.
      prompt_ids: what the randomness of each prompt is keyed by; by default its index.
      mesh: where the weights are; None is the default device.
      rows: samples in flight, over all devices; more need more memory.
      progress: show how many samples there are, a bar on a terminal, elsewhere a line every ten seconds; or what makes the
        `Watch` that shows them, of `("sampling", how many, "samples")` and the like.

    Raises:
      UserError: a prompt that is empty or leaves no room in the model's context (by index), or a count below 1.
    """
    check_counts(samples=samples, max_new_tokens=max_new_tokens)
    ids = range(len(prompts)) if prompt_ids is None else prompt_ids
    requests = [
        Request(i, list(prompt), int(key), tuple(range(samples)), max_new_tokens)
        for i, (prompt, key) in enumerate(zip(prompts, ids, strict=True))
    ]
    how = {"sampling": sampling, "eos_ids": eos_ids, "never": never, "stop": stop, "seed": seed, "mesh": mesh, "rows": rows}
    yield from by_prompt(run_requests(model, requests, **how), len(prompts), samples, progress)


def by_prompt(
    results: Iterable[tuple[Request, int, Sample]],
    prompts: int,
    samples: int,
    progress: bool | Callable[[str, int, str], Watch],
) -> Iterator[tuple[int, list[Sample]]]:
    """Gathers what `run_requests` yields; (index, samples in order) of each prompt as soon as it has all of them."""
    finished: dict[int, dict[int, Sample]] = {}
    tokens = 0
    with watch_maker(progress)("sampling", prompts * samples, "samples") as watch:
        for request, number, sample in results:
            tokens += len(sample.tokens)
            watch.add()
            watch.besides = f"{tokens / max(watch.seconds, 1e-9):.0f} tok/s"
            of_prompt = finished.setdefault(request.index, {})
            of_prompt[number] = sample
            if len(of_prompt) == samples:
                del finished[request.index]
                yield request.index, [of_prompt[n] for n in range(samples)]


def watch_maker(progress: bool | Callable[[str, int, str], Watch]) -> Callable[[str, int, str], Watch]:
    """What makes the `Watch` of something, from what `stream` takes as `progress`."""
    return progress if callable(progress) else partial(Watch, show=progress)


def check_counts(**counts: int) -> None:
    """UserError for a count below 1."""
    for name, value in counts.items():
        if value < 1:
            raise UserError(f"{name} must be at least 1, got {value}")
