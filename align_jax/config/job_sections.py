"""The sections of single jobs, of logging and of on-policy rounds: one frozen dataclass each, whose fields are its keys."""

from __future__ import annotations

import dataclasses
from typing import Literal

from align_jax.config.sections import check_local
from align_jax.errors import UserError, check_fields, check_range
from align_jax.training.logs.table import check_sink_name


@dataclasses.dataclass(frozen=True)
class GenerateConfig:
    """Prompts (JSONL with `prompt`) in, the same rows with `responses` out; randomness follows `run.seed`.

    Attributes:
      prompts: JSONL; a line has a `prompt`, text or messages, and its other columns are kept.
      output: JSONL that is written; the same command goes on with one that is not complete.
      alpaca_eval: also write the first response of every prompt to this file, as AlpacaEval's `model_outputs.json`.
      samples: responses of a prompt.
      temperature: 0 is greedy.
      top_k: draw among this many of the likeliest tokens only; 0 is all.
      top_p: draw among the likeliest tokens that have this much probability together; 1 is all.
      min_p: leave out tokens less likely than this times the likeliest one; 0 is none.
      repetition_penalty: as in transformers; 1 is none.
      max_new_tokens: most tokens of a response; the model's context may end it before. Prompts are never cut.
      stop: strings that end a response; they are not part of it.
      stop_tokens: tokens, by name, that end a response besides EOS.
      beliefs: draw one of the row's `options` first, then the text conditioned on it; a row's `belief` fixes it.
      belief_temperature: of the draw of a belief; 0 takes the most likely one.
      tokens: also write `tokens`, the ids of each response as they were sampled, and `finish_reasons`.
      rows: responses in the making at one time; more need more memory.
    """

    prompts: str | None = None
    output: str | None = None
    alpaca_eval: str | None = None
    samples: int = 1
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    max_new_tokens: int = 128
    stop: list[str] = dataclasses.field(default_factory=list)
    stop_tokens: list[str] = dataclasses.field(default_factory=list)
    beliefs: bool = False
    belief_temperature: float = 1.0
    tokens: bool = False
    rows: int = 256

    def __post_init__(self):
        check_local("generate.output", self.output)
        check_local("generate.alpaca_eval", self.alpaca_eval)
        check_fields("generate", self, "samples", "max_new_tokens", "rows", low=1)
        check_fields("generate", self, "repetition_penalty", low=0, open_low=True)
        check_fields("generate", self, "temperature", "belief_temperature", "top_k", low=0)
        check_fields("generate", self, "top_p", "min_p", low=0, high=1)
        if "" in self.stop:
            raise UserError(f"generate.stop: {self.stop!r} has an empty string")
        if self.belief_temperature != 1 and not self.beliefs:
            raise UserError(f"generate.belief_temperature: {self.belief_temperature!r} is not used without generate.beliefs")


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """What `align-jax evaluate` measures, and what an evaluation during training adds to the log-probs.

    Attributes:
      models: name -> run folder or Hugging Face folder, the columns of the table; empty: the starting model and the run.
      samples: responses sampled for each prompt (for format gdpo: beliefs, and about as many texts, of every belief
        equally many, for the judge); 0 leaves out the KL to the reference, sampled beliefs and consistency.
      training_samples: `samples` of evaluations during training. Each then costs `training_samples` x
        min(prompts, `sampled_prompts`) responses, and the reference's weights are loaded beside the policy's.
      sampled_prompts: sample for at most this many different prompts; None is all.
      max_new_tokens: most tokens of each sample.
      resamples: draws of the bootstrap; 0 gives no intervals.
      judge: of belief-text consistency: classifier (trained on the data's own texts; `pip install 'align-jax[judge]'`),
        none, or the base URL of an OpenAI-compatible endpoint.
      judge_model: the model's name at the endpoint.
      judge_key_variable: environment variable that holds the endpoint's key.
      judge_max_tokens: most tokens of an answer of the endpoint; a model that reasons first needs many.
      judge_timeout: seconds that an answer may take.
      judge_concurrency: questions asked at one time.
      plots: write pictures (`pip install 'align-jax[plots]'`).
      metrics: further ones of your own, as `package.module:Class` (`align_jax.evaluation.metrics.Metric`).
    """

    models: dict[str, str] = dataclasses.field(default_factory=dict)
    samples: int = 8
    training_samples: int = 0
    sampled_prompts: int | None = 256
    max_new_tokens: int = 128
    resamples: int = 1000
    judge: str = "classifier"
    judge_model: str | None = None
    judge_key_variable: str | None = None
    judge_max_tokens: int = 32
    judge_timeout: float = 60.0
    judge_concurrency: int = 4
    plots: bool = True
    metrics: list[str] = dataclasses.field(default_factory=list)

    def __post_init__(self):
        check_fields("evaluate", self, "sampled_prompts", "max_new_tokens", "judge_max_tokens", "judge_concurrency", low=1)
        check_fields("evaluate", self, "judge_timeout", low=0, open_low=True)
        check_fields("evaluate", self, "samples", "training_samples", "resamples", low=0)
        is_url = self.judge.startswith(("http://", "https://"))
        if not is_url and self.judge not in ("classifier", "none"):
            raise UserError(f"evaluate.judge: {self.judge!r} is neither classifier, none nor a URL (http://...)")
        if is_url and self.judge_model is None:
            raise UserError(f"evaluate.judge_model: the endpoint {self.judge} needs a model name")
        for key in ("judge_model", "judge_key_variable"):
            if getattr(self, key) is not None and not is_url:
                raise UserError(f"evaluate.{key}: {getattr(self, key)!r} is used by a judge at a URL only, not {self.judge}")


@dataclasses.dataclass(frozen=True)
class ScoreConfig:
    """Rows with responses in, the same rows with log-probs and scores out (`align-jax score`).

    Attributes:
      input: what is read, in `data.format`; of `groups` (and with `auto`), `prompt` and `responses` are enough.
      output: JSONL, whose `prompt`, `responses` and `scores` are data of format `groups`.
      reward_model: a sequence classifier with one label, a Hugging Face folder or id, or the run folder of objective `reward`;
        None writes log-probs and implicit rewards only.
      logps: False leaves the policy's and the reference's log-probs out.
      batch_rows: responses computed at one time, over all devices.
    """

    input: str | None = None
    output: str | None = None
    reward_model: str | None = None
    logps: bool = True
    batch_rows: int = 64

    def __post_init__(self):
        check_local("score.output", self.output)
        check_fields("score", self, "batch_rows", low=1)
        if not self.logps and self.reward_model is None:
            raise UserError("score.logps: False and no score.reward_model leaves nothing to compute")


@dataclasses.dataclass(frozen=True)
class LogConfig:
    """Where metrics go: `metrics.jsonl` in `run.dir` always, and what is chosen here.

    Attributes:
      every: steps between lines of metrics; evaluations and the last step are always written.
      progress: a bar on a terminal, elsewhere a line every ten seconds, of long passes later every thirty; False leaves single
        lines about what happens.
      plots: draw the curves of a training run to `run.dir/curves.png` when it ends or is stopped.
      signatures: warn, once each, where a run shows a way in which training fails (docs/signatures.md); of a quiet run
        they are in its folder alone.
      tensorboard: event files in `run.dir/tensorboard` (`pip install 'align-jax[tensorboard]'`).
      wandb_project: project of Weights & Biases; None does not log there.
      wandb_name: of the run's page there.
      sinks: further ones: a file's name in `align_jax/training/logs`, or a class of one's own as `package.module:Class`, called
        with `align_jax.training.logs.sink.Context`, with methods `write(step, metrics)` and `close()`.
      samples_every: steps between samples of a few prompts, always the same ones, also before the first step and after the
        last; shown as a table and kept in `run.dir/samples.jsonl`. `generate` says how they are drawn. None: never.
      samples_prompts: how many prompts, of `data.eval` (its first set) or else of `data.train`.
      samples_tokens: most tokens of such a sample.
      quiet: no progress line, and nothing of what jobs tell their user; errors and warnings remain.
    """

    every: int = 1
    progress: bool = True
    plots: bool = True
    signatures: bool = True
    samples_every: int | None = None
    samples_prompts: int = 4
    samples_tokens: int = 64
    quiet: bool = False
    tensorboard: bool = False
    wandb_project: str | None = None
    wandb_name: str | None = None
    sinks: list[str] = dataclasses.field(default_factory=list)

    def __post_init__(self):
        check_fields("log", self, "every", "samples_every", "samples_prompts", "samples_tokens", low=1)
        for key, usual in (("samples_prompts", 4), ("samples_tokens", 64)):
            if self.samples_every is None and getattr(self, key) != usual:
                raise UserError(f"log.{key}: {getattr(self, key)} is not used without log.samples_every")
        for name in self.sinks:
            check_sink_name(name)
        if self.wandb_name is not None and self.wandb_project is None:
            raise UserError(f"log.wandb_name: {self.wandb_name!r} is not used without log.wandb_project")


@dataclasses.dataclass(frozen=True)
class BenchConfig:
    """What `align-jax bench` measures: steps on `data.train`, on random tokens of real lengths, or of exactly these lengths.

    Attributes:
      prompt_tokens, response_tokens: of every prompt and every response; with neither, the rows are those of `lengths`, or of
        `data.train`.
      lengths: random tokens with the lengths in this file, a line `{"prompt": 120, "responses": [300, 41]}` a prompt, or in one
        that comes with align_jax (alpaca-eval, hh, long-chat, ultrafeedback); cut, packed and counted as training would.
      responses: number of responses to each prompt, with random tokens; None is `data.max_responses`, or 2 where the objective
        takes pairs.
      groups: prompts per step, with random tokens; None is `train.groups_per_step`.
      steps: how many are timed, after one of every shape that is not.
      peak_flops: operations per second of one device, for its utilisation; None is the maker's number, or, of a device that
        is not known, what a large product reaches in the same run.
      memory_bytes: memory of one device, for the recommendation; None asks the device.
      recommend: also compile the step for every rematerialization policy, and say which one to choose.
    """

    prompt_tokens: int | None = None
    response_tokens: int | None = None
    lengths: str | None = None
    responses: int | None = None
    groups: int | None = None
    steps: int = 10
    peak_flops: float | None = None
    memory_bytes: float | None = None
    recommend: bool = True

    def __post_init__(self):
        check_fields("bench", self, "prompt_tokens", "response_tokens", "responses", "groups", "steps", low=1)
        check_fields("bench", self, "peak_flops", "memory_bytes", low=0, open_low=True)
        given = [key for key in ("prompt_tokens", "response_tokens") if getattr(self, key) is not None]
        if len(given) == 1:
            raise UserError(f"bench.{given[0]}: give bench.prompt_tokens and bench.response_tokens, or neither")
        if given and self.lengths is not None:
            raise UserError(f"bench.lengths: {self.lengths}: give it, or bench.prompt_tokens and bench.response_tokens")
        for key in ("responses", "groups"):
            if getattr(self, key) is not None and not given:
                raise UserError(f"bench.{key}: {getattr(self, key)} is used with bench.prompt_tokens and bench.response_tokens")


@dataclasses.dataclass(frozen=True)
class RoundsConfig:
    """On-policy rounds: sample, score, train on the samples, repeat.

    Prompts are those of `data.train` (any format, `prompts` too), held-out ones those of `data.eval`. Sampling is as the
    `generate` section says, and its `samples`, `prompts` and `output` are not used. `train.steps` or `train.epochs`, the
    schedule and the optimizer's state are of one round: each begins anew.

    Attributes:
      number: how many rounds.
      reward_model: a sequence classifier in Hugging Face format (folder or id), or the run folder of one.
      samples_per_prompt: responses that are sampled for each prompt of a round.
      prompts_per_round: how many prompts one round takes; all are used before one is used again, but for a rest smaller than
        that. None is all.
      reference: of the objective: the model at the start of the `round`, or of the `run`.
      eval_prompts: how many held-out prompts; None is all.
      eval_samples: responses to each held-out prompt, after every round and before the first.
      gold_model: a second reward model, given like the first and never trained on, that scores the held-out samples, too: where
        its reward falls while that of `reward_model` rises, the policy has learned the weaknesses of `reward_model`.
      kl_stop: end after the first round whose KL divergence to the start of the run is above this, in nats per response; the
        run then is complete. None makes all rounds.
      beliefs: with objective gdpo, which draws a belief before each text: the `model` draws it from its own distribution over
        the options of the prompt, or it is drawn from p* (`target`).
      beliefs_per_prompt: with objective gdpo, how many beliefs are drawn for a prompt; each gets `samples_per_prompt` texts.
      best: which round `align-jax export`, `generate` and `evaluate` take: the `last`, or that with the highest `gold` reward
        or `reward` on held-out prompts.
    """

    number: int
    reward_model: str
    samples_per_prompt: int = 8
    prompts_per_round: int | None = None
    reference: Literal["round", "run"] = "round"
    eval_prompts: int | None = None
    eval_samples: int = 4
    gold_model: str | None = None
    kl_stop: float | None = None
    best: Literal["last", "gold", "reward"] = "last"
    beliefs: Literal["model", "target"] = "model"
    beliefs_per_prompt: int = 1

    def __post_init__(self):
        check_fields("rounds", self, "kl_stop", low=0, open_low=True)
        if self.gold_model is not None and self.gold_model == self.reward_model:
            raise UserError(f"rounds.gold_model: {self.gold_model} is rounds.reward_model; give one that is not trained on")
        if self.best == "gold" and self.gold_model is None:
            raise UserError("rounds.best: 'gold' needs rounds.gold_model, a reward model that is not trained on")
        check_fields("rounds", self, "number", "prompts_per_round", "eval_prompts", "eval_samples", "beliefs_per_prompt", low=1)
        check_range("rounds.samples_per_prompt", self.samples_per_prompt, 2, hint="for a contrast")
