"""A look at preference data before anyone pays for training on it: what `align-jax data check` says.

`gather` reads every row once and keeps numbers, no texts; `scores`, `repeats`, `outliers` and `beliefs` say what these show;
`tokens` is about a tokenizer and the lengths of a config; `batches` shows a batch with its masks. Each gives `Finding`s, worst
first in a `Report`, and values as JSON.
"""
