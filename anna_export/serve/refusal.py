"""What a request is answered that gets no vectors, in OpenAI's words and in TEI's."""

from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Self


class Kind(Enum):
    """What is wrong: OpenAI's status and type, TEI's status and error_type."""

    VALIDATION = 400, "invalid_request_error", 422, "Validation"
    UNAUTHORIZED = 401, "authentication_error", 401, "Unauthorized"
    NOT_FOUND = 404, "invalid_request_error", 404, "NotFound"
    NOT_ALLOWED = 405, "invalid_request_error", 405, "Validation"
    SLOW = 408, "invalid_request_error", 408, "Validation"
    TOO_LARGE = 413, "invalid_request_error", 413, "Validation"
    LOST = 424, "backend_error", 424, "Backend"
    OVERLOADED = 429, "overloaded_error", 429, "Overloaded"
    UNAVAILABLE = 503, "unavailable_error", 503, "Unhealthy"
    EXPIRED = 504, "timeout_error", 504, "Overloaded"


@dataclass(eq=False)
class Refusal(Exception):
    """A request that is refused.

    Args:
        kind: What is wrong.
        message: What was expected, what was found, what to do.
        code: A word for programs.
        param: The field of the request; None for none of them.
        headers: To send along.
    """

    kind: Kind
    message: str
    code: str | None = None
    param: str | None = None
    headers: dict[str, str] = field(default_factory=dict)

    def status(self, *, openai: bool) -> int:
        """Return the HTTP status."""
        return self.kind.value[0] if openai else self.kind.value[2]

    def body(self, *, openai: bool) -> dict[str, Any]:
        """Return the body in the shape of the route."""
        _, openai_type, _, tei_type = self.kind.value
        if not openai:
            return {"error": self.message, "error_type": tei_type}
        return {
            "error": {
                "message": self.message,
                "type": openai_type,
                "param": self.param,
                "code": self.code,
            }
        }

    @classmethod
    def invalid(cls, message: str, param: str | None, code: str = "invalid_value") -> Self:
        """Something in the request is not as it must be."""
        return cls(Kind.VALIDATION, message, code, param)

    @classmethod
    def too_large(cls, message: str) -> Self:
        """The body is larger than the limit."""
        return cls(Kind.TOO_LARGE, message, "payload_too_large")

    @classmethod
    def overloaded(cls, message: str, retry_seconds: int) -> Self:
        """More is waiting than is computed in time."""
        retry = {"Retry-After": str(max(1, retry_seconds))}
        return cls(Kind.OVERLOADED, f"{message}; try again later", "overloaded", None, retry)

    @classmethod
    def unavailable(cls, message: str, retry_seconds: int) -> Self:
        """Nothing can be computed now."""
        retry = {"Retry-After": str(max(1, retry_seconds))}
        return cls(Kind.UNAVAILABLE, f"{message}; try again later", "unavailable", None, retry)

    @classmethod
    def expired(cls) -> Self:
        """The client's deadline is past."""
        return cls(Kind.EXPIRED, "the request's deadline passed before its vectors", "deadline")

    @classmethod
    def lost(cls) -> Self:
        """A text whose vector is not finite in any precision."""
        return cls(
            Kind.LOST,
            "expected a finite vector, found NaN or infinity for this text in every precision; "
            "leave the text out, or export in a wider precision",
            "nonfinite",
        )
