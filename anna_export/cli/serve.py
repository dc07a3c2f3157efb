"""anna-export serve."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from anna_export.choices import BACKENDS, DEVICES
from anna_export.cli import options
from anna_export.console import commands
from anna_export.text.prompt_formats import FORMATS


def _option(*names: str, **settings: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return an option that an environment variable sets too: ANNA_ and its name."""
    variable = "ANNA_" + names[-1].lstrip("-").replace("-", "_").upper()
    return click.option(*names, envvar=variable, show_envvar=True, **settings)


@click.command("serve", cls=commands.Verb, example="anna-export serve artifact --port 8080")
@options.artifact_argument
@_option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@_option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8080,
    show_default=True,
    help="Port to listen on; 0 takes a free one and names it in the first line of the log.",
)
@_option("--served-model-name", help="What requests call the model. Default: the folder's name.")
@_option("--max-batch-tokens", type=int, help="Most tokens of one batch. Default: the backend's.")
@_option(
    "--max-client-batch-size",
    type=int,
    default=2048,
    show_default=True,
    help="Most texts of one request.",
)
@_option(
    "--max-request-tokens",
    type=int,
    default=300_000,
    show_default=True,
    help="Most tokens of one request, prompts included.",
)
@_option(
    "--payload-limit",
    type=int,
    default=16 << 20,
    show_default=True,
    help="Largest request body in bytes; all bodies in memory together take at most 64 times this.",
)
@_option(
    "--max-concurrent-requests",
    type=int,
    default=2048,
    show_default=True,
    help="Most requests in progress at once; the server answers more with 429.",
)
@_option(
    "--max-queue-seconds",
    type=float,
    default=1.0,
    show_default=True,
    help="Longest waiting time in the queue, forecast from the measured rate; the server answers "
    "a request that would wait longer with 429 and Retry-After.",
)
@_option(
    "--stall-seconds",
    type=float,
    default=120.0,
    show_default=True,
    help="Time for one batch after which the encoder counts as hung, if it is also 20 times the "
    "usual time: the server restarts it and answers its requests with 503.",
)
@_option(
    "--drain-seconds",
    type=float,
    default=30.0,
    show_default=True,
    help="Time that open requests have to finish after SIGTERM.",
)
@_option(
    "--instruction-format",
    type=click.Choice(list(FORMATS)),
    default="e5",
    show_default=True,
    help="Prompt format for the `instruction` that a request brings.",
)
@_option(
    "--api-key",
    "api_keys",
    multiple=True,
    metavar="KEY",
    help="API key that clients must send; repeatable. In the environment variable, separate keys "
    "by spaces.",
)
@_option(
    "--api-key-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="A file with one key a line.",
)
@_option(
    "--require-verified",
    is_flag=True,
    help="Refuse an artifact without a passing parity verdict for the backend it is served with.",
)
@_option("--threads", type=int, help="CPU threads that compute. Default: one a core.")
@_option(
    "--backend",
    type=click.Choice(BACKENDS),
    default="auto",
    show_default=True,
    help="Runtime: ONNX Runtime (ort), the artifact's TensorRT engine for this GPU (trt), or "
    "PyTorch in fp32 (pytorch); auto takes trt if there is such an engine, else ort.",
)
@_option(
    "--device",
    type=click.Choice(DEVICES),
    default="auto",
    show_default=True,
    help="Where to compute; auto takes CUDA where the backend has it.",
)
def command(
    artifact: Path,
    host: str,
    port: int,
    served_model_name: str | None,
    max_batch_tokens: int | None,
    max_client_batch_size: int,
    max_request_tokens: int,
    payload_limit: int,
    max_concurrent_requests: int,
    max_queue_seconds: float,
    stall_seconds: float,
    drain_seconds: float,
    instruction_format: str,
    api_keys: tuple[str, ...],
    api_key_file: Path | None,
    require_verified: bool,
    threads: int | None,
    backend: str,
    device: str,
) -> None:
    """Serve an artifact over HTTP, by OpenAI's and text-embeddings-inference's routes.

    POST /v1/embeddings, /embed; GET /info, /health, /ready, /metrics. The log goes to
    stderr, one JSON object a line, without any text of a request. After SIGTERM the server finishes
    open requests and exits.
    """
    from anna_export.artifact.folder import open_artifact
    from anna_export.serve.keys import read_keys
    from anna_export.serve.served import OpenServed
    from anna_export.serve.server import listen, serve
    from anna_export.serve.settings import Settings

    settings = Settings(
        served_model_name or artifact.resolve().name,
        max_batch_tokens,
        max_client_batch_size,
        max_request_tokens,
        payload_limit,
        max_concurrent_requests,
        max_queue_seconds,
        stall_seconds=stall_seconds,
        drain_seconds=drain_seconds,
        instruction_format=instruction_format,
        api_keys=read_keys(api_keys, api_key_file),
    )
    opened = open_artifact(artifact)
    listening = listen(host, port)
    open_served = OpenServed(artifact, backend, device, threads, require_verified)
    serve(opened, settings, open_served, listening)
