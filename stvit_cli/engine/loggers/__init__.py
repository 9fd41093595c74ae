"""Experiment trackers that a run logs to beside ``metrics.jsonl``: TensorBoard, Weights & Biases, MLflow, trackio.

`base` says what a logger is, each other file is one of them, and `group` holds those of a run. None of the packages is imported
before a run that asks for it opens its loggers.
"""
