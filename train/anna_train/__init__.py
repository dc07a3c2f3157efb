"""Training of text-embedding models: LoRA over decoders of every supported family."""
