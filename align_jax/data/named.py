"""Data sets known by name: `data.train: {name: ultrafeedback}`; the hub id, the format and the splits of each."""

from __future__ import annotations

import dataclasses

from align_jax.errors import UserError
from align_jax.registry import suggest


@dataclasses.dataclass(frozen=True)
class NamedSet:
    """A data set of the hub.

    Attributes:
      hub: its id. format: the name of its rows' format. about: what it holds.
      split: for training. eval_split: for evaluation; None where it has none.
      subset: its configuration, where it has several.
    """

    hub: str
    format: str
    about: str
    split: str = "train"
    eval_split: str | None = None
    subset: str | None = None


def _opinions(place: str, people: str) -> dict[str, NamedSet]:
    about = f"opinions of people in {people}, with the distribution of each question's beliefs"
    return {
        f"mmoqa-{place}{size}": NamedSet(f"Binwei01/mmoqa_{place}{size.replace('-', '_')}", "gdpo", about, eval_split="eval")
        for size in ("", "-large")
    }


_REVIEWS = "Amazon movie reviews, with the distribution of ratings"
NAMED: dict[str, NamedSet] = {
    "ultrafeedback": NamedSet("openbmb/UltraFeedback", "ultrafeedback", "64k prompts, 4 answers each, scored by GPT-4"),
    "ultrafeedback-binarized": NamedSet(
        "HuggingFaceH4/ultrafeedback_binarized", "pairs", "its best answer against another", "train_prefs", "test_prefs"
    ),
    "ultrafeedback-cleaned": NamedSet(
        "argilla/ultrafeedback-binarized-preferences-cleaned", "pairs", "by mean ratings, without TruthfulQA's prompts"
    ),
    "ultrafeedback-reward": NamedSet(
        "ChenDRAG/ultrafeedback_reward", "ultrafeedback_reward", "all 4 answers with their scores", "train_prefs", "test_prefs"
    ),
    "ultrafeedback-armorm": NamedSet(
        "princeton-nlp/llama3-ultrafeedback-armorm", "generated", "5 samples of Llama 3, scored by ArmoRM", eval_split="test"
    ),
    "helpsteer2": NamedSet("nvidia/HelpSteer2", "helpsteer2", "2 answers a prompt, rated by people", eval_split="validation"),
    "helpsteer3": NamedSet(
        "nvidia/HelpSteer3", "helpsteer3", "pairs with how much people prefer one", "train", "validation", "preference"
    ),
    "hh-rlhf": NamedSet("Anthropic/hh-rlhf", "hh", "helpful and harmless dialogues, in pairs", eval_split="test"),
    "shp": NamedSet("stanfordnlp/SHP", "shp", "comments to posts on Reddit, in pairs", eval_split="validation"),
    "nectar": NamedSet("berkeley-nest/Nectar", "nectar", "7 answers a prompt, ranked by GPT-4"),
    "skywork-reward": NamedSet("Skywork/Skywork-Reward-Preference-80K-v0.2", "pairs", "pairs for reward models"),
    "olmo-2-1b": NamedSet("allenai/olmo-2-0425-1b-preference-mix", "pairs", "what OLMo 2 1B was trained on"),
    "olmo-2-7b": NamedSet("allenai/olmo-2-1124-7b-preference-mix", "pairs", "what OLMo 2 7B was trained on"),
    "olmo-2-13b": NamedSet("allenai/olmo-2-1124-13b-preference-mix", "pairs", "what OLMo 2 13B was trained on"),
    "olmo-2-32b": NamedSet("allenai/olmo-2-0325-32b-preference-mix", "pairs", "what OLMo 2 32B was trained on"),
    "global-opinions": NamedSet("Anthropic/llm_global_opinions", "survey", "shares of answers by country; no free texts"),
    **_opinions("usa", "the United States"),
    **_opinions("pk", "Pakistan"),
    **_opinions("sa", "South Africa"),
    "movie-reviews": NamedSet("Binwei01/movie_review", "gdpo", _REVIEWS, eval_split="eval"),
    "movie-reviews-large": NamedSet("Binwei01/movie_review_large", "gdpo", _REVIEWS, eval_split="eval"),
}


def find_named(name: str, key: str) -> NamedSet:
    """The data set of this name, or of this hub id.

    Args:
      name: as in `NAMED`, in whatever case. key: where it was given, for errors.

    Raises:
      UserError: there is none; names the nearest.
    """
    plain = name.lower().replace("_", "-")
    by_hub = {known.hub.lower(): known for known in NAMED.values()}
    found = NAMED.get(plain) or by_hub.get(name.lower())
    if found is None:
        raise UserError(
            f"{key}: no data set is known by the name {name!r}; {suggest(plain, NAMED)}the names are {', '.join(NAMED)}; "
            "another one of the hub is given by its id, as `path`"
        )
    return found
