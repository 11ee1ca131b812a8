"""The version of the package: setup.py reads it here, `align_jax.__version__` and `align-jax --version` are it."""

__version__ = "0.1.0"
