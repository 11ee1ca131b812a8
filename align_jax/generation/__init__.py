"""Sampling with a cache of keys and values; a prompt is computed once for all its samples.

    samples = generate(model, prompts, samples=8, max_new_tokens=128, sampling=Sampling(top_p=0.9), eos_ids=[2], seed=0)
    samples[i][j].tokens, samples[i][j].logp, samples[i][j].finish_reason

    results = generate_beliefs(model, prompts, beliefs, samples=8, max_new_tokens=128, eos_ids=[2], seed=0)
    results[i].distribution, results[i].samples[j].belief, results[i].samples[j].sample.tokens
"""

from align_jax.generation.api import generate, stream
from align_jax.generation.beliefs import BeliefResult, BeliefSample, belief_logps, generate_beliefs, stream_beliefs
from align_jax.generation.sampling import Sampling
from align_jax.generation.slots import Sample
from align_jax.generation.text import StopStrings, absent_ids, end_ids, response_text, sample_text

__all__ = [
    "BeliefResult",
    "BeliefSample",
    "Sample",
    "Sampling",
    "StopStrings",
    "absent_ids",
    "belief_logps",
    "end_ids",
    "generate",
    "generate_beliefs",
    "response_text",
    "sample_text",
    "stream",
    "stream_beliefs",
]
