"""What stands behind a decoder: pooling, Dense modules, and whether a vector has unit length."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from anna_export.errors import UnsupportedError


class PoolingMode(StrEnum):
    """How the hidden states of a text become one row; names of sentence-transformers' Pooling."""

    LAST = "lasttoken"
    MEAN = "mean"
    CLS = "cls"


class Activation(StrEnum):
    """What follows a Dense module's product; each is a module of torch.nn."""

    IDENTITY = "identity"
    TANH = "tanh"
    RELU = "relu"
    GELU = "gelu"  # by erf, torch's default
    SIGMOID = "sigmoid"
    SILU = "silu"


class Similarity(StrEnum):
    """What vectors are compared by; names of sentence-transformers."""

    COSINE = "cosine"
    DOT = "dot"
    EUCLIDEAN = "euclidean"
    MANHATTAN = "manhattan"


def pooling_words(mode: str, *, leaves_out_prompt: bool) -> str:
    """Return how a Pooling module is named where both sides of a proof name it."""
    return f"Pooling ({mode}{', without the prompt' if leaves_out_prompt else ''})"


def dense_words(in_features: int, out_features: int, activation: str, *, bias: bool) -> str:
    """Return how a Dense module is named there."""
    return f"Dense ({in_features} to {out_features}, {activation}{'' if bias else ', no bias'})"


@dataclass(frozen=True, slots=True)
class Dense:
    """A linear layer over the pooled row, and its activation."""

    in_features: int
    out_features: int
    bias: bool
    activation: Activation

    def __post_init__(self) -> None:
        if self.in_features < 1 or self.out_features < 1:
            raise UnsupportedError(
                f"expected a Dense module of positive sizes, found {self.in_features} to "
                f"{self.out_features}"
            )


@dataclass(frozen=True, slots=True)
class Head:
    """Pooling, then Dense modules, then unit L2 length, if there is any.

    Args:
        pooling: Which tokens' states are pooled.
        include_prompt: Whether a prompt's tokens are pooled too; the last token is never one.
        dense: Linear layers over the pooled row, in their order.
        normalize: Whether vectors have unit L2 length.

    Raises:
        UnsupportedError: If the Dense modules' sizes do not follow one another.
    """

    pooling: PoolingMode = PoolingMode.LAST
    include_prompt: bool = True
    dense: tuple[Dense, ...] = ()
    normalize: bool = True

    def __post_init__(self) -> None:
        for before, after in zip(self.dense, self.dense[1:], strict=False):
            if before.out_features != after.in_features:
                raise UnsupportedError(
                    f"expected a Dense module of {before.out_features} inputs behind one of as "
                    f"many outputs, found {after.in_features}"
                )

    @property
    def leaves_out_prompt(self) -> bool:
        """Whether a vector depends on how many tokens its prompt has, which are not pooled."""
        return not self.include_prompt and self.pooling is not PoolingMode.LAST

    @property
    def takes_prefix(self) -> bool:
        """Whether a prompt's keys and values are all that a vector needs of it.

        A mean over the prompt too needs its tokens' states, and the first token is one of them.
        """
        return self.leaves_out_prompt or self.pooling is PoolingMode.LAST

    def modules(self) -> list[str]:
        """Return the modules, in the words that sentence-transformers' own are told in."""
        dense = [
            dense_words(each.in_features, each.out_features, each.activation, bias=each.bias)
            for each in self.dense
        ]
        pooling = pooling_words(self.pooling, leaves_out_prompt=self.leaves_out_prompt)
        return [pooling, *dense, *(["Normalize"] if self.normalize else [])]

    def describe(self) -> str:
        """Return it in words: "last-token pooling", "mean pooling, Dense 40 to 24 (tanh)"."""
        pooling = self.pooling_phrase + (" without the prompt" if self.leaves_out_prompt else "")
        dense = [f"Dense {x.in_features} to {x.out_features} ({x.activation})" for x in self.dense]
        return ", ".join([pooling, *dense])

    @property
    def pooling_phrase(self) -> str:
        """What the pooling is called in a sentence: "mean pooling"."""
        names = {"lasttoken": "last-token", "mean": "mean", "cls": "first-token"}
        return f"{names[self.pooling]} pooling"

    @property
    def length(self) -> str:
        """What is said of a vector's length."""
        return "unit length" if self.normalize else "as long as the model makes them"

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return each Dense weight's name and its shape: (out, in), and (out,) of a bias."""
        shapes: dict[str, tuple[int, ...]] = {}
        for index, dense in enumerate(self.dense):
            shapes[f"head.dense.{index}.weight"] = (dense.out_features, dense.in_features)
            if dense.bias:
                shapes[f"head.dense.{index}.bias"] = (dense.out_features,)
        return shapes


# What most decoders that embed have, and a folder without modules.json is taken to have.
LAST_TOKEN: Final = Head()
