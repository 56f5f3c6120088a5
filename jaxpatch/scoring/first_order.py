"""First order: the slope of the effect in each component's weights at the base, all components from one backward pass."""

from collections.abc import Mapping

from jaxpatch.measuring.instrument import Instrument
from jaxpatch.scoring.method import Answer, Options


def effects(instrument: Instrument, kinds: tuple[str, ...], options: Options) -> Mapping[str, Answer]:
    """``< grad_Theta(c) F(base, x), Theta_special(c) - Theta_base(c) >``: the gradient in the gates, at gates 0.

    Exact where the effect is linear. That the paper uses a first-order screen is known; this formula is ours.
    """
    found = instrument.cheap(kinds, options.progress("first order"))
    return {kind: Answer(found[kind].first_order) for kind in kinds}
