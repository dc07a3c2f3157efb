"""How the demonstration's models are trained, as plain values."""

from dataclasses import dataclass

# Longest sequence of the finished model, `<s>`, prompt and `</s>` included.
MAX_TOKENS = 512
PROMPTS = {
    "query": "Instruct: Given a summary, retrieve the documentation it belongs to\nQuery: ",
    "document": "",
}


@dataclass(frozen=True, slots=True)
class BaseRecipe:
    """How the base model is trained; the defaults take about 60 s on one CPU thread."""

    steps: int = 250
    batch_pairs: int = 48
    train_tokens: int = 32  # texts are cut here in training only
    learning_rate: float = 3e-3
    warmup_share: float = 0.1
    temperature: float = 0.05
    seed: int = 0


@dataclass(frozen=True, slots=True)
class LoraRecipe:
    """How the adapter is tuned; the defaults take about 35 s on one CPU thread."""

    rank: int = 16
    alpha: int = 32
    dropout: float = 0.05
    steps: int = 50
    batch_pairs: int = 48
    train_tokens: int = 48  # prompt included; texts are cut here in training only
    learning_rate: float = 2e-3
    temperature: float = 0.05
    seed: int = 0
