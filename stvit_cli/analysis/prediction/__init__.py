"""Predictions and features of millions of images, as Parquet files: resumable, by any number of processes."""

from stvit_cli.analysis.prediction.predict_all import BulkOptions, BulkResult, predict_all

__all__ = ["BulkOptions", "BulkResult", "predict_all"]
