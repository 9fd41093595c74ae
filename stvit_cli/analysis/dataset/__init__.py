"""A data set described (`describe`) and checked image by image (`check`), as a recipe sees it."""
