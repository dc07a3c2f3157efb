"""An encoder behind its store: what tells two texts apart."""

from anna_export.text.prompts import NO_PROMPT, Prompt
from anna_export.verify.stored_encoder import behind, text_key


def test_a_key_tells_text_prompt_and_prefix_apart() -> None:
    parts = [("a", Prompt("b")), ("ab", NO_PROMPT), ("a", Prompt("", "b")), ("", Prompt("ab"))]
    different = [text_key(*pair) for pair in parts]
    first, second = behind("00" * 32, different), behind("11" * 32, different)
    assert len({*different, *first, *second}) == 12
    assert behind("", different) == different
