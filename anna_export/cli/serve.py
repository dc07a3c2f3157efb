"""anna-export serve."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from anna_export.choices import BACKENDS, DEVICES
from anna_export.cli import options
from anna_export.console import commands
from anna_export.text.prompt_formats import DEFAULT_FORMAT, instruction_formats


def _option(*names: str, **settings: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return an option that an environment variable sets too: ANNA_ and the flag's name."""
    variable = "ANNA_" + names[0].lstrip("-").replace("-", "_").upper()
    settings = {"envvar": variable, "show_envvar": True, "show_default": True, **settings}
    return click.option(*names, **settings)


@click.command("serve", cls=commands.Verb, example="anna-export serve artifact --port 8080")
@options.artifact_argument
@_option("--host", default="127.0.0.1", help="Address to listen on.")
@_option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8080,
    help="Port to listen on; 0 takes a free one and names it in the first line of the log.",
)
@_option(
    "--served-model-name",
    "model_name",
    help="What requests call the model. Default: the folder's name.",
)
@_option("--max-batch-tokens", type=int, help="Most tokens of one batch. Default: the backend's.")
@_option("--max-client-batch-size", "max_inputs", default=2048, help="Most texts of one request.")
@_option(
    "--max-request-tokens", default=300_000, help="Most tokens of one request, prompts included."
)
@_option(
    "--payload-limit",
    "payload_bytes",
    default=16 << 20,
    help="Largest request body in bytes; all bodies in memory together take at most 64 times this.",
)
@_option(
    "--max-concurrent-requests",
    "max_requests",
    default=2048,
    help="Most requests in progress at once; the server answers more with 429.",
)
@_option(
    "--max-queue-seconds",
    "queue_seconds",
    default=1.0,
    help="Longest waiting time in the queue, forecast from the measured rate; the server answers "
    "a request that would wait longer with 429 and Retry-After.",
)
@_option(
    "--stall-seconds",
    default=120.0,
    help="Time for one batch after which the encoder counts as hung, if it is also 20 times the "
    "usual time: the server restarts it and answers its requests with 503.",
)
@_option(
    "--drain-seconds", default=30.0, help="Time that open requests have to finish after SIGTERM."
)
@_option(
    "--instruction-format",
    type=click.Choice(instruction_formats()),
    help="Prompt format for the `instruction` of a request. Default: that of the model's own "
    f"prompts, and {DEFAULT_FORMAT} where they have none.",
)
@_option(
    "--api-key",
    "api_keys",
    multiple=True,
    metavar="KEY",
    envvar="ANNA_API_KEYS",
    help="API key that clients must send; repeatable. In the variable, separate keys by spaces.",
)
@_option(
    "--api-key-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="A file with one key a line.",
)
@_option(
    "--cors-allow-origin",
    "cors_allow_origins",
    multiple=True,
    metavar="ORIGIN",
    help="Origin whose pages browsers let call the server, such as http://localhost:3000, or * for "
    "every page; repeatable. In the variable, separate origins by spaces. Default: none.",
)
@_option(
    "--require-verified",
    is_flag=True,
    help="Refuse an artifact without a passing parity verdict for the backend it is served with. "
    "The server then listens when the model is loaded, and not before.",
)
@_option("--threads", type=int, help="CPU threads that compute. Default: one a core.")
@_option(
    "--backend",
    type=click.Choice(BACKENDS),
    default="auto",
    help="Runtime: ONNX Runtime (ort), the artifact's TensorRT engine for this GPU (trt), or "
    "PyTorch in fp32 (pytorch); auto takes trt if there is such an engine, else ort.",
)
@_option(
    "--device",
    type=click.Choice(DEVICES),
    default="auto",
    help="Where to compute; auto takes CUDA where the backend has it.",
)
def command(
    artifact: Path,
    host: str,
    port: int,
    model_name: str | None,
    api_keys: tuple[str, ...],
    api_key_file: Path | None,
    require_verified: bool,
    threads: int | None,
    backend: str,
    device: str,
    **limits: Any,
) -> None:
    """Serve an artifact over HTTP, by OpenAI's and text-embeddings-inference's routes.

    POST /v1/embeddings, /embed; GET /info, /health, /ready, /metrics. The server logs to stderr,
    one JSON object a line, and never logs a text. After SIGTERM it answers the requests in flight
    and ends.
    """
    from anna_export.artifact.folder import open_artifact
    from anna_export.files.hub_cache import folder_name
    from anna_export.serve.api_keys import read_keys
    from anna_export.serve.config import ServerConfig
    from anna_export.serve.load_model import ModelLoader
    from anna_export.serve.server import run_server

    name = model_name or folder_name(artifact)
    config = ServerConfig(name, api_keys=read_keys(api_keys, api_key_file), **limits)
    opened = open_artifact(artifact)
    loader = ModelLoader(artifact, backend, device, threads, require_verified)
    run_server(opened, config, loader, (host, port), load_first=require_verified)
