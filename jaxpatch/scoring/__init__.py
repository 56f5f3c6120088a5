"""One number per component. An open set: each file is one way to get the effects, and sees models only through an Instrument.

An instrument of exchanged activations (`instrument.of_pair`, exchange) is asked the same questions under other names: exact effects
are activation patching, first order is attribution patching.
"""

from jaxpatch.scoring import exact, first_order, integrated, local_linear, screened
from jaxpatch.scoring.method import Answer, Method

METHODS: dict[str, Method] = {
    "exact": exact.effects,
    "first_order": first_order.effects,
    "local_linear": local_linear.effects,
    "integrated": integrated.effects,
    "screened": screened.effects,
}

ACTIVATION_METHODS: dict[str, Method] = {
    "activation": exact.effects,
    "attribution": first_order.effects,
    "screened_activation": screened.effects,
}

AS_CAREFUL = dict.fromkeys(METHODS, "attribution") | {"exact": "activation", "screened": "screened_activation"}
"""Of E_w's methods -> the one of E_a that is as good."""
EXACT = ("exact", "activation")
"""Those that truly replace everything."""
SCREENED = ("screened", "screened_activation")
"""Those that truly replace some."""

__all__ = ["ACTIVATION_METHODS", "AS_CAREFUL", "EXACT", "METHODS", "SCREENED", "Answer", "Method"]
