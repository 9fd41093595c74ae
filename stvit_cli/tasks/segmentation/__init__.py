"""Semantic segmentation: UperNet on ADE20K."""
