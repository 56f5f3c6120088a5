"""In what the two models of a pair differ, as plain values for the report, the manifest and `jaxpatch check`."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxpatch.models.checkpoints import Pair
from jaxpatch.models.differences import POLICIES, Difference
from jaxpatch.patching.changes import Change
from jaxpatch.patching.components import Partition
from jaxpatch.scoring.scores import component_names

COLUMNS = ("components", "changed", "overall", "median", "largest", "most changed")


def of_differences(found: Sequence[Difference]) -> list[dict[str, Any]]:
    """What differs beside the weights, why that matters, and whose word counts."""
    return [each._asdict() | {"why": POLICIES[each.name].why} for each in found]


def of_changes(found: Mapping[str, Change], partition: Partition) -> dict[str, dict[str, Any]]:
    """What special changed in each kind of component: a value for each of `COLUMNS`; sizes are |dW| / |W|.

    Example:
        >>> from jaxpatch.patching import changes, components
        >>> from jaxpatch import testing
        >>> pair = testing.tiny_pair()
        >>> partition = components.of_decoder(pair.base)
        >>> of_changes(changes.by_kind(pair.base, pair.special, partition), partition)["head"]["changed"]
        12
    """
    told = {}
    for name, change in found.items():
        values = np.nan_to_num(change.relative.ravel(), nan=np.inf)
        most = int(values.argmax())
        told[name] = {
            "components": change.number,
            "changed": change.changed,
            "overall": change.overall,
            "median": float(np.median(values)),
            "largest": float(values[most]),
            "most changed": component_names(name, partition[name])[most] if change.changed else "none",
        }
    return told


def of_pair(pair: Pair, found: Mapping[str, Change], partition: Partition) -> dict[str, Any]:
    """What a report says of a pair, beside `reference.of_sides`."""
    return {
        "differences": of_differences(pair.differences),
        "template": pair.template,
        "trained_on": dict(pair.trained_on),
        "ends": list(pair.ends),
        "changes": of_changes(found, partition),
    }
