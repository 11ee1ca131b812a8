"""Package metadata: `pip install -e ".[test]"`, with `gpu` or `tpu` for an accelerator.

The extras name no version of JAX: `install_requires` bounds it.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

VERSION = re.search(r'^__version__ = "(.+)"$', Path(__file__).with_name("align_jax").joinpath("version.py").read_text(), re.M)[1]

setup(
    name="align-jax",
    version=VERSION,
    description="Preference optimization of language models in JAX: GDPO, MPO and their relatives",
    license="Apache-2.0",
    license_files=["LICENSE"],
    packages=find_packages(include=["align_jax", "align_jax.*"]),
    package_data={"align_jax": ["configs/*.yaml", "config/keys.json"]},  # align_jax/configs is a link to configs/
    python_requires=">=3.11,<3.14",
    install_requires=[
        "jax>=0.10,<0.13",
        "flax>=0.12.8",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12",
        "grain>=0.2.18",
        "numpy>=2.0",
        "transformers>=5.0",
        "datasets>=4.0",
        "huggingface_hub>=1.0",
        "safetensors>=0.6",
        "jinja2>=3.1",
        "omegaconf>=2.4",
        "pyyaml>=6.0",
        "tqdm>=4.66",
        "tabulate>=0.9",
        "tensorboardX>=2.6",
        "scikit-learn>=1.5",
        "matplotlib>=3.9",
    ],
    extras_require={
        "test": ["pytest>=8.0", "ruff>=0.12", "scipy>=1.14", "setuptools>=77", "torch==2.13.0"],
        "gpu": ["jax[cuda13]"],
        "tpu": ["jax[tpu]"],
        "wandb": ["wandb>=0.20"],
    },
    entry_points={"console_scripts": ["align-jax = align_jax.cli:main"]},
)
