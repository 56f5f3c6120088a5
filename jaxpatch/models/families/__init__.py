"""Model families: an open set, one file each. A family reads a config and knows its checkpoint's table."""

from jaxpatch.models.families import llama
from jaxpatch.models.families.family import Family

FAMILIES: dict[str, Family] = {"llama": llama.FAMILY}

__all__ = ["FAMILIES", "Family"]
