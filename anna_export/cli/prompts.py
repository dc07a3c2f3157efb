"""anna-export prompts: list, add, remove."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from anna_export.cli import options
from anna_export.console import commands, output
from anna_export.errors import InputError
from anna_export.spec import Precision

_WIDTH: Final = 90

if TYPE_CHECKING:
    from anna_export.artifact.folder import Artifact
    from anna_export.spec import EmbeddingSpec


@click.group("prompts", cls=commands.Verbs)
def group() -> None:
    """Show or change an artifact's prompts. Its weights are not written again."""


@group.command("list", cls=commands.Verb, example="anna-export prompts list artifact")
@options.artifact_argument
@output.json_option
def list_command(artifact: Path, as_json: bool) -> None:
    """Show an artifact's prompts, their lengths, and which of them have a parity proof."""
    from anna_export.artifact.folder import open_artifact

    _show(open_artifact(artifact), as_json)


@group.command("add", cls=commands.Verb, example="anna-export prompts add artifact prompts.json")
@options.artifact_argument
@click.argument("file", type=commands.path)
@click.option(
    "--model",
    type=commands.folder,
    help="Folder of the base model that the artifact was made from: it computes the prompts' keys "
    "and values in fp32, as an export does. Default: the artifact's stored weights compute them.",
)
@options.adapter_option()
@click.option("--overwrite", is_flag=True, help="Replace prompts of the same names.")
@output.json_option
def add_command(
    artifact: Path,
    file: Path,
    model: Path | None,
    adapter: tuple[Path, ...],
    overwrite: bool,
    as_json: bool,
) -> None:
    """Add the prompts of a prompts.json. The proof of other prompts stays valid.

    Their keys and values are computed once and stored beside the weights; embedding a text reads
    them and computes only the text's own tokens.
    """
    if adapter and model is None:
        raise InputError("expected --model with --adapter, found none; name the base model too")
    from anna_export.export.edit_prompts import add_prompts
    from anna_export.text.prompt_file import read_prompt_file
    from anna_export.weights.checkpoint import Checkpoint

    added = read_prompt_file(file)
    checkpoint = Checkpoint.open(model, adapter) if model is not None else None
    with output.stage("bake prompts", "tokens") as progress:
        changed = add_prompts(
            artifact, added, overwrite=overwrite, checkpoint=checkpoint, progress=progress
        )
    _show(changed, as_json)


@group.command("remove", cls=commands.Verb, example="anna-export prompts remove artifact sts query")
@options.artifact_argument
@click.argument("names", nargs=-1, required=True)
@output.json_option
def remove_command(artifact: Path, names: tuple[str, ...], as_json: bool) -> None:
    """Remove prompts by name. The proof of other prompts stays valid."""
    from anna_export.export.edit_prompts import remove_prompts

    _show(remove_prompts(artifact, names), as_json)


def _baked(artifact: "Artifact", name: str) -> dict[str, Any] | None:
    entry = artifact.manifest.prefixes.get(name)
    if entry is None:
        return None
    # fp32 weights are stored as they are
    exact = entry.exact or artifact.manifest.precision is Precision.FP32
    return {"tokens": len(entry.ids), "size_bytes": entry.size_bytes, "exact": exact}


def _why_none_is_baked(spec: "EmbeddingSpec") -> str:
    if spec.takes_prefix:
        return ""
    reason = (
        "the model's attention is bidirectional"
        if spec.head.takes_prefix
        else f"{spec.head.pooling_phrase} includes the prompt"
    )
    return f"prompts are computed with every text: {reason}"


def _baked_cell(baked: dict[str, Any] | None) -> str:
    if baked is None:
        return "no"
    return output.size(baked["size_bytes"]) + ("" if baked["exact"] else "*")


def _shortened(front: str) -> str:
    """Leave out the middle of a long one; --json shows it whole."""
    text = repr(front)
    return text if len(text) <= _WIDTH else f"{text[: _WIDTH - 30]} … {text[-27:]}"


def _show(artifact: "Artifact", as_json: bool) -> None:
    from anna_export.export.edit_prompts import proved_prompts

    prompts, hashes = artifact.manifest.prompts, artifact.manifest.prompts.hashes()
    tokeniser, proved = artifact.tokeniser(), proved_prompts(artifact)
    entries: dict[str, dict[str, Any]] = {
        name: {
            "tokens": tokeniser.prompt_length(prompt),
            "documents": prompts.documents.get(name, ""),
            "proved": name in proved,
            "baked": _baked(artifact, name),
            "sha256": hashes[name],
            "front": prompt.front,
            "back": prompt.back,
        }
        for name, prompt in prompts.by_name.items()
    }
    if as_json:
        output.print_json({"default": prompts.default, "prompts": entries})
        return
    if not entries:
        output.print_line("no prompts; add some with anna-export prompts add")
        return
    rows = [_row(name, entry, prompts.default) for name, entry in entries.items()]
    heads = ("prompt", "tokens", "baked", "proved", "its documents", "text")
    output.print_table(heads, rows)
    if why := _why_none_is_baked(artifact.manifest.spec):
        output.print_line(why)
    if any(row["baked"] and not row["baked"]["exact"] for row in entries.values()):
        output.print_line(
            "* by rounded weights; prompts add --model MODEL --adapter ADAPTER computes it exactly"
        )
    if not proved.issuperset(entries):
        output.print_line(
            "prompts without a proof: run anna-export verify ARTIFACT --model MODEL "
            "--adapter ADAPTER"
        )


def _row(name: str, entry: dict[str, Any], default: str | None) -> tuple[str, ...]:
    return (
        name + (" (default)" if name == default else ""),
        str(entry["tokens"]),
        _baked_cell(entry["baked"]),
        "yes" if entry["proved"] else "no",
        str(entry["documents"]) or "as they are",
        _shortened(str(entry["front"])) + (f" … {entry['back']!r}" if entry["back"] else ""),
    )
