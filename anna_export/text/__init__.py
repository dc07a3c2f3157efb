"""Text to token ids: framing, prompts, batches."""
