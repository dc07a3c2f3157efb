"""What both sides make of a model's folder, compared before a vector is.

The reference's libraries say which modules there are, which prompts, which token ids a text has
and which of them are pooled; an artifact says the same of itself. A difference is named.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch

from anna_export.artifact.manifest import Manifest
from anna_export.reference.head import pooled_tokens
from anna_export.spec import EmbeddingSpec
from anna_export.text.prompts import NO_PROMPT, Prompts
from anna_export.text.tokeniser import Tokeniser
from anna_export.verify.checks import id_difference
from anna_export.verify.parity_report import ReferenceLibrary

if TYPE_CHECKING:
    from anna_export.reference.encoder import LibraryTokeniser, ReferenceEncoder
    from anna_export.reference.library import Library

_COMPARED: Final = ["modules", "prompts", "pooled tokens", "token ids", "vectors"]


@dataclass(frozen=True, slots=True)
class Reading:
    """What the reference is, and in what an artifact's reading of its folder differs from it."""

    library: ReferenceLibrary
    dim: int  # length of the reference's vectors
    differences: list[str]


def compare_readings(
    reference: "ReferenceEncoder", manifest: Manifest, tokeniser: Tokeniser, texts: Sequence[str]
) -> Reading:
    """Compare modules, prompts, pooled tokens and token ids; the first difference of each kind.

    Args:
        reference: The libraries' side.
        manifest: What the artifact that is proved says of itself.
        tokeniser: Its own.
        texts: Whose token ids are compared, without and with every prompt.
    """
    library, expected = reference.backend.library, reference.tokeniser
    modules = library.modules()
    side = manifest.framing.truncation_side
    differences = [
        *_module_differences(modules, manifest.spec.head.modules()),
        *_prompt_differences(library.prompts, manifest.prompts, manifest.given_prompts),
        *_side_differences(expected.truncation_side, side),
        *_id_differences(expected, tokeniser, manifest.prompts, texts),
    ]
    if not differences:
        differences = _pooled_differences(library, expected, tokeniser, manifest)
    source = ReferenceLibrary(
        library=library.name,
        decoder=library.decoder,
        adapter=library.lora,
        modules=modules,
        compared=_COMPARED,
    )
    return Reading(source, library.dim, differences)


def _module_differences(expected: Sequence[str], modules: Sequence[str]) -> list[str]:
    if list(expected) == list(modules):
        return []
    return [
        f"the reference's modules are {', '.join(expected)}, the artifact's {', '.join(modules)}"
    ]


def _prompt_differences(
    expected: Mapping[str, str], prompts: Prompts, given_names: Collection[str]
) -> list[str]:
    """Compare the prompts of one name; those that were given at export are nobody else's."""
    differences = []
    for name, prompt in sorted(prompts.by_name.items()):
        front = expected.get(name, prompt.front)
        if name not in given_names and front != prompt.front:
            differences.append(
                f"the prompt {name} is {front!r} in the reference, {prompt.front!r} in the artifact"
            )
    return differences


def _side_differences(expected: str, side: str) -> list[str]:
    if expected == side:
        return []
    return [
        f"the reference's tokenizer truncates a long text at its {expected} end "
        f"(truncation_side), the artifact at its {side} end"
    ]


def _id_differences(
    expected: "LibraryTokeniser", tokeniser: Tokeniser, prompts: Prompts, texts: Sequence[str]
) -> list[str]:
    """Compare the token ids of every text that the library can be asked for."""
    for name, prompt in {"no prompt": NO_PROMPT, **prompts.by_name}.items():
        asked_texts = [text for text in texts if expected.comparable(text, prompt)]
        both = zip(
            asked_texts,
            expected.ids(asked_texts, prompt),
            tokeniser.ids(asked_texts, prompt),
            strict=True,
        )
        for text, theirs, ids in both:
            if theirs != ids:
                difference = id_difference(theirs, ids, tokeniser.id_to_token)
                return [f"{difference} ({name}: {text[:60]!r})"]
    return []


def _pooled_differences(
    library: "Library", expected: "LibraryTokeniser", tokeniser: Tokeniser, manifest: Manifest
) -> list[str]:
    """Compare the tokens that count in the pooled row, for a short text with every prompt."""
    for name, prompt in {"no prompt": NO_PROMPT, **manifest.prompts.by_name}.items():
        (ids,) = expected.ids(["What is pooled?"], prompt)
        theirs = library.pooled_tokens(len(ids), expected.prompt_tokens(prompt))
        pooled = _pooled(manifest.spec, len(ids), tokeniser.prompt_tokens(prompt))
        if theirs != pooled:
            return [
                f"the reference pools the tokens {theirs} of {len(ids)}, the artifact {pooled} "
                f"({name})"
            ]
    return []


def _pooled(spec: EmbeddingSpec, length: int, skipped: int) -> list[int]:
    """Return which tokens of a text an artifact pools."""
    lengths, prompt_tokens = torch.tensor([length]), torch.tensor([skipped])
    pooled = pooled_tokens(spec.head, torch.arange(length), lengths, prompt_tokens)
    return torch.nonzero(pooled[0]).flatten().tolist()
