"""What the card tells whoever runs the graph in another runtime: inputs, framing, one example."""

import onnx_ir as ir
import tokenizers

from anna_export.artifact.folder import Artifact
from anna_export.artifact.manifest import Golden, Manifest
from anna_export.graph import padding
from anna_export.graph.names import ATTENTION_MASK, CANONICAL
from anna_export.graph.stored_graph import read_graph
from anna_export.text.framing import TOKENIZER_FILE
from anna_export.verify.golden import GoldenVector

_FIRST_VALUES = 6


def graph_section(artifact: Artifact, golden: list[GoldenVector]) -> str:
    """Return the section of the card.

    Args:
        artifact: What the card is of; its graph and its tokenizer are read.
        golden: Vectors of its proof; none where it was not proved.
    """
    graph = read_graph(artifact, CANONICAL).graph
    either = any(node.name == padding.CHECK for node in graph)
    side = "on either side" if either else "on the right alone"
    return f"""## Without anna-export

ONNX Runtime 1.23 or newer runs `model.cpu.onnx` on a CPU; `model.onnx` is the same in standard \
operators. Each reads `model.onnx.data` beside it.

| | type | shape | |
|---|---|---|---|
{_signature(graph, side)}

{_facts(artifact, side, golden)}
"""


def _signature(graph: ir.Graph, side: str) -> str:
    rows = []
    for role, values in (("input", graph.inputs), ("output", graph.outputs)):
        for value in values:
            note = "may be left out" if value.name in graph.initializers else ""
            if value.name == ATTENTION_MASK:
                note = f"1 for a token, 0 for padding, which is {side}"
            dtype = value.dtype.numpy().name if value.dtype is not None else ""
            shape = ", ".join(map(str, value.shape or ()))
            rows.append(f"| {role} `{value.name}` | {dtype} | ({shape}) | {note} |")
    return "\n".join(rows)


def _facts(artifact: Artifact, side: str, golden: list[GoldenVector]) -> str:
    manifest = artifact.manifest
    framing, head = manifest.framing, manifest.spec.head
    tokenizer = tokenizers.Tokenizer.from_file(str(artifact.folder / TOKENIZER_FILE))

    def token(token_id: int) -> str:
        return f"`{tokenizer.id_to_token(token_id)}` ({token_id})"

    around = [*map(token, framing.front_ids), "prompt and text", *map(token, framing.back_ids)]
    example = _example(manifest)
    lines = [
        f"ids: {', '.join(around)}; at most {framing.max_tokens} in all, a longer text cut on the "
        f"{framing.truncation_side} and these ends kept",
        f"padding: {token(framing.pad_id)} {side}",
        f"computed in the graph: {head.describe()}, {head.length}",
        f"example: {example.text!r} has the ids {example.ids}",
    ]
    vectors = [each.values() for each in golden if each.ids == example.ids]
    if vectors:
        first = ", ".join(f"{value:.5f}" for value in vectors[0][:_FIRST_VALUES])
        lines[-1] += f", and its vector begins {first} (the PyTorch model's)"
    frames = tokenizer.encode(example.text).ids == example.ids
    lines.append(
        "`tokenizer.json` gives these ids by itself; but a special token's name in a text is a "
        "token for it, and plain text for anna-export"
        if frames
        else "`tokenizer.json` does not give these ids by itself: put the ends around them"
    )
    return "\n".join(f"- {line}" for line in lines)


def _example(manifest: Manifest) -> Golden:
    """Return the first golden text that one can see; the first vectors of a proof are theirs."""
    return next((each for each in manifest.golden if each.text.strip()), manifest.golden[0])
