"""Between tokens and text: stop strings, end tokens, and the text that a response adds to its prompt."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

from align_jax.errors import UserError


class StopStrings:
    """Ends a text at the first occurrence of a string; the `stop` of `align_jax.generation.stream`.

    Args:
      tokenizer: of transformers.
      strings: none of them empty.

    Raises:
      UserError: an empty string.
    """

    def __init__(self, tokenizer, strings: Iterable[str]):
        self.tokenizer, self.strings = tokenizer, tuple(strings)
        self._before = tokenizer.encode("a", add_special_tokens=False)
        if not all(self.strings):
            raise UserError(f"a stop string must not be empty, got {list(self.strings)}")

    def __call__(self, tokens: list[int], new: int) -> int | None:
        """How many tokens to keep (up to the one that completes a stop string), or None to go on."""
        if not self._found(tokens):
            return None
        return next(n for n in range(len(tokens) - new + 1, len(tokens) + 1) if n == len(tokens) or self._found(tokens[:n]))

    def _found(self, tokens: list[int]) -> bool:
        # Behind a word, because tokenizers drop the space in front of a text's first one.
        text = response_text(self.tokenizer, self._before, tokens)
        return any(string in text for string in self.strings)

    def cut(self, text: str) -> str:
        """The text before the first stop string."""
        places = [place for string in self.strings if (place := text.find(string)) >= 0]
        return text[: min(places)] if places else text


def end_ids(tokenizer, stop_tokens: Iterable[str] = (), generation_config: dict | None = None) -> tuple[int, ...]:
    """Ids of the tokens that end a text: EOS of the tokenizer and of `generation_config.json`, and `stop_tokens` by name.

    Raises:
      UserError: a stop token that the vocabulary does not have.
    """
    vocab = tokenizer.get_vocab()
    ids = set()
    for name in stop_tokens:
        if name not in vocab:
            near = difflib.get_close_matches(name, vocab, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise UserError(
                f"generate.stop_tokens: {name!r} is not a token of the tokenizer {tokenizer.name_or_path}; {hint}"
                "text of several tokens belongs in generate.stop"
            )
        ids.add(vocab[name])
    if tokenizer.eos_token_id is not None:
        ids.add(tokenizer.eos_token_id)
    configured = (generation_config or {}).get("eos_token_id")
    ids.update(configured if isinstance(configured, list) else [] if configured is None else [configured])
    return tuple(sorted(ids))


def absent_ids(tokenizer, vocab_size: int) -> tuple[int, ...]:
    """Ids of a model's vocabulary that the tokenizer does not have, so that no text comes of them.

    Vocabularies are padded to a round number; nothing was trained for these ids, and some models give them a weight.
    """
    present = set(tokenizer.get_vocab().values()) | set(getattr(tokenizer, "added_tokens_decoder", {}))
    return tuple(token for token in range(vocab_size) if token not in present)


def response_text(tokenizer, prompt: Sequence[int], tokens: Sequence[int]) -> str:
    """What the response adds to the text of its prompt, special tokens left out.

    Decoded together with the prompt, because tokenizers drop the space in front of a text's first word.
    """
    # Cleaning up would take the space before a comma away, which was sampled.
    exactly = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
    before = tokenizer.decode(list(prompt), **exactly)
    whole = tokenizer.decode([*prompt, *tokens], **exactly)
    if whole.startswith(before):
        return whole[len(before) :]
    # The prompt ended inside a character: its bytes and the response's make one.
    return tokenizer.decode(list(tokens), **exactly)


def sample_text(tokenizer, prompt: Sequence[int], sample) -> str:
    """The text of a `Sample`, without its end-of-sequence token."""
    tokens = sample.tokens[:-1] if sample.finish_reason == "eos" else sample.tokens
    return response_text(tokenizer, prompt, tokens.tolist())
