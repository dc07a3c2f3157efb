"""The families of decoders that are exported, a file each."""

from typing import Final

from anna_export.spec.families.gemma3_text import GEMMA3_TEXT
from anna_export.spec.families.llama import LLAMA
from anna_export.spec.families.ministral3 import MINISTRAL3
from anna_export.spec.families.mistral import MISTRAL
from anna_export.spec.families.qwen2 import QWEN2
from anna_export.spec.families.qwen3 import QWEN3
from anna_export.spec.family import Family

# By model_type.
FAMILIES: Final = {
    family.model_type: family for family in (MISTRAL, MINISTRAL3, LLAMA, QWEN2, QWEN3, GEMMA3_TEXT)
}

__all__ = ["FAMILIES", "Family"]
