"""Training's tests use the demonstration's small base model and corpus."""

from tests.demo.conftest import one_thread, tiny_base, tiny_corpus

__all__ = ["one_thread", "tiny_base", "tiny_corpus"]
