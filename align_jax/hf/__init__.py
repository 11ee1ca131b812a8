"""Hugging Face checkpoints: import into (sharded) device arrays, and export."""

from align_jax.hf.adapter import adapter_config, adapter_files, load_adapter, read_adapter, save_adapter
from align_jax.hf.adapter_names import saved_weights
from align_jax.hf.config import hf_config_from_model, model_config_from_hf, stored_head
from align_jax.hf.files import ADAPTER, TOKENIZER_FILES, read_json, resolve_folder, split_revision
from align_jax.hf.folder import clear_left
from align_jax.hf.load import check_weights, load_config, load_generation_config, load_model, load_weights
from align_jax.hf.save import save_model
from align_jax.hf.tokenizer import read_tokenizer

__all__ = [
    "ADAPTER",
    "adapter_config",
    "adapter_files",
    "load_adapter",
    "read_adapter",
    "read_json",
    "read_tokenizer",
    "save_adapter",
    "saved_weights",
    "TOKENIZER_FILES",
    "check_weights",
    "clear_left",
    "hf_config_from_model",
    "load_config",
    "load_generation_config",
    "load_model",
    "load_weights",
    "model_config_from_hf",
    "resolve_folder",
    "split_revision",
    "save_model",
    "stored_head",
]
