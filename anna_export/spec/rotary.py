"""The numbers of rotary embedding, beyond its base."""

from dataclasses import dataclass
from enum import StrEnum


class RotaryKind(StrEnum):
    """How frequencies are scaled for longer texts than were trained on; transformers' rope_type."""

    LINEAR = "linear"
    LLAMA3 = "llama3"
    YARN = "yarn"


@dataclass(frozen=True, slots=True)
class RotaryScaling:
    """What transformers' rope_parameters say of one rope_type.

    Args:
        kind: The rule.
        factor: By how much long wavelengths are stretched.
        original_positions: Longest sequence before; of llama3 and yarn.
        low_freq_factor: Of llama3: the original positions by it are the longest wavelength kept.
        high_freq_factor: Of llama3: the original positions by it are the shortest one stretched.
        beta_fast: Of yarn: turns over the original positions from which on a frequency is kept.
        beta_slow: Of yarn: turns up to which a frequency is stretched in full.
        truncate: Of yarn: whether the channels between the two are rounded to whole ones.
        attention_factor: Of yarn: what cosines and sines are multiplied by.
    """

    kind: RotaryKind
    factor: float
    original_positions: int | None = None
    low_freq_factor: float = 1.0
    high_freq_factor: float = 1.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float = 1.0

    def of_kind(self) -> dict[str, float | bool | None]:
        """Return what the kind has beside its factor, by transformers' keys."""
        positions = {"original_max_position_embeddings": self.original_positions}
        match self.kind:
            case RotaryKind.LINEAR:
                return {}
            case RotaryKind.LLAMA3:
                frequencies = {"low_freq_factor": self.low_freq_factor}
                return positions | frequencies | {"high_freq_factor": self.high_freq_factor}
            case RotaryKind.YARN:
                return positions | {
                    "beta_fast": self.beta_fast,
                    "beta_slow": self.beta_slow,
                    "truncate": self.truncate,
                    "attention_factor": self.attention_factor,
                }


@dataclass(frozen=True, slots=True)
class QueryScaling:
    """Queries grow with their position: times 1 + beta * log(1 + floor(position / positions)).

    Exactly 1 at the first `positions`. Source: get_llama_4_attn_scale of transformers' Ministral3.
    """

    beta: float
    positions: int


@dataclass(frozen=True, slots=True)
class Rotary:
    """One rotary embedding: its base, and how its frequencies are scaled."""

    theta: float
    scaling: RotaryScaling | None = None
