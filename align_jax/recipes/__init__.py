"""Every job, a function of a `Config`: what the command line runs, and what a notebook calls (see `jobs`).

Each module holds one job from top to bottom; `source`, `setup`, `folder`, `evaluation` and `say` are what they share.
"""
