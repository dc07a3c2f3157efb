"""The pooling kernel on a GPU: equal to its reference, and how near to what memory allows.

python -m benchmarks.gpu.pooling_kernel [--json FILE] [--quick]

Against eager PyTorch, torch.compile and a copy of as many bytes; batches from 1 to 16,384 rows,
sequences of 1 and 128 tokens, random data, each launch with memory of its own.
"""

import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from typing import Any

import torch
from anna_kernels import reference
from anna_kernels.ahead_of_time import CAPABILITIES, assemble, compile_pooling
from anna_kernels.kernel import Variant
from anna_kernels.pooling import DTYPES, RMSNorm

from benchmarks.gpu.launch_ptx import launch
from benchmarks.lib.cuda_timing import copy_bytes_per_second, timed_in_graph
from benchmarks.lib.record import Figure, Results, main, say

DIM = 4096
ROWS = (1, 16, 128, 1024, 4096, 16384)
TOKENS = (1, 128)
# rows from which B * D is large: launching is then a small part
LARGE = 4096
POOL_BYTES = 40 << 30
MOST_CALLS = 64
# both versions sum in float32, so only the order of the sum differs
TOLERANCE = 1e-6
TARGET_SHARE, TARGET_EAGER = 0.8, 4.0


def measure(arguments: Namespace) -> Results:
    """Run everything that this machine has a device for."""
    results = Results()
    compiled(results)
    if torch.cuda.is_available():
        equal_to_reference(results)
        ptx_equal_to_reference(results)
        speed(results, quick=arguments.quick)
    else:
        results.skip("kernels on a GPU", "no CUDA device")
    return results


def compiled(results: Results) -> None:
    """Compile for every architecture without a device: registers, spills, shared memory."""
    plain = Variant(DIM, torch.bfloat16)
    normed = Variant(DIM, torch.bfloat16, weight_dtype=torch.bfloat16, norm_eps=1e-5)
    rows: list[dict[str, Any]] = []
    for name, variant in {"plain": plain, "normed": normed}.items():
        for capability in CAPABILITIES:
            kernel = compile_pooling(variant, capability)
            assembled = assemble(kernel)
            rows.append(
                {
                    "variant": name,
                    "capability": capability,
                    "registers": assembled.registers,
                    "spilled_bytes": assembled.spilled_bytes,
                    "shared_bytes": kernel.shared_bytes,
                    "threads": 32 * kernel.num_warps,
                }
            )
    results.samples["compiled"] = rows
    spilled = max(row["spilled_bytes"] for row in rows)
    results.figures.append(
        Figure("kernel, 6 architectures: spilled bytes", spilled, "B", "== 0", spilled == 0)
    )


def equal_to_reference(results: Results) -> None:
    """Compare the kernel with its reference on random data, outputs poisoned."""
    from anna_kernels import fused

    torch.use_deterministic_algorithms(True)  # memory that nobody wrote reads as NaN
    differences: dict[str, float] = {}
    for name, hidden, last, norm in _cases():
        vectors = fused.last_token_pool_normalise(hidden, last, norm=norm)
        expected = reference.last_token_pool_normalise(hidden, last, norm=norm)
        apart = (vectors - expected).abs().nan_to_num(torch.inf)
        differences[name] = apart.max().item()
    torch.use_deterministic_algorithms(False)
    wrong = [name for name, difference in differences.items() if difference > TOLERANCE]
    results.samples["unequal"] = wrong
    results.figures += [
        Figure(
            f"kernel, {len(differences)} variants: unlike the reference",
            len(wrong),
            "",
            "== 0",
            not wrong,
        ),
        Figure(
            "the same, float32: largest difference",
            max(differences.values()),
            "",
            f"<= {TOLERANCE}",
            not wrong,
        ),
    ]


def _cases() -> Iterator[tuple[str, torch.Tensor, torch.Tensor, RMSNorm | None]]:
    """Pair every type of states and of indices with and without a norm, at four widths."""
    random = torch.Generator("cuda").manual_seed(0)
    for dtype, dim in product(DTYPES, (129, 1024, DIM, 8269)):
        hidden = torch.randn(33, 37, dim, generator=random, device="cuda").to(dtype)
        last = torch.randint(37, (33,), generator=random, device="cuda")
        weight = torch.rand(dim, generator=random, device="cuda").to(dtype)
        for norm, indices in product((None, RMSNorm(weight, 1e-5)), (last, last.int())):
            kind = "normed" if norm else "plain"
            yield f"{kind} {dtype} {indices.dtype} D {dim}", hidden, indices, norm


def ptx_equal_to_reference(results: Results) -> None:
    """Launch the PTX that an engine carries with exactly the arguments that TensorRT passes."""
    major, minor = torch.cuda.get_device_capability()
    capability = 10 * major + minor
    if capability not in CAPABILITIES:
        results.skip("PTX launched as TensorRT does", f"no PTX is made for sm_{capability}")
        return
    worst = 0.0
    for dtype in DTYPES:
        kernel = compile_pooling(Variant(DIM, dtype), capability)
        hidden = torch.randn(33, 37, DIM, device="cuda").to(dtype)
        last = torch.randint(37, (33,), device="cuda")
        output = torch.full((33, DIM), float("nan"), device="cuda")
        launch(kernel, 33, [hidden, last, 37, output])
        wanted = reference.last_token_pool_normalise(hidden, last)
        worst = max(worst, (output - wanted).abs().nan_to_num(torch.inf).max().item())
    results.figures.append(
        Figure(
            "PTX launched with TensorRT's arguments: largest difference",
            worst,
            "",
            f"<= {TOLERANCE}",
            worst <= TOLERANCE,
        )
    )


def eager(hidden: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
    """Pool as sentence-transformers does, in PyTorch's own operators."""
    rows = torch.arange(len(hidden), device=hidden.device)
    return torch.nn.functional.normalize(hidden[rows, last].float(), dim=-1)


def eager_normed(hidden: torch.Tensor, last: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The same behind Mistral's final norm of the last tokens alone."""
    rows = torch.arange(len(hidden), device=hidden.device)
    states = hidden[rows, last].float()
    states = states * torch.rsqrt(states.pow(2).mean(-1, keepdim=True) + 1e-5)
    states = weight * states.to(hidden.dtype)
    return torch.nn.functional.normalize(states.float(), dim=-1)


def speed(results: Results, *, quick: bool) -> None:
    """Time the kernel against eager PyTorch, torch.compile and the bytes it must move."""
    from anna_kernels import fused

    bandwidth = copy_bytes_per_second()
    say(f"copy: {bandwidth / 1e12:.2f} TB/s")
    weight = torch.rand(DIM, device="cuda", dtype=torch.bfloat16)
    norm = RMSNorm(weight, 1e-5)
    rows: list[dict[str, Any]] = []

    pool = fused.last_token_pool_normalise
    baselines: dict[str, Callable[..., object]] = {
        "fused": pool,
        "eager": eager,
        "compiled": torch.compile(eager, dynamic=True),
        "fused, normed": partial(pool, norm=norm),
        "eager, normed": partial(eager_normed, weight=weight),
    }
    for seq in TOKENS[:1] if quick else TOKENS:
        for batch in (1, 1024, 16384) if quick else ROWS:
            inputs = _inputs(batch, seq)
            if inputs is None:
                results.skip(
                    f"kernel at {batch} x {seq}",
                    f"two inputs take {2 * batch * seq * DIM * 2 >> 30} GiB",
                )
                continue
            for name, work in baselines.items():
                seconds = timed_in_graph([partial(work, *arguments) for arguments in inputs])
                moved = batch * (DIM * (2 + 4) + 8)
                rows.append(
                    {
                        "name": name,
                        "batch": batch,
                        "tokens": seq,
                        "us": seconds.median * 1e6,
                        "spread_us": [seconds.least * 1e6, seconds.most * 1e6],
                        "share": moved / seconds.median / bandwidth,
                    }
                )
            say(f"{batch} x {seq}: " + ", ".join(f"{r['name']} {r['us']:.1f}" for r in rows[-5:]))
            del inputs
            torch.cuda.empty_cache()
    results.samples["speed"] = {"copy_bytes_per_second": bandwidth, "rows": rows}
    results.figures += _speed_figures(rows)


def _inputs(batch: int, seq: int) -> list[tuple[torch.Tensor, torch.Tensor]] | None:
    """Make inputs for many launches, in memory of their own."""
    size = batch * seq * DIM * 2
    calls = min(MOST_CALLS, POOL_BYTES // size)
    if calls < 2 or calls * size > 0.6 * torch.cuda.mem_get_info()[0]:
        return None
    return [
        (
            torch.randn(batch, seq, DIM, device="cuda", dtype=torch.bfloat16),
            torch.randint(seq, (batch,), device="cuda"),
        )
        for _ in range(calls)
    ]


def _speed_figures(rows: list[dict[str, Any]]) -> list[Figure]:
    by = {(row["name"], row["batch"], row["tokens"]): row for row in rows}
    large = {key: row for key, row in by.items() if key[1] >= LARGE}
    figures = []
    for name in ("fused", "fused, normed"):
        shares = [row["share"] for key, row in large.items() if key[0] == name]
        figures.append(
            Figure(
                f"kernel ({name}), B >= {LARGE}: share of the copy's bytes a second, least",
                min(shares),
                "",
                f">= {TARGET_SHARE}" if name == "fused" else "printed",
                name != "fused" or min(shares) >= TARGET_SHARE,
                (min(shares), max(shares)),
                1.0,
            )
        )
    for baseline, ours, target in (
        ("eager", "fused", TARGET_EAGER),
        ("compiled", "fused", 1.0),
        ("eager, normed", "fused, normed", TARGET_EAGER),
    ):
        ratios = {
            key[1:]: row["us"] / by[ours, key[1], key[2]]["us"]
            for key, row in by.items()
            if key[0] == baseline
        }
        at_large = [ratio for (batch, _), ratio in ratios.items() if batch >= LARGE]
        figures.append(
            Figure(
                f"kernel over {baseline}, B >= {LARGE}: times as fast, least",
                min(at_large),
                "x",
                f">= {target:g}",
                min(at_large) >= target,
                (min(ratios.values()), max(ratios.values())),
            )
        )
    return figures


if __name__ == "__main__":
    sys.exit(main("pooling-kernel", measure, quick="fewer shapes; a minute"))
