"""How the demonstration's base model is trained, as plain values."""

from dataclasses import dataclass

from anna_export.text.prompt_formats import FORMATS

# Longest sequence of the finished model, `<s>`, prompt and `</s>` included.
MAX_TOKENS = 512
_INSTRUCTION = "Given a summary, retrieve the documentation it belongs to"
PROMPTS = {"query": FORMATS["e5"].prompt(_INSTRUCTION).front, "document": ""}


@dataclass(frozen=True, slots=True)
class BaseRecipe:
    """How the base model is trained; the defaults take about 60 s on one CPU thread."""

    steps: int = 320
    batch_pairs: int = 48
    train_tokens: int = 32  # texts are cut here in training only
    learning_rate: float = 3e-3
    warmup_share: float = 0.1
    temperature: float = 0.05
    seed: int = 0
