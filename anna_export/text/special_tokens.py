"""Aliases of special tokens: a prompt may hold them as tokens, a text only as plain text."""

import secrets
from dataclasses import dataclass

import tokenizers

from anna_export.text.framing import TokenContract


@dataclass(frozen=True, slots=True)
class SpecialTokenAliases:
    """What stands for special tokens in a prompt: names to write, and ids to read as theirs."""

    names: dict[str, str]
    ids: dict[int, int]


def add_aliases(tokenizer: tokenizers.Tokenizer, contract: TokenContract) -> SpecialTokenAliases:
    """Give each special token a twin of a name nobody can guess, which is a token in any text.

    The tokenizer takes all special tokens for plain text, since a user's text may hold their names.
    Those that frame a text have no twin: a prompt does not end it.
    """
    nonce = secrets.token_hex(8)
    framing = {contract.bos_id, contract.eos_id, contract.pad_id}
    specials = {
        own: token
        for own, token in tokenizer.get_added_tokens_decoder().items()
        if token.special and own not in framing
    }
    names, ids = {}, {}
    # longest first: a name may hold another
    for own, token in sorted(specials.items(), key=lambda item: -len(item[1].content)):
        twin = tokenizers.AddedToken(
            f"<{nonce}.{own}>",
            single_word=token.single_word,
            lstrip=token.lstrip,
            rstrip=token.rstrip,
            normalized=token.normalized,
            special=False,
        )
        tokenizer.add_tokens([twin])
        added = tokenizer.token_to_id(twin.content)
        assert added is not None
        names[token.content], ids[added] = twin.content, own
    return SpecialTokenAliases(names, ids)
