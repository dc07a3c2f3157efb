"""A server's names and limits."""

import re
from dataclasses import dataclass, fields

from anna_export.errors import InputError
from anna_export.text.prompt_formats import FormatName


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """A server's names and limits.

    Args:
        model_name: What requests call the model.
        max_batch_tokens: Most tokens, padding included, that are computed at once; None for the
            backend's own.
        max_inputs: Most texts of one request.
        max_request_tokens: Most tokens of one request, prompts included.
        payload_bytes: Largest body.
        max_requests: Most requests that are read or answered at once.
        queue_seconds: Requests are refused while the texts that wait take longer to compute.
        stall_seconds: An encoder that takes longer for a batch, and far longer than usual, is
            started again.
        body_seconds: How long a client may take to send a body.
        drain_seconds: How long requests in flight may take after SIGTERM.
        instruction_format: How a request's own instruction is worded; None: as the model's own
            prompts are.
        api_keys: A request must bring one of these; empty for a server open to everybody.
        cors_allow_origins: Origins whose pages browsers let call the server; "*" for all.

    Raises:
        InputError: If a limit is not above zero, or an origin is none.
    """

    model_name: str
    max_batch_tokens: int | None = None
    max_inputs: int = 2048
    max_request_tokens: int = 300_000
    payload_bytes: int = 16 << 20
    max_requests: int = 2048
    queue_seconds: float = 1.0
    stall_seconds: float = 120.0
    body_seconds: float = 30.0
    drain_seconds: float = 30.0
    instruction_format: FormatName | None = None
    api_keys: tuple[str, ...] = ()
    cors_allow_origins: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int | float) and not value > 0:
                raise InputError(f"expected `{field.name}` above 0, found {value}")
        for origin in self.cors_allow_origins:
            _require_origin(origin)


def _require_origin(origin: str) -> None:
    """Refuse what no browser sends as a page's origin: it would never be let in.

    Raises:
        InputError: If it is neither "*", "null" nor SCHEME://HOST[:PORT] in small letters.
    """
    exact = re.match(r"[a-z][a-z0-9+.-]*://[^/?#\s]+", origin.lower())
    if origin in ("*", "null") or (exact is not None and exact[0] == origin):
        return
    raise InputError(
        "expected `cors_allow_origins` as browsers send them, such as http://localhost:3000, found "
        f"{origin!r}; name {exact[0] if exact is not None else 'one, or * for all'}"
    )
