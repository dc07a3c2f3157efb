"""Take a LoRA-tuned text-embedding model from training to serving, and prove it."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anna_export.backends import open_encoder
    from anna_export.integrations.sentence_transformer import sentence_transformer
    from anna_export.verify.mteb_model import mteb_model

__all__ = ["mteb_model", "open_encoder", "sentence_transformer"]


def __getattr__(name: str) -> Any:
    # loaded on first use, so that `anna-export --help` needs neither torch nor onnxruntime
    if name == "open_encoder":
        from anna_export.backends import open_encoder

        return open_encoder
    if name == "sentence_transformer":
        from anna_export.integrations.sentence_transformer import sentence_transformer

        return sentence_transformer
    if name == "mteb_model":
        from anna_export.verify.mteb_model import mteb_model

        return mteb_model
    raise AttributeError(f"module 'anna_export' has no attribute {name!r}")
