"""What computes a baked prompt best: the artifact's arithmetic, its weights, or the model in fp32?

    python -m benchmarks.decided.prefix_precision  five precisions, two models; about three minutes
    python -m benchmarks.decided.prefix_precision --quick  int8 alone

Two models: the demo's, and its base with a massive activation at `<s>`, as large models have one.
Held-out texts are embedded behind few-shot prompts whose keys and values were computed by the
artifact's weights with its rounding of activations ("own"), by its weights alone ("weights"), or by
the unquantised model ("fp32"), which is what an export does; with the prompt computed again for
every text ("whole"); and, without a prompt, behind a prefix of `<s>` alone. Judged is the mean of
1 - cosine to the reference in PyTorch.
"""

import json
import shutil
import sys
import tempfile
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
from safetensors.torch import load_file, save_file

from anna_export import quantise
from anna_export.artifact.folder import Artifact
from anna_export.backends import load_encoder
from anna_export.console.output import stage
from anna_export.encoder import Encoder
from anna_export.export.bake import keys_and_values
from anna_export.export.pipeline import export
from anna_export.export.recipe import Recipe
from anna_export.quantise.options import storage
from anna_export.reference.backend import PytorchBackend
from anna_export.reference.load import open_reference
from anna_export.reference.stored import stored_model
from anna_export.reference.streamed import (
    open_streamed,
    open_streamed_artifact,
    open_streamed_checkpoint,
)
from anna_export.spec import Precision
from anna_export.text.batching import TokenSequence, batches
from anna_export.text.prefix import Prefix
from anna_export.text.prompts import NO_PROMPT, Prompt
from anna_export.weights.checkpoint import TORCH_DTYPES, Checkpoint
from benchmarks.lib.record import Figure, Results, main, models_option, say
from demo.models import heldout_texts, make_models

PRECISIONS: Final = (
    Precision.INT8,
    Precision.INT4,
    Precision.FP8,
    Precision.BF16,
    Precision.FP16,
)
QUANTISED: Final = tuple(f", {precision}" for precision in ("int8", "int4", "fp8"))
EXAMPLES: Final = (0, 2, 8)
TEXTS: Final = 160
EXAMPLE_WORDS: Final = 20
ARTIFACT, WEIGHTS, FP32, UNCACHED = "own", "weights", "fp32", "whole"
MASSIVE: Final = 1000.0
MAX_TOKENS: Final = 1024


def measure(arguments: Namespace) -> Results:
    """Run the benchmark."""
    models = make_models(arguments.models)
    drawn = heldout_texts(arguments.models, TEXTS + 2 * max(EXAMPLES))
    examples, texts = drawn[: 2 * max(EXAMPLES)], drawn[2 * max(EXAMPLES) :]
    prompts = [_prompt(examples, count) for count in EXAMPLES]
    samples: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(prefix="anna-prefix-") as name:
        folder = Path(name)
        massive = _with_massive_start(models.base, folder / "massive")
        for label, base, adapter in (
            ("demo", models.base, models.adapter),
            ("massive <s>", massive, None),
        ):
            for precision in PRECISIONS[:1] if arguments.quick else PRECISIONS:
                say(f"{label}, {precision}")
                out = folder / "artifact"
                # judged here, not by the export
                loss = None if quantise.load(precision).linear is None else 1.0
                recipe = Recipe(
                    base,
                    adapter,
                    out,
                    storage(precision, max_loss=loss),
                    MAX_TOKENS,
                    verify=False,
                )
                artifact = export(recipe, stage).artifact
                reference = open_reference(base, adapter, framing=artifact.manifest.framing)
                checkpoint = Checkpoint.open(base, adapter)
                samples[f"{label}, {precision}"] = _losses(
                    artifact, checkpoint, reference, prompts, texts
                )
                say(json.dumps(samples[f"{label}, {precision}"]))
                shutil.rmtree(out)
    figures = [
        _ratio(name, losses, *compared)
        for name, losses in samples.items()
        if name.endswith(QUANTISED)
        for compared in (
            ("prompts", FP32, UNCACHED, 1.0),
            ("prompts", FP32, ARTIFACT, 1.0),
            ("prompts", WEIGHTS, UNCACHED, 1.05),
            ("no prompt", FP32, UNCACHED, 1.05),
        )
    ]
    return Results(figures, samples)


def _prompt(examples: Sequence[str], count: int) -> Prompt:
    shots = [
        f"Instruct: Find what is documented.\nQuery: {_cut(query)}\nResponse: {_cut(answer)}\n\n"
        for query, answer in zip(examples[::2], examples[1::2], strict=True)
    ]
    return Prompt("".join([*shots[:count], "Instruct: Find what is documented.\nQuery: "]))


def _cut(text: str) -> str:
    return " ".join(text.split()[:EXAMPLE_WORDS])


def _with_massive_start(base: Path, out: Path) -> Path:
    """Copy a model; in one channel, which `<s>` alone has, two down projections fire."""
    shutil.copytree(base, out)
    weights = load_file(out / "model.safetensors")
    channel, neuron, start = 3, 0, 1
    table = weights["embed_tokens.weight"]
    table[:, channel] = 0
    table[start, channel] = 10 * table.abs().max()
    for layer in ("layers.0.", "layers.1."):
        weights[f"{layer}self_attn.o_proj.weight"][channel] = 0
        weights[f"{layer}post_attention_layernorm.weight"][channel] = 1
        for name, value in (("gate_proj", 8.0), ("up_proj", 1.0)):
            weights[f"{layer}mlp.{name}.weight"][neuron] = 0
            weights[f"{layer}mlp.{name}.weight"][neuron, channel] = value
        weights[f"{layer}mlp.down_proj.weight"][channel] = 0
        weights[f"{layer}mlp.down_proj.weight"][channel, neuron] = MASSIVE / 100
    save_file(weights, out / "model.safetensors", {"format": "pt"})
    return out


def _losses(
    artifact: Artifact,
    checkpoint: Checkpoint,
    reference: Encoder,
    prompts: Sequence[Prompt],
    texts: Sequence[str],
) -> dict[str, float]:
    """Return the mean loss of each way, over all prompts, and without one."""
    manifest = artifact.manifest
    stored = stored_model(artifact)
    ways: dict[str, PytorchBackend] = {
        ARTIFACT: open_streamed_artifact(artifact),
        WEIGHTS: open_streamed(manifest.spec, stored.read, "stored weights"),
        FP32: open_streamed_checkpoint(checkpoint),
    }
    opened, tokeniser = load_encoder(artifact), artifact.tokeniser()
    dtype = TORCH_DTYPES[quantise.scheme_of(manifest).compute_dtype]

    def prefix(prompt: Prompt, way: str) -> Prefix | None:
        if way == UNCACHED:
            return None
        ids = tokeniser.prefix_ids(prompt)
        ((keys, values),) = keys_and_values(ways[way], [ids])
        return Prefix(tuple(ids), *(x.to(dtype).float().numpy() for x in (keys, values)))

    losses: dict[str, float] = {}
    for name, group in (("prompts", prompts), ("no prompt", [NO_PROMPT])):
        expected = [_embed(reference, texts, prompt, None) for prompt in group]
        for way in (UNCACHED, ARTIFACT, WEIGHTS, FP32):
            got = [_embed(opened, texts, prompt, prefix(prompt, way)) for prompt in group]
            losses[f"{name}, {way}"] = float(
                np.mean([1 - (a * b).sum(axis=1) for a, b in zip(got, expected, strict=True)])
            )
    return losses


def _embed(
    encoder: Encoder, texts: Sequence[str], prompt: Prompt, prefix: Prefix | None
) -> np.ndarray:
    """Embed texts behind a prefix, however short it is."""
    rows = [
        TokenSequence(ids)
        if prefix is None or tuple(ids[: len(prefix)]) != prefix.ids
        else TokenSequence(ids[len(prefix) :], prefix)
        for ids in encoder.tokeniser.ids(texts, prompt)
    ]
    vectors = np.empty((len(rows), encoder.dim))
    for members in batches(rows, encoder.limits):
        batch = encoder.batch([rows[index] for index in members])
        vectors[members] = encoder.backend.run(batch)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _ratio(
    name: str, losses: dict[str, float], group: str, way: str, other: str, target: float
) -> Figure:
    ratio = losses[f"{group}, {way}"] / losses[f"{group}, {other}"]
    label = f"{name}, {group}: loss, {way} over {other}"
    return Figure(label, ratio, "x", f"<= {target}", ratio <= target)


if __name__ == "__main__":
    sys.exit(main("prefix-precision", measure, quick="int8 alone.", options=models_option))
