"""The words of other trainers (TRL, transformers, PEFT), and what they are here: a better answer than a guess by spelling."""

from __future__ import annotations

from typing import Any

# word -> the key that means the same
SAME = {
    "lr": "optimizer.learning_rate",
    "step_size": "optimizer.learning_rate",
    "wd": "optimizer.weight_decay",
    "max_grad_norm": "optimizer.clip_norm",
    "gradient_clipping": "optimizer.clip_norm",
    "adam_beta1": "optimizer.b1",
    "adam_beta2": "optimizer.b2",
    "adam_epsilon": "optimizer.eps",
    "lr_scheduler": "optimizer.schedule",
    "lr_scheduler_type": "optimizer.schedule",
    "scheduler": "optimizer.schedule",
    "optim": "optimizer.name",
    "num_train_epochs": "train.epochs",
    "num_epochs": "train.epochs",
    "max_epochs": "train.epochs",
    "max_steps": "train.steps",
    "num_steps": "train.steps",
    "num_train_steps": "train.steps",
    "total_steps": "train.steps",
    "gradient_accumulation_steps": "train.accumulation_steps",
    "grad_accum": "train.accumulation_steps",
    "eval_steps": "train.eval_every",
    "evaluation_steps": "train.eval_every",
    "eval_interval": "train.eval_every",
    "eval_on_start": "train.eval_first",
    "save_steps": "checkpoint.every",
    "save_every": "checkpoint.every",
    "save_interval": "checkpoint.every",
    "save_total_limit": "checkpoint.keep",
    "logging_steps": "log.every",
    "log_every": "log.every",
    "logging_interval": "log.every",
    "output_dir": "run.dir",
    "logging_dir": "run.dir",
    "data_seed": "run.seed",
    "model_name_or_path": "model.path",
    "model_name": "model.path",
    "chat_template_path": "model.chat_template",
    "tokenizer_name": "model.tokenizer",
    "tokenizer_name_or_path": "model.tokenizer",
    "torch_dtype": "model.dtype",
    "compute_dtype": "model.dtype",
    "attn_implementation": "model.attention",
    "ref_model_sync_steps": "reference.sync_every",
    "ref_model_mixup_alpha": "reference.mix",
    "ref_model": "reference.path",
    "ref_model_name_or_path": "reference.path",
    "dataset_name": "data.train",
    "dataset": "data.train",
    "train_dataset": "data.train",
    "train_file": "data.train",
    "eval_dataset": "data.eval",
    "validation_file": "data.eval",
    "dataset_train_split": "data.split",
    "dataset_test_split": "data.eval_split",
    "dataset_config": "data.subset",
    "dataset_config_name": "data.subset",
    "dataset_revision": "data.revision",
    "model_revision": "model.revision",
    "max_train_samples": "data.max_rows",
    "max_completion_length": "data.max_response_tokens",
    "max_target_length": "data.max_response_tokens",
    "truncation_mode": "data.truncate_prompt",
    "dataset_num_proc": "data.workers",
    "dataloader_num_workers": "data.workers",
    "dataloader_prefetch_factor": "data.prefetch",
    "packing": "data.pack",
    "loss": "objective.name",
    "simpo_gamma": "objective.gamma",
    "f_divergence_type": "objective.divergence",
    "f_alpha_divergence_coef": "objective.divergence_alpha",
    "ld_alpha": "objective.alpha",
    "discopop_tau": "objective.tau",
    **dict.fromkeys(("rpo_alpha", "cpo_alpha"), "objective.sft_weight"),
    "num_return_sequences": "generate.samples",
    "max_tokens": "generate.max_new_tokens",
    "stop_strings": "generate.stop",
    "metric_for_best_model": "checkpoint.best_metric",
    "tensor_parallel_size": "mesh.tensor",
    **dict.fromkeys(("expert_parallel_size", "expert_model_parallel_size"), "mesh.expert"),
    **dict.fromkeys(("router_aux_loss_coef", "moe_aux_loss_coeff"), "model.router_aux_weight"),
    **dict.fromkeys(("lora_r", "lora_rank", "r"), "lora.rank"),
    "lora_alpha": "lora.alpha",
    "lora_dropout": "lora.dropout",
    **dict.fromkeys(("lora_target_modules", "target_modules"), "lora.targets"),
    "lora_modules_to_save": "lora.modules_to_save",
    "use_rslora": "lora.rslora",
    "use_dora": "lora.dora",
    "init_lora_weights": "lora.init",
    "adapter_name_or_path": "lora.path",
    **dict.fromkeys(("ref_adapter_name", "ref_model_adapters", "reference_adapter"), "reference.adapter"),
}
_BATCH = (
    "train.groups_per_step is the prompts of one step, over all devices and microbatches; train.accumulation_steps cuts that "
    "into microbatches where memory is short"
)
_EVAL_BATCH = "an evaluation takes as many prompts at a time as a microbatch of training, see train.groups_per_step"
_LENGTH = "prompt and response have a length each: data.max_prompt_tokens and data.max_response_tokens"
_LORA = "an adapter is a section of its own: `lora: {}` takes the defaults, lora.path goes on with one of PEFT's"
_QUANTIZED = "model.quantize: int8, int4 or nf4 keeps the model's projections in few bits, with an adapter (`lora: {}`)"
_SHARDED = "devices are laid out by mesh.data, mesh.fsdp, mesh.tensor, mesh.sequence and mesh.expert"
_HALF = "the type of activations is model.dtype (bfloat16 by default), that of trained parameters model.param_dtype"
_HUB = "nothing is uploaded: `align-jax export RUN_DIR OUT_DIR` writes a Hugging Face folder, and `hf upload` takes it"
_STOPPING = (
    "train.patience is how many evaluations without a better checkpoint.best_metric end the run, and the best checkpoint is "
    "kept: `align-jax export --step best`"
)
_FRACTION = "a fraction as data.eval (0.05) holds out so many of the prompts of data.train"
_MIXTURE = "data.train may be a list of data sets: [{path: a.jsonl, weight: 2}, {name: nectar, weight: 1}]"
_RESUME = "`align-jax train` resumes by itself where run.dir holds checkpoints"
_REPORT = "metrics are always in run.dir/metrics.jsonl; log.wandb_project and log.tensorboard: true send them elsewhere, too"
_STRATEGY = (
    "train.eval_every and checkpoint.every are numbers of steps; without them, evaluations are at the start and the end, and "
    "checkpoints every checkpoint.minutes and at the end"
)
_ROUNDS = "responses are sampled in on-policy rounds (section `rounds`): rounds.samples_per_prompt"
# word -> what to do instead, where no key means quite the same
OTHERWISE = {
    **dict.fromkeys(
        ("batch_size", "per_device_train_batch_size", "per_device_batch_size", "train_batch_size", "micro_batch_size"), _BATCH
    ),
    **dict.fromkeys(("global_batch_size", "auto_find_batch_size"), _BATCH),
    **dict.fromkeys(("per_device_eval_batch_size", "eval_batch_size"), _EVAL_BATCH),
    **dict.fromkeys(("max_length", "max_seq_length", "max_seq_len", "model_max_length", "block_size"), _LENGTH),
    "max_prompt_length": "that is data.max_prompt_tokens here, and responses have data.max_response_tokens",
    **dict.fromkeys(("peft_config", "peft", "use_peft", "qlora", "use_lora"), _LORA),
    **dict.fromkeys(("load_in_4bit", "load_in_8bit", "quantization_config", "bnb_4bit_quant_type"), _QUANTIZED),
    **dict.fromkeys(("deepspeed", "fsdp", "fsdp_config", "accelerator_config", "parallelism_config", "ddp_backend"), _SHARDED),
    **dict.fromkeys(("bf16", "fp16", "tf32", "half_precision", "mixed_precision", "precision"), _HALF),
    **dict.fromkeys(("push_to_hub", "hub_model_id", "hub_token", "hub_strategy"), _HUB),
    **dict.fromkeys(
        ("load_best_model_at_end", "early_stopping_patience", "early_stopping", "early_stopping_threshold"), _STOPPING
    ),
    **dict.fromkeys(("resume_from_checkpoint", "resume", "overwrite_output_dir"), _RESUME),
    **dict.fromkeys(("report_to", "logger", "loggers", "log_with"), _REPORT),
    **dict.fromkeys(("eval_strategy", "evaluation_strategy", "save_strategy", "logging_strategy", "do_eval"), _STRATEGY),
    **dict.fromkeys(("num_generations", "rollouts"), _ROUNDS),
    **dict.fromkeys(("validation_split", "val_split", "test_size", "eval_fraction", "val_size", "eval_ratio"), _FRACTION),
    "gradient_checkpointing": "that is model.remat here: full computes everything again in the backward pass",
    "gradient_checkpointing_kwargs": "model.remat says what the backward pass computes again",
    "activation_checkpointing": "that is model.remat here: full computes everything again in the backward pass",
    "reward_model_path": "that is rounds.reward_model for on-policy training, score.reward_model for `align-jax score`",
    "use_weighting": "objective.name: wpo weights the pairs of DPO",
    "precompute_ref_log_probs": "the reference's log-probs are computed once and kept; reference.live: true computes them in "
    "every step",
    "sync_ref_model": "a reference moves with reference.live: true and reference.sync_every",
    "loss_weights": "objective as a list is a mixture: [{name: dpo, weight: 0.8}, {name: sft, weight: 1}]",
    "remove_unused_columns": "columns that data.format does not read are left alone",
    **dict.fromkeys(
        ("datasets", "dataset_mixer", "dataset_mixture", "dataset_mixer_list", "dataset_probs", "mixing_ratio"), _MIXTURE
    ),
    "gamma_beta_ratio": "objective.gamma is that times objective.beta: the loss is -log sigmoid(beta (a_c - a_r) - gamma)",
    "do_sample": "generate.temperature: 0 is greedy, and above 0 samples",
    "greater_is_better": "checkpoint.best_mode is max or min",
    "disable_tqdm": "log.progress: false leaves bars out",
    "use_flash_attention_2": "model.attention: auto takes the best kernels that the devices have",
    "wandb": "log.wandb_project: NAME logs there",
    "head": "the head of a model follows from objective.name; leave it out",
}
# What other trainers call a loss -> objective.name
LOSSES = {
    "sigmoid": "dpo",
    "hinge": "hinge",
    "ipo": "ipo",
    "robust": "robust_dpo",
    "cdpo": "dpo",
    "simpo": "simpo",
    "kto": "kto",
    "kto_pair": "kto",
    **{
        name: name
        for name in (
            *("apo_zero", "apo_down", "bco_pair", "sppo_hard", "nca_pair", "exo_pair", "discopop"),
            *("aot", "aot_unpaired", "cpo", "orpo"),
        )
    },
    "sigmoid_norm": "dpo_norm",
    "ln_dpo": "dpo_norm",
    "dpop": "dpo_positive",
    "bco": "bco_pair",
    "sppo": "sppo_hard",
    "infonca": "infonca",
    "sft": "sft",
    "reward": "reward",
}
# Losses that others have and this project does not
ABSENT = ("grpo", "ppo", "rloo", "online_dpo", "xpo", "nash_md")
# The values of other trainers, where a key chooses among names: key -> word -> name
VALUES = {
    "objective.name": LOSSES,
    "optimizer.name": {
        **dict.fromkeys(("adamw_torch", "adamw_torch_fused", "adamw_hf", "adamw_8bit", "paged_adamw_32bit", "adam"), "adamw"),
        "lion_8bit": "lion",
        "lion_32bit": "lion",
    },
    "optimizer.schedule": {"constant_with_warmup": "constant", "cosine_with_min_lr": "cosine"},
    "model.dtype": {"bf16": "bfloat16", "fp16": "float16", "half": "float16", "fp32": "float32", "float": "float32"},
    "model.param_dtype": {"bf16": "bfloat16", "fp32": "float32", "float": "float32"},
    "model.attention": {"flash_attention_2": "auto", "sdpa": "auto", "eager": "xla"},
}


def answer(word: str, value: Any = None) -> str | None:
    """What a key of another trainer is here, as a half sentence; None for words that are nobody's.

    Args:
      word: the key, without a section. value: what was given for it.
    """
    if word in ("loss_type", "loss_fn", "loss_name") and isinstance(value, list):
        return OTHERWISE["loss_weights"]
    if word in ("loss_type", "loss_fn", "loss_name"):
        name = LOSSES.get(str(value))
        return f"{value!r} is `objective.name: {name}` here" if name else "the loss is chosen by objective.name"
    if word.startswith(("lora_", "peft_")) and word not in SAME:
        return _LORA
    if word.startswith(("bnb_", "load_in_")):
        return _QUANTIZED
    if word.startswith("fsdp_"):
        return _SHARDED
    return f"that is {SAME[word]} here" if word in SAME else OTHERWISE.get(word)


def name_here(key: str, value: Any) -> str | None:
    """What another trainer's name for a value of a key is here; None for names that are nobody's."""
    return VALUES.get(key, {}).get(value) if isinstance(value, str) else None
