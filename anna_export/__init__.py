"""Take a LoRA-tuned Mistral text-embedding model from training to serving, and prove it."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anna_export.backends import open_encoder
    from anna_export.st import sentence_transformer

__all__ = ["open_encoder", "sentence_transformer"]


def __getattr__(name: str) -> Any:
    # loaded on first use, so that `anna-export --help` needs neither torch nor onnxruntime
    if name == "open_encoder":
        from anna_export.backends import open_encoder

        return open_encoder
    if name == "sentence_transformer":
        from anna_export.st import sentence_transformer

        return sentence_transformer
    raise AttributeError(f"module 'anna_export' has no attribute {name!r}")
