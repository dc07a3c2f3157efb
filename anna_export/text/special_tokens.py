"""Aliases of special tokens: a prompt may hold them as tokens, a text only as plain text."""

import secrets
from dataclasses import dataclass

import tokenizers

from anna_export.text.framing import TokenFraming


@dataclass(frozen=True, slots=True)
class SpecialTokenAliases:
    """What stands for special tokens in a prompt: names to write, and ids to read as theirs."""

    names: dict[str, str]
    ids: dict[int, int]


def add_aliases(tokenizer: tokenizers.Tokenizer, framing: TokenFraming) -> SpecialTokenAliases:
    """Give each special token an alias of a name nobody can guess, which is a token in any text.

    The tokenizer takes all special tokens for plain text, since a user's text may hold their names.
    Those that frame a text have no alias: a prompt does not end it.
    """
    nonce = secrets.token_hex(8)
    ends = {framing.bos_id, framing.eos_id, framing.pad_id}
    specials = {
        special_id: token
        for special_id, token in tokenizer.get_added_tokens_decoder().items()
        if token.special and special_id not in ends
    }
    names, ids = {}, {}
    # longest first: a name may hold another
    for special_id, token in sorted(specials.items(), key=lambda item: -len(item[1].content)):
        alias = tokenizers.AddedToken(
            f"<{nonce}.{special_id}>",
            single_word=token.single_word,
            lstrip=token.lstrip,
            rstrip=token.rstrip,
            normalized=token.normalized,
            special=False,
        )
        tokenizer.add_tokens([alias])
        added = tokenizer.token_to_id(alias.content)
        assert added is not None
        names[token.content], ids[added] = alias.content, special_id
    return SpecialTokenAliases(names, ids)
