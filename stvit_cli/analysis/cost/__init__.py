"""Parameters, multiply-adds, speed and memory of models."""
