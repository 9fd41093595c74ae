"""Ablations: directories of ordinary runs, one for each setting and seed, and the table of their scores with intervals."""
