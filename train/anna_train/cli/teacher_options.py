"""What mine and score share: the options that choose what ranks and scores."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from anna_export.console import commands

if TYPE_CHECKING:
    from anna_train.mining.settings import TeacherSettings

Command = TypeVar("Command", bound=Callable[..., Any])

_OPTIONS = (
    click.option(
        "--encoder",
        type=commands.folder,
        help="Folder of the dense retriever: an artifact, or a sentence-transformers model. "
        "Default: LSA over the texts themselves.",
    ),
    click.option(
        "--query-prompt",
        help="Name of the encoder's prompt for queries; empty for none. Default: the one named "
        "query if there is one, else the model's default.",
    ),
    click.option(
        "--reranker",
        default="learned",
        show_default=True,
        help="learned: a logistic regression over lexical and dense features, trained on one half "
        "of the queries to score the other; none: the dense cosine; or the folder of a "
        "sentence-transformers CrossEncoder.",
    ),
    click.option(
        "--depth",
        default=100,
        show_default=True,
        help="Texts that BM25 and the dense retriever each find for a query.",
    ),
    click.option("--seed", default=0, show_default=True, help="Random seed."),
    click.option(
        "--cache",
        type=commands.path,
        help="Folder that stores the encoder's vectors, so that later runs compute only new ones. "
        "Default: a folder that is removed when the output is finished.",
    ),
)


def teacher_options(command: Command) -> Command:
    """Add the options to a command."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def teacher_settings(
    *,
    encoder: Path | None,
    query_prompt: str | None,
    reranker: str,
    depth: int,
    seed: int,
    cache: Path | None,
) -> "TeacherSettings":
    """Return what the options say.

    Raises:
        AnnaError: If one is out of range, or a folder is not what it should be.
    """
    from anna_train.mining.settings import TeacherSettings

    return TeacherSettings(
        encoder=encoder,
        query_prompt=query_prompt,
        reranker="learned"
        if reranker == "learned"
        else "none"
        if reranker == "none"
        else Path(reranker),
        depth=depth,
        seed=seed,
        cache=cache,
    )
