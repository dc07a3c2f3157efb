"""Arguments and options that several commands share."""

from collections.abc import Callable

import click

from anna_export.choices import BACKENDS, DEVICES, Target
from anna_export.console.commands import Command, folder
from anna_export.errors import InputError
from anna_export.spec import Precision


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
artifact_argument = click.argument("artifact", type=folder)
model_option = click.option(
    "--model", type=folder, required=True, help="Folder of the base model (safetensors)."
)
max_tokens_option = click.option(
    "--max-tokens",
    type=int,
    help="Longest sequence in tokens, prompt and end token included; longer texts are truncated. "
    "Default: the first of the model's max_seq_length, its tokenizer's model_max_length, its "
    "sliding window and its position count that is set.",
)
eos_option = click.option(
    "--eos/--no-eos",
    default=None,
    help="Whether an end token follows every text, where the tokenizer's files do not say it or "
    "contradict one another. Default: as the tokenizer does.",
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


def adapter_option(*, required: bool = False) -> Callable[[Command], Command]:
    """Return --adapter, which may be repeated."""
    return click.option(
        "--adapter",
        type=folder,
        multiple=True,
        required=required,
        help="Folder of a LoRA adapter over it; repeatable: adapters are merged in the order "
        "given.",
    )


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
    chosen = [precision for precision in Precision if flags[precision]]
    if len(chosen) > 1:
        raise InputError(f"expected one precision, found --{' and --'.join(chosen)}; give one")
    return chosen[0] if chosen else Precision.FP32
