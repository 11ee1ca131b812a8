"""The picture at the end of the quick start: how often people hold each belief, and the model before and after GDPO."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from align_jax import hf
from align_jax.config import Config
from align_jax.data.formats.example import Example, Opinion
from align_jax.errors import MissingPackage, optional
from align_jax.experiments import opinions
from align_jax.generation.beliefs import belief_logps
from align_jax.losses import jensen_shannon_distance
from align_jax.models import Decoder
from align_jax.recipes.setup import Setup

TOPICS = 6  # the first and the last of them 94/2/2/2


def draw(config: Config, before: Path, after: Path, path: Path) -> str:
    """Draws the beliefs of two models about some topics beside the group's; a line for the user.

    Args:
      config: of GDPO, whose templates the models know. before, after: folders of models. path: of the PNG file.
    """
    try:
        optional("matplotlib", "plots", "the picture of the beliefs")
    except MissingPackage as error:
        return f"no picture was drawn: {error}"
    shares = [_predicted(config, folder) for folder in (before, after)]
    figure = picture(opinions.TOPICS[:TOPICS], opinions.distributions(0)[:TOPICS], *shares)
    figure.savefig(path, dpi=120)
    return f"picture of the beliefs: {path}"


def _predicted(config: Config, folder: Path) -> np.ndarray:
    """The model's distribution over the beliefs about every topic, renormalised: float64 `[topics, beliefs]`."""
    encoder = Setup.of(config).encoder
    model: Decoder = hf.load_model(folder, dtype=config.model.dtype, param_dtype=config.model.param_dtype)
    opinion = Opinion(opinions.BELIEFS, None, None, None)
    prompts = [encoder.prompt(Example(question, (), opinion=opinion)) for question in opinions.questions(TOPICS)]
    statements = [[ids.tolist() for ids in encoder.beliefs(prompt, opinions.BELIEFS)] for prompt in prompts]
    logps = np.stack(belief_logps(model, [prompt.ids.tolist() for prompt in prompts], statements)).astype(np.float64)
    shares = np.exp(logps - logps.max(-1, keepdims=True))
    return shares / shares.sum(-1, keepdims=True)


def picture(topics: Sequence[str], group: np.ndarray, before: np.ndarray, after: np.ndarray):
    """The figure: a panel a topic, a bar a belief for the people, marks for the model.

    Args:
      topics: T names. group, before, after: `[T, beliefs]`, shares of the beliefs, rows sum to 1.
    """
    from align_jax.experiments import plots

    was, now = (float(np.mean(jensen_shannon_distance(shares, group))) for shares in (before, after))
    does = "brings the model to" if now < was else "does not bring the model to"
    title = f"GDPO {does} the group's beliefs: mean distance {was:.2f} before, {now:.2f} after"
    note = (
        "Bars: how many people hold the belief. Marks: the probability that the model gives it, among the four. The distance "
        "is Jensen-Shannon's, 0 where the shares are the same."
    )
    columns = min(3, len(topics))
    figure, panels = plots.figure(title, columns=columns, rows=-(-len(topics) // columns), size=(3.5, 2.7), sharey=True)
    x = np.arange(len(opinions.BELIEFS))
    for i, (axis, topic) in enumerate(zip(panels.flat, topics, strict=False)):
        for shares, name, number, move in ((after, "model after GDPO", 0, 0.12), (before, "model before GDPO", 1, -0.12)):
            colour, mark = plots.COLOURS[number], plots.MARKERS[number]
            axis.plot(x + move, 100 * shares[i], mark, color=colour, markersize=7, label=name, clip_on=False, zorder=3)
        axis.bar(x, 100 * group[i], width=0.7, color="0.8", label="people")
        axis.set_title(topic, fontsize=10)
        axis.set_xticks(x, opinions.BELIEFS, fontsize=8)
        axis.set_ylim(0, 100)
        axis.grid(axis="x", visible=False)
        if i % columns == 0:
            axis.set_ylabel("share of the belief (%)", fontsize=9)
    for unused in panels.flat[len(topics) :]:
        unused.set_visible(False)
    handles, names = panels.flat[0].get_legend_handles_labels()
    below = {"loc": "outside lower center", "ncols": len(names), "fontsize": 9, "title": note, "title_fontsize": 8}
    figure.legend(handles[::-1], names[::-1], frameon=False, **below)
    return figure
