"""Shards: tar files in WebDataset's layout and Parquet files with images, local or through fsspec, with random access."""

from stvit_cli.data.shards.images import ShardImages
from stvit_cli.data.shards.index import ShardIndex, open_shards
from stvit_cli.data.shards.storage import ShardFile, list_shards

__all__ = ["ShardFile", "ShardImages", "ShardIndex", "list_shards", "open_shards"]
