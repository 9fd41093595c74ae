"""Visualize super tokens: association maps, attention between super tokens, plots and an interactive HTML page."""

from stvit_cli.analysis.associations.maps import Associations, LayerMaps, associations

__all__ = ["Associations", "LayerMaps", "associations"]
