"""Which versions of which libraries are installed: what a figure or an artifact depends on."""

import importlib.metadata
from typing import Final

_DISTRIBUTIONS: Final = (
    "anna-export",
    "numpy",
    "onnx-ir",
    "onnxruntime",
    "onnxruntime-gpu",
    "peft",
    "safetensors",
    "tokenizers",
    "torch",
    "transformers",
)


def installed() -> dict[str, str]:
    """Return the version of each library that decides a vector and is installed here."""
    found = {}
    for name in _DISTRIBUTIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
