"""anna-train recipe."""

from importlib import resources
from pathlib import Path

import click

from anna_export.console import commands, output
from anna_export.errors import InputError


@click.command("recipe", cls=commands.Verb, example="anna-train recipe lgai-like --out my-training")
@click.argument("name")
@click.option("--out", type=commands.path, required=True, help="Folder to write it into.")
@output.json_option
def command(name: str, out: Path, as_json: bool) -> None:
    """Write a recipe that ships with anna-train, and its prompts, to be edited.

    NAME is lgai-like (Mistral-7B; every value that the paper leaves unknown is marked) or demo (the
    small model of the demonstration).
    """
    shipped = resources.files("anna_train") / "recipes"
    names = sorted(folder.name for folder in shipped.iterdir() if folder.is_dir())
    if name not in names:
        raise InputError(f"expected a recipe of {', '.join(names)}, found {name!r}")
    files = {file.name: file.read_text(encoding="utf-8") for file in (shipped / name).iterdir()}
    for file in files:
        if (out / file).exists():
            raise InputError(f"expected no {file} in {out}, found one; name another folder")
    out.mkdir(parents=True, exist_ok=True)
    for file, text in files.items():
        (out / file).write_text(text, encoding="utf-8")
    if as_json:
        output.print_json({"folder": str(out), "files": sorted(files)})
    else:
        output.print_rows(
            {"recipe": str(out / "recipe.yaml"), "prompts": str(out / "prompts.json")}
        )
