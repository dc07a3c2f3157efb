"""The model card: what an artifact is, how it was proved, how it is used."""

import json

from anna_export.artifact import CARD_FILE, PARITY_FILE, Artifact, Manifest, add_evidence
from anna_export.verify.vectors import Parity


def add_proof(artifact: Artifact, parity: Parity | None) -> Artifact:
    """Write parity.json, if there is a parity, and the card that tells it."""
    if parity is not None:
        text = json.dumps(parity.to_json(), indent=2, ensure_ascii=False) + "\n"
        artifact = add_evidence(artifact, PARITY_FILE, text, parity.prompts)
    return add_evidence(artifact, CARD_FILE, model_card(artifact, parity))


def model_card(artifact: Artifact, parity: Parity | None) -> str:
    """Return the card as Markdown with the metadata block that model hubs read."""
    manifest = artifact.manifest
    spec, contract, source = manifest.spec, manifest.contract, manifest.source
    made_from = f"`{source.model}`" + (
        f" with the LoRA `{source.adapter}`" if source.adapter else ""
    )
    prompts = "\n".join(
        f"- `{name}`{_tokens(manifest, name)}: {prompt.front!r}"
        + (f" … {prompt.back!r}" if prompt.back else "")
        for name, prompt in manifest.prompts.by_name.items()
    )
    return f"""---
library_name: anna-export
pipeline_tag: sentence-similarity
tags: [sentence-transformers, feature-extraction, onnx, embeddings]
---

# Text embeddings, {manifest.precision}

Made from {made_from} by anna-export {manifest.versions.get("anna-export", "")}.

| | |
|---|---|
| dimensions | {spec.dim}, unit length (cosine = dot product) |
| longest text | {contract.max_tokens} tokens, prompt and end token included; longer ones are cut |
| model | {spec.layers} layers, {spec.parameters:,} parameters, last-token pooling |
| size | {artifact.size_bytes / 1e6:.1f} MB |
| artifact | `{manifest.artifact_id}` |

## Proof

{_proof(parity)}
{_quantised(manifest)}
## Prompts

{prompts or "None."}

## Use

```python
import anna_export

encoder = anna_export.open_encoder("this folder")
vectors = encoder.encode(["a text", "another"])  # (2, {spec.dim}) float32
```
"""


def _tokens(manifest: Manifest, name: str) -> str:
    baked = manifest.prefixes.get(name)
    return f" ({len(baked.ids)} tokens, computed ahead)" if baked is not None else ""


def _quantised(manifest: Manifest) -> str:
    quantised = manifest.quantised
    if quantised is None:
        return ""
    kept = "".join(f"- `{name}`: {why}\n" for name, why in quantised.high_precision.items())
    return f"""
## Quantisation

Calibrated on {quantised.calibration_texts} texts of {quantised.calibration_tokens:,} tokens; \
what is not quantised is {quantised.arithmetic}. Linear layers kept in it, by their input:

{kept or "None."}
"""


def _bound(word: str, value: float | None) -> str:
    return "" if value is None else f" ({word} {value})"


def _proof(parity: Parity | None) -> str:
    if parity is None:
        return "Not verified: the export ran with `--no-verify`."
    alone = (
        f"\n| a text alone and in a batch, worst cosine | {parity.alone_worst_cosine:.7f} |"
        if parity.alone_worst_cosine is not None
        else ""
    )
    return f"""Against {parity.reference}; measured with {parity.candidate} on {parity.hardware}:
{parity.method}.

| verdict | **{parity.verdict}** |
|---|---|
| worst cosine{_bound("at least", parity.floor)} | {parity.worst_cosine:.7f} |
| mean cosine | {parity.mean_cosine:.7f} |
| mean loss, 1 - cosine{_bound("at most", parity.max_loss)} | {parity.loss:.2e} |
| largest difference | {parity.max_abs:.2e} |{alone}
| texts | {parity.texts}, the longest of {parity.longest_tokens:,} tokens |
| prompts | none{"".join(f", `{name}`" for name in parity.prompts)} |"""
