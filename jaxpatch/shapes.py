"""One alphabet for every array in the package.

====  =======================================  ====  ==========================
B     sequences in a batch (prompts)           D     width of the residual stream
T     tokens, right-padded                     F     neurons per layer
L     layers                                   V     vocabulary
N     query heads                              C     candidates: patches measured together
K     key/value heads (N = K * group)          S     slots of a key/value cache
H     width of one head                        R     bootstrap resamples
E     experts per layer
====  =======================================  ====  ==========================
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

Params = Mapping[str, Any]
"""A model's weights: a nested dict whose leaves are arrays."""

Gates = Mapping[str, jax.Array | np.ndarray]
"""Kind of component -> how far each component of that kind has moved: 0 base, 1 special. Scores have this type too."""

Effect = Callable[[Gates], jax.Array]
"""Gates to a read-out. Everything above `measuring` sees models only through functions of this type."""
