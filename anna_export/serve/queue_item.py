"""What a request's text is in the queue."""

from dataclasses import dataclass

from anna_export.text.prompts import Prompt


@dataclass(frozen=True, slots=True)
class QueueItem:
    """A text to embed; equal items have equal vectors.

    Args:
        ids: Its token ids after the cached prefix; they are computed.
        prompt: Whose cached prefix they follow; None for none.
        cached_tokens: How many tokens of that prefix, from its start.
        prompt_tokens: Tokens at its start, cached ones too, that pooling leaves out.
    """

    ids: tuple[int, ...]
    prompt: Prompt | None = None
    cached_tokens: int = 0
    prompt_tokens: int = 0

    @property
    def tokens(self) -> int:
        """All tokens, those of the cached prefix included."""
        return self.cached_tokens + len(self.ids)
