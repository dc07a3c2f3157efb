"""Read all that an export needs, and refuse what it cannot do, before anything is written."""

from collections.abc import Mapping
from dataclasses import dataclass

from anna_export.artifact.manifest import MANIFEST_FILE
from anna_export.calibrate.request import CalibrationRequest
from anna_export.calibrate.texts import CalibrationTexts, calibration_texts
from anna_export.engines.build import require_buildable
from anna_export.export.bake import prefix_bytes
from anna_export.export.recipe import Recipe
from anna_export.files.atomic import require_absent, require_outside
from anna_export.quantise.footprint import DEFAULT_TOKENS, forecast
from anna_export.quantise.options import Quantised
from anna_export.quantise.scheme import Scheme
from anna_export.text.framing import framing_of
from anna_export.text.prompt_file import find_prompts, read_prompt_file
from anna_export.text.prompts import Prompts
from anna_export.text.tokeniser import Tokeniser
from anna_export.weights.checkpoint import Checkpoint


@dataclass(frozen=True, slots=True)
class Prepared:
    """A recipe whose inputs are open.

    Args:
        recipe: What was asked.
        scheme: How the graphs are made.
        checkpoint: Base and adapter, their weights not read yet.
        tokeniser: The model's; no other is loaded while the artifact is made.
        framing_source: What decided how it frames a text.
        prompts: Those to bake.
        texts: What to calibrate on; None where nothing is quantised.
    """

    recipe: Recipe
    scheme: Scheme
    checkpoint: Checkpoint
    tokeniser: Tokeniser
    framing_source: Mapping[str, str]
    prompts: Prompts
    texts: CalibrationTexts | None

    @property
    def disk_bytes(self) -> int:
        """Free disk needed while the artifact is made."""
        spec, framing = self.checkpoint.spec, self.tokeniser.framing
        tokens = DEFAULT_TOKENS if self.texts is None else self.texts.tokens
        needed = forecast(spec, framing, self.scheme, tokens)
        prompts = self.prompts.by_name.values()
        return needed.disk_bytes + prefix_bytes(spec, self.scheme, self.tokeniser, prompts)

    @property
    def calibration_request(self) -> CalibrationRequest:
        """What to calibrate for, where layers are quantised."""
        scheme, max_loss = self.scheme, self.scheme.thresholds.max_loss
        assert scheme.linear is not None and max_loss is not None
        folder = self.recipe.calibration_folder
        return CalibrationRequest(scheme.linear, scheme.embedding, max_loss, folder)


def prepare(recipe: Recipe) -> Prepared:
    """Open a recipe's inputs.

    Raises:
        AnnaError: If an input cannot be used, or the output may not be written.
    """
    require_outside(recipe.out, *recipe.sources)
    require_absent(recipe.out, overwrite=recipe.overwrite, holding=MANIFEST_FILE)
    require_absent(recipe.rejected, overwrite=True, holding=MANIFEST_FILE)
    storage, scheme = recipe.storage, recipe.storage.scheme
    if recipe.engines is not None:
        require_buildable(scheme.precision, recipe.engines)
    checkpoint = Checkpoint.open(recipe.model, recipe.adapter)
    reading = framing_of(
        recipe.model, checkpoint.spec, recipe.max_tokens, adapter=recipe.adapter, eos=recipe.eos
    )
    tokeniser = Tokeniser.open(recipe.tokenizer, reading.framing)
    prompts = (
        find_prompts(recipe.model, recipe.adapter)
        if recipe.prompts is None
        else read_prompt_file(recipe.prompts)
    )
    tokeniser.require_room(prompts.by_name.values())
    texts = None
    if isinstance(storage, Quantised):
        texts = calibration_texts(storage.calibration, tokeniser, prompts)
    return Prepared(recipe, scheme, checkpoint, tokeniser, reading.source, prompts, texts)
