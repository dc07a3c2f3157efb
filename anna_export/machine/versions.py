"""Which versions of which libraries are installed: what a figure or an artifact depends on."""

import hashlib
import importlib.metadata
from pathlib import Path
from typing import Final

_DISTRIBUTIONS: Final = (
    "anna-export",
    "cuda-bindings",
    "datasets",
    "mteb",
    "numpy",
    "onnx-ir",
    "onnxruntime",
    "onnxruntime-gpu",
    "peft",
    "pytrec_eval-terrier",
    "safetensors",
    "scikit-learn",
    "scipy",
    "sentence-transformers",
    "tensorrt",
    "tensorrt-rtx",
    "tokenizers",
    "torch",
    "transformers",
    "triton",
)


def installed() -> dict[str, str]:
    """Return the version of each library that decides a vector or a score, if it is installed."""
    versions = {}
    for name in _DISTRIBUTIONS:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def source_sha256() -> str:
    """Return the sha256 of this package's source: what it computes may change with it."""
    folder = Path(__file__).parent.parent
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(folder)} {len(content)}\n".encode() + content)
    return digest.hexdigest()
