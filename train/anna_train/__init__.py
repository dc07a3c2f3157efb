"""Training of Mistral-shaped text-embedding models."""
