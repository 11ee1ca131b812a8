"""A reward model that scores texts: prompts and responses in, one number per response out."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence

import numpy as np
from jax.sharding import Mesh

from align_jax import hf
from align_jax.data import DataConfig, Encoder, TokenGroup, encode_group
from align_jax.data.formats import Example, Text, as_text
from align_jax.data.sources import RowError
from align_jax.errors import UserError
from align_jax.models import ModelConfig, weight_shardings
from align_jax.parallel.mesh import make_mesh
from align_jax.scoring.scorer import FixedScorer, Scorer

BATCH_ROWS = 64
# A text that is too long stays so, and is refused.
_UNCUT = DataConfig(max_prompt_tokens=1 << 30, max_response_tokens=1 << 30)


@dataclasses.dataclass(frozen=True, eq=False)
class RewardModel:
    """A reward model with its own tokenizer and chat template.

        model = RewardModel.load("path/to/reward-model")
        model.score(["What is two and two?"], [["Four.", "Five."]])    # [[1.3, -0.4]]

    Attributes:
      config: its shape, `head` is `score`. params: its weights, on `mesh`.
      encoder: its text to tokens.
      dtype: what products are computed in. attention: as `model.attention`.
      batch_rows: responses computed at one time, over all devices.
      max_tokens: of a prompt with its response; a longer one is an error.
    """

    config: ModelConfig
    params: dict
    encoder: Encoder
    mesh: Mesh
    dtype: str = "float32"
    attention: str = "auto"
    batch_rows: int = BATCH_ROWS
    max_tokens: int | None = None

    def __post_init__(self):
        if self.batch_rows < 1:
            raise UserError(f"batch_rows must be at least 1, got {self.batch_rows}")
        if self.max_tokens is None:
            object.__setattr__(self, "max_tokens", self.config.max_length)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike,
        *,
        mesh: Mesh | None = None,
        dtype: str = "float32",
        param_dtype: str = "float32",
        batch_rows: int = BATCH_ROWS,
        max_tokens: int | None = None,
        attention: str = "auto",
        data: DataConfig | None = None,
    ) -> RewardModel:
        """Loads a sequence classifier with one label.

        Args:
          path: a folder in Hugging Face format with its tokenizer, or a hub id.
          mesh: where its weights go; None: the default device.
          dtype: what products are computed in. param_dtype: what weights are kept in.
          batch_rows: responses computed at one time, over all devices.
          max_tokens: most tokens of a prompt with its response; None is the model's context.
          attention: as `model.attention`.
          data: templates and lengths of texts; None: none, and nothing is cut.

        Raises:
          UserError: a language model, several labels, no tokenizer; see also `hf.load_config` and `hf.load_weights`.
        """
        mesh = make_mesh() if mesh is None else mesh
        folder = hf.resolve_folder(path)
        config, _ = hf.load_config(folder, "score")
        encoder = Encoder(_tokenizer(folder, path), data or _UNCUT, config.vocab_size)
        params = hf.load_weights(folder, config, weight_shardings(config, mesh), param_dtype)
        return cls(config, params, encoder, mesh, dtype, attention, batch_rows, max_tokens)

    def score(self, prompts: Sequence[Text], responses: Sequence[Sequence[Text]]) -> list[list[float]]:
        """Scores of all responses to all prompts, in their order.

        Args:
          prompts: plain texts or conversations (lists of messages with `role` and `content`).
          responses: of each prompt, any number; an empty one is the end-of-sequence token alone.

        Raises:
          UserError: an empty prompt, a conversation without a chat template, or more than `max_tokens` tokens; by number.
          ValueError: numbers of prompts and of lists of responses that differ.
        """
        if len(prompts) != len(responses):
            raise ValueError(f"{len(prompts)} prompts, but {len(responses)} lists of responses")
        for i, texts in enumerate(responses):
            if isinstance(texts, str):
                raise UserError(f"prompt {i}: responses must be a list of texts, got the text {texts[:40]!r}")
        filled = [i for i, texts in enumerate(responses) if len(texts)]
        groups = [self._encode(i, prompts[i], responses[i]) for i in filled]
        scores: list[list[float]] = [[] for _ in prompts]
        for i, values in zip(filled, self.score_groups(groups), strict=True):
            scores[i] = values.tolist()
        return scores

    def score_groups(self, groups: Sequence[TokenGroup]) -> list[np.ndarray]:
        """Scores float32 `[K]` of every group of tokens (`TokenGroup.ends` True), in their order."""
        results: list[np.ndarray] = [np.empty(0, np.float32)] * len(groups)
        scorer = Scorer(self.config, dtype=self.dtype, attention=self.attention)
        for place, scores in FixedScorer(scorer, self.params, self.mesh).groups(groups, self.batch_rows):
            results[place] = scores
        return results

    def check_length(self, group: TokenGroup, where: str) -> None:
        """UserError where a response with its prompt has more than `max_tokens` tokens."""
        longest = len(group.prompt) + max(len(segment.tokens) for segment in group.segments)
        if longest > self.max_tokens:
            raise UserError(
                f"{where}: the prompt with its longest response has {longest} tokens, more than the {self.max_tokens} that the "
                "reward model takes; shorten them, or load it with data=DataConfig(max_prompt_tokens=..., "
                "max_response_tokens=...), which cuts them"
            )

    def _encode(self, i: int, prompt: Text, responses: Sequence[Text]) -> TokenGroup:
        where = f"prompt {i}"
        try:
            texts = tuple(t if isinstance(t, str) else as_text(t, f"responses[{k}]") for k, t in enumerate(responses))
            group, *_ = encode_group(self.encoder, Example(as_text(prompt, "prompt"), texts), ends=True)
        except RowError as error:
            raise UserError(f"{where}: {error}") from error
        self.check_length(group, where)
        return group


def _tokenizer(folder: str | os.PathLike, path: str | os.PathLike):
    try:
        return hf.read_tokenizer(folder)
    except UserError as error:
        raise UserError(f"reward model {path}: no tokenizer can be loaded: {error}") from error
