"""Table II of the supplement: count its rows, train them, and report the results."""
