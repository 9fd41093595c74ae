"""The page of a run: sections of tables, charts, matrices and images, and what a run's own sections hold."""
