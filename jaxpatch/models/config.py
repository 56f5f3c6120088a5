"""What a decoder is made of."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from jaxpatch.models.rope import Rope

CHOICES = {
    "norm": ("rms", "layer"),
    "qk_norm": (None, "head", "whole"),
    "activation": ("silu", "gelu", "gelu_tanh", "relu"),
}


class ConfigError(ValueError):
    """A config that no model can have. faults: a sentence each."""

    def __init__(self, faults: Sequence[str]):
        super().__init__("; ".join(faults))
        self.faults = list(faults)


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """Shape and switches of one decoder. Every field is read by the model.

    Attributes:
        family: name of the family it was read from (a key of `families.FAMILIES`).
        vocab: V, rows of the embedding.
        layers: L, blocks.
        width: D, the residual stream.
        heads: N, query heads per block.
        kv_heads: K, key/value heads per block; divides N.
        head_width: H, width of one head; even, because rotary pairs its two halves.
        neurons: F, hidden units of one MLP.
        context: longest sequence in tokens.
        rope: rotary positions; None where there are none.
        positions: rows of a table of learned positions, the last `context` of which are those of a sequence's tokens; 0 where none.
        window: tokens back, its own included, that a local layer sees; None where all layers see everything.
        local: which layers are local, a bool each; empty where all are that can be.
        local_rope: rotary positions of local layers; those of the others where None.
        norm: "rms", or "layer", which subtracts the mean and has a bias.
        norm_eps: added to the mean square inside a norm.
        norm_offset: added to a norm's scale.
        pre_norm: attention and MLP read the stream through a norm. post_norm: what they write passes one.
        parallel: attention and MLP both read the stream that enters the block.
        tied: the unembedding is the embedding, transposed.
        attention_bias: q, k and v have biases. output_bias: o has one.
        qk_norm: queries and keys are normalised before they are turned: "head" by head, or the "whole" of them together.
        attention_scale: by which queries meet keys; one over the root of H where None.
        attention_cap: c of ``c tanh(x / c)``, through which what has met goes; None where nothing does.
        activation: of a neuron, a key of `layers.ACTIVATIONS`. gated: it is multiplied by a second input.
        mlp_bias: gate, up and down have biases.
        experts: E, MLPs of F neurons each in a block, among which a router chooses for each token; 0 where there is one, and no router.
        chosen: how many of them a token goes through.
        shares_sum_to_one: their shares are divided by their sum.
        embed_scale, residual_scale, logit_scale: by which embedded tokens, what attention and MLP write, and logits are multiplied.
        logit_cap: as attention_cap, of logits.
    """

    family: str
    vocab: int
    layers: int
    width: int
    heads: int
    kv_heads: int
    head_width: int
    neurons: int
    context: int
    rope: Rope | None = field(default_factory=Rope)
    positions: int = 0
    window: int | None = None
    local: tuple[bool, ...] = ()
    local_rope: Rope | None = None
    norm: str = "rms"
    norm_eps: float = 1e-6
    norm_offset: float = 0.0
    pre_norm: bool = True
    post_norm: bool = False
    parallel: bool = False
    tied: bool = False
    attention_bias: bool = False
    output_bias: bool = False
    qk_norm: str | None = None
    attention_scale: float | None = None
    attention_cap: float | None = None
    activation: str = "silu"
    gated: bool = True
    mlp_bias: bool = False
    experts: int = 0
    chosen: int = 0
    shares_sum_to_one: bool = False
    embed_scale: float = 1.0
    residual_scale: float = 1.0
    logit_scale: float = 1.0
    logit_cap: float | None = None

    def __post_init__(self):
        faults = [
            f"{name} must be at least 1; got {getattr(self, name)}"
            for name in ("vocab", "layers", "width", "heads", "kv_heads", "head_width", "neurons", "context")
            if getattr(self, name) < 1
        ]
        if not faults and self.heads % self.kv_heads:
            faults.append(f"kv_heads must divide heads; got heads={self.heads}, kv_heads={self.kv_heads}")
        for name in ("norm_eps", "embed_scale", "residual_scale", "logit_scale"):
            if not 0 < getattr(self, name) < math.inf:
                faults.append(f"{name} must be positive and finite; got {getattr(self, name)}")
        for name in ("attention_scale", "attention_cap", "logit_cap"):
            if (value := getattr(self, name)) is not None and not 0 < value < math.inf:
                faults.append(f"{name} must be positive and finite; got {value}")
        for name, known in CHOICES.items():
            if (value := getattr(self, name)) not in known:
                faults.append(f"{name} must be one of {', '.join(map(str, known))}; got {value}")
        faults += [fault for rope in (self.rope, self.local_rope) if rope for fault in rope.faults(self.head_width)]
        if self.rope is None and self.local_rope:
            faults.append("local layers can have rotary positions of their own only where the others have some")
        if 0 < self.positions < self.context:
            faults.append(f"positions must be at least context = {self.context}; got {self.positions}")
        if not self.pre_norm and not self.post_norm:
            faults.append("a block needs norms: pre_norm, post_norm or both")
        if self.experts and not 1 <= self.chosen <= self.experts:
            faults.append(f"chosen must be 1 to {self.experts}, the experts there are; got {self.chosen}")
        if self.experts and self.mlp_bias:
            faults.append("experts have no biases; got mlp_bias=True")
        if self.window is not None and self.window < 1:
            faults.append(f"window must be at least 1; got {self.window}")
        if self.window is None and (any(self.local) or self.local_rope):
            faults.append("local layers need a window; got None")
        if self.local and len(self.local) != self.layers:
            faults.append(f"local must say of each layer whether it is; got {len(self.local)} for {self.layers} layers")
        if faults:
            raise ConfigError(faults)

    @property
    def mlp_matrices(self) -> int:
        """gate, up and down; or up and down."""
        return 3 if self.gated else 2

    @property
    def active_neurons(self) -> int:
        """Neurons of a block that one token goes through."""
        return self.neurons * (self.chosen if self.experts else 1)

    @property
    def sizes(self) -> dict[str, int]:
        """Shape letter -> length, in the alphabet of `shapes`."""
        return {
            "V": self.vocab,
            "L": self.layers,
            "D": self.width,
            "N": self.heads,
            "K": self.kv_heads,
            "H": self.head_width,
            "F": self.neurons,
            "P": self.positions,
            "E": self.experts,
        }
