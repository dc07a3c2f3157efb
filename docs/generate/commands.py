"""The command-line reference: one page a program, from its click commands."""

from collections.abc import Iterator

import click

from docs.generate.markdown import cell, table


def page(program: str, group: click.Group) -> str:
    """Return the page of a program: its help, then every command in its order."""
    context = click.Context(group, info_name=program)
    parts = [f"# {program}", _prose(group)]
    for command, inner in _commands(group, context):
        parts += [f"## {inner.command_path}", _prose(command), _usage(command, inner)]
        if example := getattr(command, "example", None):
            parts.append(f"Example:\n\n```bash\n{example}\n```")
        parts.append(_options(command, inner))
    return "\n\n".join(part for part in parts if part) + "\n"


def _commands(
    group: click.Group, context: click.Context
) -> Iterator[tuple[click.Command, click.Context]]:
    for name, command in group.commands.items():
        inner = click.Context(command, info_name=name, parent=context)
        if isinstance(command, click.Group):
            yield from _commands(command, inner)
        else:
            yield command, inner


def _prose(command: click.Command) -> str:
    """Return a command's help as Markdown; its paragraphs are wrapped for a terminal."""
    paragraphs = (command.help or "").split("\n\n")
    return "\n\n".join(map(cell, paragraphs))


def _usage(command: click.Command, context: click.Context) -> str:
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    return f"```text\n{usage}\n```"


def _options(command: click.Command, context: click.Context) -> str:
    records = [
        record
        for parameter in command.get_params(context)
        if isinstance(parameter, click.Option)
        and "--help" not in parameter.opts
        and (record := parameter.get_help_record(context)) is not None
    ]
    return table(["option", "meaning"], [[f"`{names}`", cell(text)] for names, text in records])
