"""What is asked of an export."""

from dataclasses import dataclass, field
from pathlib import Path

from anna_export.engines.request import EngineRequest
from anna_export.files.model_folders import Adapters, in_order
from anna_export.quantise.options import Fp32, Storage
from anna_export.text.framing import find_tokenizer


@dataclass(frozen=True, slots=True)
class Recipe:
    """What is exported, how it is stored, and where to.

    Args:
        model: The base model's folder.
        adapter: The LoRA adapter's folder, or several in the order they are merged in.
        out: The artifact's folder.
        storage: How its weights are stored.
        max_tokens: Longest sequence; None takes the model's own limit.
        overwrite: Replace `out` if it exists.
        verify: Prove it.
        prompts: A prompts.json; None for the prompts of the last adapter with some, else of the
            model.
        engines: Engines to build of it; None for none.
        eos: Whether an end token follows a text; None asks the tokenizer's files.
    """

    model: Path
    adapter: Adapters
    out: Path
    storage: Storage = field(default_factory=Fp32)
    max_tokens: int | None = None
    overwrite: bool = False
    verify: bool = True
    prompts: Path | None = None
    engines: EngineRequest | None = None
    eos: bool | None = None

    @property
    def calibration_folder(self) -> Path:
        """The folder of unfinished calibration: an interrupted export is resumed from it."""
        out = self.out.resolve()
        return out.with_name(f".{out.name}.calibration")

    @property
    def rejected(self) -> Path:
        """Where an artifact goes that is not close enough to its reference."""
        out = self.out.resolve()
        return out.with_name(f"{out.name}.rejected")

    @property
    def sources(self) -> tuple[Path, ...]:
        """The folders that are read."""
        return (self.model, *in_order(self.adapter))

    @property
    def tokenizer(self) -> Path:
        """The one of them that the tokenizer is read from."""
        return find_tokenizer(self.model, self.adapter)
