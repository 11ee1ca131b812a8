"""The table of commands: what each is called with, and what it does."""

from __future__ import annotations

from align_jax.cli import actions, data
from align_jax.cli.arguments import Argument, whole_number
from align_jax.cli.invocation import Command

_CONFIG = Argument("CONFIG.yaml", "the config; every key of it may be given as --section.key VALUE, too")
_PLACE = Argument("CONFIG.yaml", "a config, or in its place a run folder, a model's folder or a hub id")
_JSON = Argument("--json", "print one JSON object instead of a table")

COMMANDS = {
    "train": Command(
        actions.train,
        "train a model; a config whose run.dir holds checkpoints goes on with that run",
        "cat > mine.yaml <<END\n"
        "model: {path: path/to/llama}            # a folder, or a hub id\n"
        "data: {train: train.jsonl, eval: 0.05}  # 5% of the prompts are held out\n"
        "objective: {name: dpo}\n"
        "END\n"
        "align-jax train mine.yaml --train.epochs 1 --run.dir runs/mine",
        (_CONFIG,),
        "Metrics go to run.dir/metrics.jsonl, checkpoints to run.dir/checkpoints.",
    ),
    "evaluate": Command(
        actions.evaluate,
        "compare models on held-out data, as one table with intervals",
        "align-jax evaluate mine.yaml --data.eval eval.jsonl\nalign-jax evaluate runs/mine",
        (Argument("CONFIG.yaml", f"{_PLACE.help}; several become one table", many=True),),
        "By default the starting model and the run's newest checkpoint are compared. Writes evaluation.json to run.dir.",
        takes_folders=True,
    ),
    "export": Command(
        actions.export,
        "write a run's checkpoint as a Hugging Face folder",
        "align-jax export runs/mine out --dtype bfloat16",
        (
            Argument("RUN_DIR", "the folder of a run"),
            Argument("OUT_DIR", "the folder to write, which transformers loads"),
            Argument(
                "--step",
                "which checkpoint, or best: by checkpoint.best_metric; the newest by default",
                "N",
                actions.step_or_best,
            ),
            Argument("--dtype", "float32, bfloat16 or float16; that of the trained weights by default", "TYPE"),
            Argument("--overwrite", "replace an earlier export"),
            Argument("--merge", "of a run with `lora`: the whole model; without, the adapter alone, in PEFT's format"),
        ),
    ),
    "checkpoints": Command(
        actions.checkpoints,
        "list a run's checkpoints: step, age, size, whole or damaged, metrics",
        "align-jax checkpoints runs/mine",
        (Argument("RUN_DIR", "the folder of a run"), Argument("--json", "print one JSON list instead of a table")),
        "Reads every file. Exits with 0 where the newest is whole, 1 where it is damaged, 2 where there is none.",
        computes=False,
    ),
    "generate": Command(
        actions.generate,
        "sample responses to prompts",
        'align-jax generate out --prompt "Once upon a time" --generate.samples 2\n'
        "align-jax generate mine.yaml --generate.prompts prompts.jsonl \\\n"
        "    --generate.output samples.jsonl",
        (
            _PLACE,
            Argument(
                "--prompt",
                "a prompt, any number of times; prints the texts, unless there is --generate.output",
                "TEXT",
                many=True,
            ),
        ),
        "The model is that of the newest checkpoint in run.dir where there is one, otherwise model.path.",
        takes_folders=True,
        unless="with --prompt only the model",
    ),
    "score": Command(
        actions.score,
        "compute log-probs, implicit rewards and a reward model's scores of responses",
        "align-jax score runs/mine --score.input rows.jsonl --score.output scored.jsonl",
        (_PLACE,),
        takes_folders=True,
    ),
    "bench": Command(
        actions.bench,
        "measure time, memory and FLOPs of a training step",
        "align-jax bench mine.yaml --bench.prompt_tokens 192 --bench.response_tokens 64",
        (
            _CONFIG,
            _JSON,
            Argument("--sweep", "numbers of responses, one after the other, with random tokens", "K=2,8,32", actions.counts),
        ),
    ),
    "compile": Command(
        actions.compile_step,
        "compile a training step for a TPU that is not there",
        "align-jax compile mine.yaml --topology v5p:4x4x4 --mesh.fsdp -1\n"
        "align-jax compile mine.yaml --topology v6e:16x16 --lengths hh --mesh auto",
        (
            _CONFIG,
            Argument("--topology", "such as v5e:4x4 or v5p:4x4x4", "NAME", required=True),
            Argument("--slices", "how many such topologies, joined by a slow network; 1 by default", "N", whole_number),
            Argument("--model", "a known shape in place of the config's model: llama-3-8b, mistral-7b and others", "NAME"),
            Argument(
                "--lengths",
                'token counts in place of data.train: JSONL, {"prompt": 120, "responses": [300, 41]}; or ultrafeedback, hh, '
                "long-chat, alpaca-eval",
                "FILE",
            ),
            Argument("--shapes", "how many of the epoch's shapes are compiled; 2 by default", "N", whole_number),
            Argument("--candidates", "with --mesh auto, how many meshes are compiled; 2 by default", "N", whole_number),
            Argument("--prompt-tokens", "full rows in place of data: data.max_prompt_tokens, else 512", "N", whole_number),
            Argument("--response-tokens", "the same: data.max_response_tokens by default, else 512", "N", whole_number),
            Argument("--responses", "of a prompt, with full rows; data.max_responses by default, else 4", "N", whole_number),
            _JSON,
        ),
        "Exits with 0 where the step fits the chip's memory, 1 where it does not, 2 where it cannot be compiled.",
        compiles=True,
    ),
    "data check": Command(
        data.check,
        "look at data before training on it: scores, repeats, outliers, lengths",
        "align-jax data check train.jsonl --tokenizer path/to/llama --plot data.png\n"
        "align-jax data check mine.yaml --strict --out checked",
        data.CHECK,
        "Exits with 0 where nothing is wrong, 1 where problems were found, 2 where the data cannot be read.",
        takes_data="DATA",
        computes=False,
    ),
    "data convert": Command(
        data.convert,
        "write any data as grouped JSONL, Parquet or ArrayRecord; join pairs, add scores",
        "align-jax data convert pairs.jsonl groups.parquet --join\n"
        "align-jax data convert a.jsonl b.jsonl --reward-model path/to/rm --split 0.05",
        data.CONVERT,
        takes_data="INPUT",
    ),
    "data beliefs": Command(
        data.beliefs,
        "label answers with the beliefs that they express, for GDPO",
        "align-jax data beliefs answers.jsonl --options support,oppose,unsure \\\n"
        "    --output beliefs.jsonl --by model --model path/to/llama",
        data.BELIEFS,
        "Writes format gdpo, with the distribution of beliefs of each prompt and how well it is known.",
        takes_data="INPUT",
    ),
    "experiment": Command(
        actions.experiment,
        "run the quick start, or try a claim of a paper",
        "align-jax experiment quickstart --run.dir runs/first\n"
        "align-jax experiment list\n"
        "align-jax experiment gdpo-calibration --quick --seeds 3\n"
        "align-jax experiment gdpo-real --model smollm2",
        (Argument("NAME", "the experiment, all of them, or package.module:function; `list` lists them", optional=True),),
        "`align-jax experiment NAME --help` says what an experiment does; claims end in holds, fails or unclear.",
        passes_on=True,
    ),
    "config": Command(
        actions.config,
        "print every key of a config and what it means",
        "align-jax config --explain train.eval_every",
        (
            Argument("--explain", "all about one key or section, such as train.eval_every or train", "KEY"),
            Argument("--markdown", "all keys as a page: docs/config.md"),
        ),
        computes=False,
    ),
    "configs": Command(
        actions.configs,
        "list the configs that come with it, or copy one",
        "align-jax configs mpo-preferences mine.yaml",
        (
            Argument("NAME", "the config to copy; without it, all are listed", optional=True),
            Argument("DEST", "file or folder; configs/NAME.yaml by default", optional=True),
        ),
        computes=False,
    ),
}
