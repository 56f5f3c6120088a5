"""Local-exact, downstream-linear: each component's own change of output exactly, what follows it to first order."""

from collections.abc import Mapping

from jaxpatch.measuring.instrument import Instrument
from jaxpatch.scoring.method import Answer, Options


def effects(instrument: Instrument, kinds: tuple[str, ...], options: Options) -> Mapping[str, Answer]:
    """``< dF/d(residual stream), change of what c writes >``, every component from one backward pass.

    No error from the trilinear gate/up/down swap or from a saturated softmax inside the head (the failure that AtP*, arXiv
    2403.00745, repairs with its QK fix). Ours.
    """
    found = instrument.cheap(kinds, options.progress("local linear"))
    return {kind: Answer(found[kind].linear) for kind in kinds}
