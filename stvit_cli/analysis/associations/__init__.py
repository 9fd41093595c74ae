"""Super tokens made visible: association maps, attention among super tokens, figures and a page to open."""

from stvit_cli.analysis.associations.maps import associations

__all__ = ["associations"]
