"""What a decoder is made of."""

from dataclasses import dataclass, field

from jaxpatch.models.rope import Rope


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
        rope: rotary positions.
        window: tokens back, its own included, that a local layer sees; None where all layers see everything.
        local: which layers are local, a bool each; empty where all are that can be.
        local_rope: rotary positions of local layers; those of the others where None.
        norm_eps: added to the mean square inside a norm.
        tied: the unembedding is the embedding, transposed.
        attention_bias: q, k and v have biases. output_bias: o has one.
        qk_norm: queries and keys are normalised, head by head, before they are turned.
        mlp_bias: gate, up and down have biases.
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
    rope: Rope = field(default_factory=Rope)
    window: int | None = None
    local: tuple[bool, ...] = ()
    local_rope: Rope | None = None
    norm_eps: float = 1e-6
    tied: bool = False
    attention_bias: bool = False
    output_bias: bool = False
    qk_norm: bool = False
    mlp_bias: bool = False

    def __post_init__(self):
        faults = [
            f"{name} must be at least 1; got {getattr(self, name)}"
            for name in ("vocab", "layers", "width", "heads", "kv_heads", "head_width", "neurons", "context")
            if getattr(self, name) < 1
        ]
        if not faults and self.heads % self.kv_heads:
            faults.append(f"kv_heads must divide heads; got heads={self.heads}, kv_heads={self.kv_heads}")
        if self.head_width % 2:
            faults.append(f"head_width must be even; got {self.head_width}")
        if self.norm_eps <= 0:
            faults.append(f"norm_eps must be positive; got {self.norm_eps}")
        faults += self.rope.faults() + (self.local_rope.faults() if self.local_rope else [])
        if self.window is not None and self.window < 1:
            faults.append(f"window must be at least 1; got {self.window}")
        if self.window is None and (any(self.local) or self.local_rope):
            faults.append("local layers need a window; got None")
        if self.local and len(self.local) != self.layers:
            faults.append(f"local must say of each layer whether it is; got {len(self.local)} for {self.layers} layers")
        if faults:
            raise ValueError("; ".join(faults) + ".")

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
        }
