"""Which shapes an engine is optimised for: buckets of length, batches by a token budget."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Final

from anna_export.graph.names import (
    ATTENTION_MASK,
    INPUT_IDS,
    PREFIX_KEYS,
    PREFIX_VALUES,
    PROMPT_TOKENS,
)
from anna_export.spec import EmbeddingSpec

TOKEN_BUDGET: Final = 16_384
LENGTHS: Final = (64, 512, 4096)
# Up to so many tokens, reading the weights takes longer than multiplying them: padding is free.
FREE_TOKENS: Final = 256
_STEP: Final = 8
Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Profile:
    """One bucket: batches of 1 to `batch` rows of `shortest` to `longest` tokens, and a prefix.

    Optimised for its longest rows, as many as the budget takes, behind `usual_prefix` tokens.
    """

    shortest: int
    longest: int
    batch: int
    usual_prefix: int
    longest_prefix: int

    def shapes(self, spec: EmbeddingSpec, inputs: frozenset[str]) -> dict[str, tuple[Shape, ...]]:
        """Return the smallest, usual and largest shape of each of these inputs."""
        rows = ((1, self.shortest), (self.batch, self.longest), (self.batch, self.longest))
        prefixes = tuple(
            (spec.layers, spec.kv_heads, tokens, spec.head_dim)
            for tokens in (0, self.usual_prefix, self.longest_prefix)
        )
        every: Mapping[str, tuple[Shape, ...]] = {
            INPUT_IDS: rows,
            ATTENTION_MASK: rows,
            PREFIX_KEYS: prefixes,
            PREFIX_VALUES: prefixes,
            PROMPT_TOKENS: tuple((batch,) for batch, _ in rows),
        }
        return {name: shapes for name, shapes in every.items() if name in inputs}

    def to_json(self) -> dict[str, int]:
        """Return it as JSON holds it."""
        return asdict(self)


def choose_profiles(
    max_tokens: int, prefixes: list[int], budget: int = TOKEN_BUDGET
) -> list[Profile]:
    """Return one profile a bucket of lengths.

    Args:
        max_tokens: Longest sequence, prefix included.
        prefixes: Tokens of each baked prefix; empty for an engine that takes none.
        budget: Most tokens of a batch; a single longer text still fits.
    """
    usual_prefix = max(prefixes, default=0)
    # longer prompts may be added later
    longest_prefix = max_tokens - 1 if prefixes else 0
    ends = [*(length for length in LENGTHS if length < max_tokens), max_tokens]
    profiles, shortest = [], 1
    for end in ends:
        batch = max(1, budget // end)
        profiles.append(Profile(shortest, end, batch, usual_prefix, longest_prefix))
        shortest = end + 1
    return profiles


@dataclass(frozen=True, slots=True)
class Bucket:
    """The shape that a batch is computed in."""

    profile: int  # index
    rows: int
    tokens: int  # of a row, without a prefix
    is_small: bool  # one of few shapes that every small batch is padded to


def choose_bucket(profiles: Sequence[Profile], rows: int, tokens: int, prefix: int = 0) -> Bucket:
    """Return the shape to compute a batch in: where it is small, a padded one.

    Args:
        profiles: The engine's; the last one's longest row is the model's longest sequence.
        rows: Texts; the bucket may have fewer rows, where the profile takes no more.
        tokens: Of the longest text, without a prefix; some profile has it.
        prefix: Tokens in front of every text; no position behind them passes the longest sequence.
    """
    index = next(i for i, profile in enumerate(profiles) if tokens <= profile.longest)
    profile = profiles[index]
    rows = min(rows, profile.batch)
    more_rows = min(1 << (rows - 1).bit_length(), profile.batch)
    more_tokens = min(-(-tokens // _STEP) * _STEP, profile.longest, profiles[-1].longest - prefix)
    if more_rows * more_tokens <= FREE_TOKENS:
        return Bucket(index, more_rows, more_tokens, is_small=True)
    return Bucket(index, rows, tokens, is_small=False)
