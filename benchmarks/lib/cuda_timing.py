"""Timing on a GPU: events around replays of a graph, from a cache that holds none of its inputs."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

# several times the second-level cache of any GPU
FLUSH_BYTES = 512 << 20
COPY_BYTES = 2 << 30
MATRIX = 8192


@dataclass(frozen=True, slots=True)
class Seconds:
    """The median of several, the smallest and the largest."""

    median: float
    least: float
    most: float

    @staticmethod
    def of(values: Sequence[float]) -> "Seconds":
        """Summarise several measurements."""
        return Seconds(statistics.median(values), min(values), max(values))


def timed(work: Callable[[], object], repeats: int = 7) -> Seconds:
    """Time work that fills the device, launches included, after two runs to warm up."""
    for _ in range(2):
        work()
    return Seconds.of([_between_events(work) for _ in range(repeats)])


def timed_in_graph(calls: Sequence[Callable[[], object]], repeats: int = 15) -> Seconds:
    """Time one call of many that a graph holds, each with inputs of its own that no cache holds.

    So it is the device's own time: what a serving loop with captured graphs sees.
    """
    flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device="cuda")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for call in calls[:3]:
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    seconds = []
    for _ in range(repeats + 2):
        flush.fill_(1)
        seconds.append(_between_events(graph.replay) / len(calls))
    return Seconds.of(seconds[2:])


def copy_bytes_per_second() -> float:
    """Measure a large copy on the device, counting bytes read and bytes written."""
    source = torch.empty(COPY_BYTES, dtype=torch.int8, device="cuda").random_()
    target = torch.empty_like(source)
    return 2 * COPY_BYTES / timed(lambda: target.copy_(source), 15).median


def bf16_products_per_second() -> float:
    """Measure a large product of random bf16 matrices, two operations a multiply-add."""
    a, b = (torch.randn(MATRIX, MATRIX, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    return 2 * MATRIX**3 / timed(lambda: a @ b, 15).median


def fp8_products_per_second() -> float:
    """Measure a large product of random E4M3 matrices, one scale a row and a column."""
    a, b = (torch.randn(MATRIX, MATRIX, device="cuda").to(torch.float8_e4m3fn) for _ in range(2))
    rows, columns = torch.ones(MATRIX, 1, device="cuda"), torch.ones(1, MATRIX, device="cuda")

    def product() -> torch.Tensor:
        return torch._scaled_mm(a, b.T, rows, columns, out_dtype=torch.bfloat16)

    return 2 * MATRIX**3 / timed(product, 15).median


def _between_events(work: Callable[[], object]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    work()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000
