"""Model families: an open set, one file each. A family reads a config and knows its checkpoint's table."""

from jaxpatch.models.families import llama, mistral, qwen2, qwen3
from jaxpatch.models.families.family import Family

FAMILIES: dict[str, Family] = {
    "llama": llama.FAMILY,
    "mistral": mistral.FAMILY,
    "qwen2": qwen2.FAMILY,
    "qwen3": qwen3.FAMILY,
}

__all__ = ["FAMILIES", "Family"]
