"""The operators on a GPU, in Triton."""
