"""Which cached prefix a text starts with, and how much of it."""

from collections.abc import Mapping, Sequence
from itertools import takewhile

from anna_export.spec import Head
from anna_export.text.prompts import Prompt

# A text that merges with a prompt's end shares all of its prefix but these tokens, or fewer; one
# that shares less, or not even half of it, has another prompt.
_BORDER_TOKENS = 8
# In front of a text this many times as long, computing a prefix again costs no more than using it.
_WORTH = 16


def most_cached_tokens(head: Head, tokens: int, prompt_tokens: int) -> int:
    """Return how many of a text's first tokens may be cached: those whose states no head needs.

    Args:
        head: What stands behind the decoder.
        tokens: The text's, its prompt's among them.
        prompt_tokens: How many at its start pooling leaves out, where it does.
    """
    if not head.leaves_out_prompt:
        return tokens
    return prompt_tokens if prompt_tokens < tokens else 0


def longest_cached_prefix(
    ids: Sequence[int], prefix_ids: Mapping[Prompt, list[int]], most: int
) -> tuple[Prompt | None, int]:
    """Find the prompt whose cached prefix a text starts with.

    Args:
        ids: The text's token ids, framed.
        prefix_ids: The token ids of each cached prefix.
        most: How many tokens may be cached.

    Returns:
        The prompt with the most tokens in common, and how many; None and 0 where no prefix shares
        enough of them.
    """
    length, prompt = 0, None
    for candidate, front in prefix_ids.items():
        shared = _shared_tokens(ids, front)
        least = max(len(front) - _BORDER_TOKENS, len(front) // 2 + 1)
        if shared >= least and shared > length:
            length, prompt = shared, candidate
    length = min(length, most)
    if prompt is None or not length or length * _WORTH < len(ids) - length:
        return None, 0
    return prompt, length


def _shared_tokens(ids: Sequence[int], front: list[int]) -> int:
    """Count the tokens that a text and a prefix start with; one of the text's is left over."""
    if list(ids[: len(front)]) == front and len(ids) > len(front):
        return len(front)
    pairs = zip(ids[:-1], front, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
