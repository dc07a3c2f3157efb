"""Take a LoRA-tuned Mistral text-embedding model from training to serving, and prove it."""
