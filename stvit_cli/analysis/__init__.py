"""Super tokens made visible, Table II, what a model costs, and export."""
