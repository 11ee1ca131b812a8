"""The beliefs that the rows of a data set accept, counted by prompt; and the distribution of each prompt from them."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping

import numpy as np

from align_jax.data.config import DataConfig
from align_jax.data.encode import plain_key
from align_jax.data.formats.example import Example
from align_jax.data.targets import BeliefPosterior, choose_strength, mean_distribution, posterior
from align_jax.errors import UserError
from align_jax.terminal import plural


@dataclasses.dataclass
class Tally:
    """What was answered to one prompt.

    Attributes:
      options: the beliefs that there are. group: who answered. counts: float64 `[N]`, answers of each belief.
      rows: how many there are, also of those whose belief nobody says. without: of them, those without a distribution.
    """

    options: tuple[str, ...]
    group: str
    counts: np.ndarray
    rows: int = 0
    without: int = 0


class Tallies:
    """Counts of accepted beliefs by prompt key (`data.encode.plain_key`), filled row by row."""

    def __init__(self):
        self.by_prompt: dict[str, Tally] = {}
        self._without = 0

    def add(self, example: Example, weights: np.ndarray | None = None) -> None:
        """Counts a row.

        Args:
          weights: `[N]`, how much of the answer belongs to each belief; None: all of it to the accepted one.
        """
        opinion = example.opinion
        key = plain_key(example)
        if key not in self.by_prompt:
            self.by_prompt[key] = Tally(opinion.options, example.group, np.zeros(len(opinion.options)))
        tally = self.by_prompt[key]
        tally.rows += 1
        self._without += opinion.probabilities is None
        tally.without += opinion.probabilities is None
        if weights is not None:
            tally.counts += weights
        elif opinion.accepted is not None:
            tally.counts[opinion.accepted] += 1

    def targets(self, config: DataConfig) -> tuple[dict[str, BeliefPosterior], list[str]]:
        """The posterior of every prompt's distribution, and what there is to say of them.

        Raises:
          UserError: `data.target: given`, and rows without a distribution.
        """
        if config.target == "given" and self._without:
            raise UserError(
                f"data.target: given, but {plural(self._without, 'row has', 'rows have')} no `probabilities`; add them, or set "
                "data.target: auto, which estimates those that are missing"
            )
        known = {key: tally for key, tally in self.by_prompt.items() if tally.counts.any()}
        if config.target_shrink == "none" or config.target == "given" or not (self._without or config.target == "estimate"):
            return {key: posterior(tally.counts, _prior(tally, config)) for key, tally in known.items()}, []
        return _shrunk(known, config) if known else ({}, [])

    def estimated(self, config: DataConfig) -> list[str]:
        """A line about the distributions that are taken from the rows' answers."""
        every = config.target == "estimate"
        rows = [tally.rows for tally in self.by_prompt.values() if every or tally.without]
        if config.target == "given" or not (self._without or config.target == "estimate"):
            return []
        without = f"{plural(self._without, 'row has', 'rows have')} no `probabilities`: " if self._without else ""
        if self._without == sum(tally.rows for tally in self.by_prompt.values()):
            without = "no row has `probabilities`: "
        return [
            f"{without}p* is estimated from the beliefs that rows accept, {np.median(rows):g} rows a prompt (median)"
            + (f", and data.belief_prior: {config.belief_prior:g}" if config.target_shrink == "none" else "")
        ]

    def unused(self, config: DataConfig) -> list[str]:
        """Keys that say how distributions are estimated, and were set, where every row has one and that is taken."""
        if self._without or config.target == "estimate":
            return []
        usual = {field.name: field.default for field in dataclasses.fields(config)}
        return [key for key in ("target_shrink", "belief_prior") if getattr(config, key) != usual[key]]


def _shrunk(tallies: Mapping[str, Tally], config: DataConfig) -> tuple[dict[str, BeliefPosterior], list[str]]:
    """Posteriors whose prior is the mean of the prompts with the same options."""
    pools: dict[tuple, list[str]] = collections.defaultdict(list)
    for key, tally in tallies.items():
        pools[tally.options, tally.group if config.target_shrink == "group" else ""].append(key)
    shared = {pool: np.stack([tallies[key].counts for key in keys]) for pool, keys in pools.items() if len(keys) > 1}
    found, alone, notes = {}, 0, []
    for options in dict.fromkeys(options for options, _ in shared):
        mine = {pool: counts for pool, counts in shared.items() if pool[0] == options}
        strength = choose_strength(list(mine.values()), config.belief_prior)
        for pool, counts in mine.items():
            prior = strength.value * mean_distribution(counts, config.belief_prior)
            found |= {key: posterior(tallies[key].counts, prior) for key in pools[pool]}
        prompts = sum(map(len, mine.values()))
        whose = f"the mean of their group ({len(mine)} of them)" if config.target_shrink == "group" else "their mean"
        notes.append(
            f"p* of {prompts} prompts ({', '.join(options)}) is shrunk towards {whose}, which counts for "
            f"{strength.value:.3g} answers (by held-out likelihood)" + (": they seem to be alike" if strength.at_end else "")
        )
    for key, tally in tallies.items():
        if key not in found:
            found[key], alone = posterior(tally.counts, _prior(tally, config)), alone + 1
    if alone:
        notes.append(
            f"p* of {plural(alone, 'prompt')} is not shrunk: no other prompt has the same options"
            + (" and group" if config.target_shrink == "group" else "")
        )
    return found, notes


def _prior(tally: Tally, config: DataConfig) -> np.ndarray:
    return np.full(len(tally.options), config.belief_prior)
