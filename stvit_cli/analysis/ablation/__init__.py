"""Table II of the supplement: its rows, their runs, the report."""
