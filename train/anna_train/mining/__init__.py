"""Hard negatives and soft labels: two retrievers, a reranker over both, and an adaptive margin."""
