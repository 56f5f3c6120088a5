"""One number per component. An open set: each file is one way to get the effects, and sees models only through an Instrument."""

from jaxpatch.scoring import exact, first_order, integrated, local_linear, screened
from jaxpatch.scoring.method import Answer, Method

METHODS: dict[str, Method] = {
    "exact": exact.effects,
    "first_order": first_order.effects,
    "local_linear": local_linear.effects,
    "integrated": integrated.effects,
    "screened": screened.effects,
}

__all__ = ["METHODS", "Answer", "Method"]
