"""What is counted and timed, as Prometheus reads it."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_TOKENS = tuple(2**power for power in range(4, 16))
_ROWS = tuple(2**power for power in range(0, 12))


class Metrics:
    """One server's metrics."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

        def seconds(name: str, text: str, labels: tuple[str, ...] = ()) -> Histogram:
            return Histogram(name, text, labels, buckets=_SECONDS, registry=self.registry)

        self.requests = Counter(
            "anna_requests", "Requests answered.", ("route", "code"), registry=self.registry
        )
        self.duration = seconds(
            "anna_request_duration_seconds", "From a request's head to its answer.", ("route",)
        )
        self.queue = seconds("anna_queue_duration_seconds", "How long a text waited.")
        self.inference = seconds("anna_inference_duration_seconds", "How long a batch took.")
        self.tokenize = seconds("anna_tokenize_duration_seconds", "Tokenising a request.")
        self.batch_tokens = Histogram(
            "anna_batch_tokens", "Tokens of a batch.", buckets=_TOKENS, registry=self.registry
        )
        self.batch_size = Histogram(
            "anna_batch_size", "Texts of a batch.", buckets=_ROWS, registry=self.registry
        )
        self.queue_depth = Gauge("anna_queue_depth", "Texts that wait.", registry=self.registry)
        self.rejected = Counter(
            "anna_rejected", "Requests refused before compute.", ("reason",), registry=self.registry
        )
        self.prefix_saved = Counter(
            "anna_prefix_tokens_saved",
            "Tokens of prompts that were not computed again.",
            registry=self.registry,
        )
        self.nonfinite = Counter(
            "anna_nonfinite", "Vectors that were not finite.", ("outcome",), registry=self.registry
        )
        self.restarts = Gauge(
            "anna_encoder_restarts", "Deaths of the process that computes.", registry=self.registry
        )
        self.ready = Gauge("anna_ready", "1 where requests are taken.", registry=self.registry)

    def text(self) -> bytes:
        """Return all of them in Prometheus's text format."""
        return generate_latest(self.registry)
