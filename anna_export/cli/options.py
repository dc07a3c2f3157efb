"""What several verbs share: how their help is laid out, arguments and options."""

import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import click

from anna_export.choices import BACKENDS, DEVICES, Target
from anna_export.errors import AnnaError, InputError, MissingError
from anna_export.spec import Precision

Command = TypeVar("Command", bound=Callable[..., Any])


class Verb(click.Command):
    """A command whose help ends in an example."""

    def __init__(self, *args: Any, example: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.example = example

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; an error that names a field then names its flag."""
        try:
            return super().invoke(ctx)
        except AnnaError as error:
            error.args = (with_flags(str(error), self.params), *error.args[1:])
            raise

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the example, unwrapped, so that it can be copied."""
        with formatter.section("Example"):
            formatter.write(f"  {self.example}\n")


def with_flags(message: str, parameters: Iterable[click.Parameter]) -> str:
    """Replace each field in backquotes by the flag of the parameter of that name, if there is one.

    The library knows fields, `max_tokens`; a command line knows flags, --max-tokens.
    """
    flags = {parameter.name: parameter.opts[0] for parameter in parameters}
    return re.sub(r"`(\w+)`", lambda field: flags.get(field[1], field[0]), message)


class Verbs(click.Group):
    """A group of commands, which are named where one is asked for that is not there."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, or name those there are."""
        if args[0] not in self.commands:
            raise InputError(f"expected a command of {', '.join(self.commands)}, found {args[0]!r}")
        return super().resolve_command(ctx, args)


class _Folder(click.Path):
    """A folder to read: that it is missing is said before libraries are loaded for seconds."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        found = Path(os.fsdecode(super().convert(value, param, ctx)))
        if found.exists() and not found.is_dir():
            raise InputError(
                f"expected a folder, found a file at {found}; name the folder it is in"
            )
        if not found.is_dir():
            raise MissingError(
                f"expected a folder, found none at {found}; models, adapters and artifacts are "
                "read from disk, so download them first"
            )
        return found


def target_option(default: Target | None) -> Callable[[Command], Command]:
    """Return --target with a default, or with none."""
    return click.option(
        "--target",
        type=click.Choice([str(target) for target in Target]),
        default=None if default is None else str(default),
        show_default=default is not None,
        help="Library that builds the engines: tensorrt (TensorRT 11) builds for a data-centre GPU "
        "and runs on that GPU; tensorrt-rtx builds for workstation GPUs and needs none.",
    )


capability_option = click.option(
    "--compute-capability",
    "capabilities",
    multiple=True,
    metavar="X.Y",
    help="GPU to build engines for; repeatable. Default: this machine's, and without one 8.9 and "
    "12.0.",
)
path = click.Path(path_type=Path)
folder = _Folder(path_type=Path)

artifact_argument = click.argument("artifact", type=folder)
model_option = click.option(
    "--model", type=folder, required=True, help="Folder of the base model (safetensors)."
)
adapter_option = click.option("--adapter", type=folder, help="Folder of a LoRA adapter over it.")
overwrite_option = click.option(
    "--overwrite", is_flag=True, help="Replace the output if it exists."
)
max_tokens_option = click.option(
    "--max-tokens",
    type=int,
    help="Longest sequence in tokens, prompt and end token included; longer texts are truncated. "
    "Default: the first of the model's max_seq_length, its tokenizer's model_max_length, its "
    "sliding window and its position count that is set.",
)
backend_option = click.option(
    "--backend",
    type=click.Choice(BACKENDS),
    default="auto",
    show_default=True,
    help="Runtime: ONNX Runtime (ort), the artifact's TensorRT engine for this GPU (trt), or "
    "PyTorch in fp32 over the stored weights (pytorch); auto takes trt if the artifact holds an "
    "engine for this GPU, else ort.",
)
device_option = click.option(
    "--device",
    type=click.Choice(DEVICES),
    default="auto",
    show_default=True,
    help="Where to compute; auto takes CUDA where the backend has it.",
)

_PRECISIONS = {
    Precision.FP32: "32-bit float; the default.",
    Precision.FP16: "16-bit float for GPUs with fp32 norms; a CPU computes in fp32.",
    Precision.BF16: "bfloat16 for GPUs; a CPU computes in fp32.",
    Precision.FP8: "8-bit float (E4M3) matrix products for GPUs of compute capability 8.9 or "
    "newer; a CPU computes them in fp32, rounded alike.",
    Precision.INT8: "8-bit integer matrix products, for CPUs.",
    Precision.INT4: "4-bit integer weights, for small memories; for CPUs.",
}


def precision_options(command: Command) -> Command:
    """Add one flag for every precision."""
    for precision, text in reversed(_PRECISIONS.items()):
        command = click.option(f"--{precision}", str(precision), is_flag=True, help=text)(command)
    return command


def chosen_precision(flags: dict[str, bool]) -> Precision:
    """Return the one precision that was asked for; fp32 if none was.

    Raises:
        InputError: If several were.
    """
    asked = [precision for precision in Precision if flags[precision]]
    if len(asked) > 1:
        raise InputError(f"expected one precision, found --{' and --'.join(asked)}; give one")
    return asked[0] if asked else Precision.FP32
