"""What is asked of an export."""

from dataclasses import dataclass
from pathlib import Path

from anna_export import quantise
from anna_export.calibrate.request import Request
from anna_export.engines.request import EngineRequest
from anna_export.errors import InputError
from anna_export.quantise.scheme import Scheme
from anna_export.spec import Precision
from anna_export.text.framing import find_tokenizer


@dataclass(frozen=True, slots=True)
class Recipe:
    """What was asked.

    Args:
        model: The base model's folder.
        adapter: The LoRA adapter's folder.
        out: The artifact's folder.
        precision: What it is stored in.
        max_tokens: Longest sequence; None takes the model's own limit.
        overwrite: Replace `out` if it exists.
        verify: Prove it.
        high_precision: With fp8, the type of what is not quantised; None for its default.
        max_loss: With fp8, int8 or int4, the largest mean 1 - cosine; None for the default.
        calibration: A file of texts for these; None for docstrings of the standard library.
        prompts: A prompts.json; None for the prompts of the adapter, else of the model.
        engines: Engines to build of it; None for none.
    """

    model: Path
    adapter: Path | None
    out: Path
    precision: Precision
    max_tokens: int | None = None
    overwrite: bool = False
    verify: bool = True
    high_precision: Precision | None = None
    max_loss: float | None = None
    calibration: Path | None = None
    prompts: Path | None = None
    engines: EngineRequest | None = None

    @property
    def scheme(self) -> Scheme:
        """The scheme asked for.

        Raises:
            InputError: If it does not take what was asked with it.
        """
        scheme = quantise.load(self.precision, self.high_precision).with_max_loss(self.max_loss)
        if scheme.linear is None and self.calibration is not None:
            raise InputError(
                f"expected --calibration with --fp8, --int8 or --int4, found it with "
                f"--{self.precision}, which needs none; leave it out"
            )
        return scheme

    @property
    def request(self) -> Request:
        """What to calibrate for."""
        scheme, max_loss = self.scheme, self.scheme.thresholds.max_loss
        assert scheme.linear is not None and max_loss is not None
        return Request(scheme.linear, scheme.embedding, max_loss, self.work)

    @property
    def work(self) -> Path:
        """The folder of unfinished calibration: an interrupted export goes on with it."""
        out = self.out.resolve()
        return out.with_name(f".{out.name}.calibration")

    @property
    def sources(self) -> tuple[Path, ...]:
        """The folders that are read."""
        return (self.model,) if self.adapter is None else (self.model, self.adapter)

    @property
    def tokenizer(self) -> Path:
        """The one of them that the tokenizer is read from."""
        return find_tokenizer(self.model, self.adapter)
