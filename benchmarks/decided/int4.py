"""What int4's choices are worth: algorithm, block, activations, embedding; on the demo model.

    python -m benchmarks.decided.int4  about three minutes beside making the demo model

Losses are mean 1 - cosine of the emulated model, on texts apart from those calibrated on. Times are
of one product, 1024 inputs by 3584 outputs, in ONNX Runtime on two cores, in turn.
"""

import statistics
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import torch

from anna_export.calibrate.layerwise import LayerOutputs, LayerwiseForward, OnInput
from anna_export.calibrate.observe import observe
from anna_export.calibrate.request import CalibrationRequest
from anna_export.calibrate.sensitivity import measure_loss
from anna_export.calibrate.state_file import StateFile
from anna_export.calibrate.texts import calibration_texts
from anna_export.graph.passes.cpu_attention import DOMAIN
from anna_export.quantise.calibration import ActivationStats
from anna_export.quantise.embedding import EmbeddingFormat
from anna_export.quantise.int4 import SCHEME, Int4Blocks, importance_of, search
from anna_export.quantise.linear import Stored
from anna_export.spec import LINEAR_INPUTS
from anna_export.text.batch import TokenBatch
from anna_export.text.batching import BatchLimits, batches_by_length
from anna_export.text.framing import find_tokenizer, read_framing
from anna_export.text.prompt_file import find_prompts
from anna_export.text.tokeniser import Tokeniser
from anna_export.weights.checkpoint import Checkpoint
from benchmarks.lib.record import Figure, Results, main
from demo.models import make_models

# One text in this many is not calibrated on: losses are measured there.
OTHERS_SHARE = 5
BATCH_TOKENS = 4096
INPUTS, OUTPUTS, ROUNDS = 1024, 3584, 7
TOKENS = (1, 128, 1024)
# Inputs whose errors are fed back to one another, and what is added to their mean square.
SPAN, DAMPING = 64, 0.01


class Plain(Int4Blocks):
    """The product's weights by activations in fp32: accuracy level 1."""

    def fake_quantize_input(
        self, x: torch.Tensor, stats: ActivationStats | None = None
    ) -> torch.Tensor:
        """Leave x as it is."""
        return x


class Nearest(Int4Blocks):
    """Round to nearest over each block's whole range."""

    def quantize(self, weight: torch.Tensor, stats: ActivationStats) -> Stored:
        """Return codes one a byte: nothing but `dequantize` reads them."""
        return {"": _nearest(weight, self.block)}

    def dequantize(self, stored: Stored) -> torch.Tensor:
        """Return what was stored."""
        return stored[""]


@dataclass(frozen=True)
class Feedback(Nearest):
    """The product's scales, and each input's error made good by those after it in a span of inputs.

    Args:
        moments: (in, in) mean products of inputs, by the id of what calibration saw of them.
    """

    moments: Mapping[int, torch.Tensor] = field(default_factory=dict, repr=False)

    def quantize(self, weight: torch.Tensor, stats: ActivationStats) -> Stored:
        """Go through spans and, in each, through its inputs."""
        moments = self.moments[id(stats)]
        rounded = torch.empty_like(weight)
        for start in range(0, weight.shape[1], SPAN):
            span = slice(start, start + SPAN)
            rounded[:, span] = self._fed_back(weight[:, span].clone(), moments[span, span])
        return {"": rounded}

    def _fed_back(self, weight: torch.Tensor, moments: torch.Tensor) -> torch.Tensor:
        """Quantise (out, span); the rows of the inverse's factor say how errors are made good."""
        damped = moments.double() + DAMPING * moments.diagonal().mean() * torch.eye(len(moments))
        factor = torch.linalg.cholesky(torch.linalg.inv(damped), upper=True)
        shares = (factor / factor.diagonal()[:, None]).float()
        importance = importance_of(moments.diagonal())
        rounded = torch.empty_like(weight)
        for start in range(0, weight.shape[1], self.block):
            block = slice(start, start + self.block)
            scale, zero = search(weight[:, block].T[:, :, None], importance[block][:, None, None])
            scale, zero = scale[:, 0], zero[:, 0]
            for column in range(start, start + self.block):
                codes = ((weight[:, column] / scale).round() + zero).clamp(0, 15)
                rounded[:, column] = (codes - zero) * scale
                error = weight[:, column] - rounded[:, column]
                weight[:, column + 1 :] -= error[:, None] * shares[column, column + 1 :]
        return rounded


@dataclass(frozen=True, slots=True)
class Task:
    """A model and its texts, calibrated."""

    forward: LayerwiseForward
    inputs: Mapping[str, ActivationStats]
    heldout: Sequence[TokenBatch]
    moments: Mapping[int, torch.Tensor]

    def loss(
        self, linear: Int4Blocks, embedding: EmbeddingFormat | None = None, divisor: int = 64
    ) -> float:
        """Return the emulated loss; layers whose inputs do not divide are left in fp32."""
        unquantized = {}
        for name, stats in self.inputs.items():
            assert stats.mean_square is not None
            if len(stats.mean_square) % divisor:
                unquantized[name] = "does not divide"
        return measure_loss(
            self.forward, linear, self.inputs, unquantized, self.heldout, embedding=embedding
        )


def measure(arguments: Namespace) -> Results:
    """Run the benchmark."""
    models = make_models(Path("build/demo"))
    losses = _losses(_task(models.base, models.adapter))
    times = _times(3 if arguments.quick else ROUNDS)
    rate = _seconds_per_million()
    figures = [*_loss_figures(losses), *_time_figures(times), rate]
    return Results(figures, {"losses": losses, "milliseconds": times})


def _task(model: Path, adapter: Path) -> Task:
    checkpoint = Checkpoint.open(model, adapter)
    framing = read_framing(model, checkpoint.spec, None, adapter=adapter)
    tokeniser = Tokeniser.open(find_tokenizer(model, adapter), framing)
    rows = calibration_texts(None, tokeniser, find_prompts(model, adapter)).rows
    seen_rows = [row for index, row in enumerate(rows) if index % OTHERS_SHARE]
    batches, heldout = (_batches(part, tokeniser) for part in (seen_rows, rows[::OTHERS_SHARE]))
    forward = LayerwiseForward(checkpoint)
    with tempfile.TemporaryDirectory(prefix="anna-int4-") as folder:
        request = CalibrationRequest(Int4Blocks(), None, max_loss=1, state_folder=Path(folder))
        inputs = observe(
            forward, request, batches, heldout, StateFile(request.state_folder, "int4")
        ).inputs
    moments = _moments(forward, batches)
    return Task(forward, inputs, heldout, {id(inputs[name]): moments[name] for name in inputs})


def _batches(rows: Sequence[Sequence[int]], tokeniser: Tokeniser) -> list[TokenBatch]:
    groups = batches_by_length([len(row) for row in rows], BatchLimits(BATCH_TOKENS))
    pad_id = tokeniser.framing.pad_id
    return [TokenBatch.of_rows([rows[index] for index in group], pad_id) for group in groups]


def _moments(forward: LayerwiseForward, batches: Sequence[TokenBatch]) -> dict[str, torch.Tensor]:
    """Return each linear input's mean products over all tokens, (in, in)."""
    first = {modules[0]: name for name, modules in LINEAR_INPUTS.items()}
    sums: dict[str, torch.Tensor] = {}
    tokens = sum(int(batch.lengths.sum()) for batch in batches)

    def recorder(outputs: LayerOutputs, prefix: str) -> OnInput:
        def on_input(module: str, x: torch.Tensor) -> None:
            if module in first:
                rows = x[outputs.real()]
                name = prefix + first[module]
                sums[name] = sums.get(name, 0) + rows.T @ rows / tokens

        return on_input

    streams = forward.start(*batches)
    for index, layer in forward.layers():
        streams = [
            forward.step(layer, outputs, recorder(outputs, f"layers.{index}."))
            for outputs in streams
        ]
    return sums


def _losses(task: Task) -> dict[str, float]:
    return {
        "chosen": task.loss(Int4Blocks()),
        "rounded to nearest": task.loss(Nearest()),
        "errors fed back": task.loss(Feedback(moments=task.moments)),
        "blocks of 64": task.loss(Int4Blocks(64)),
        "blocks of 64, rounded to nearest": task.loss(Nearest(64)),
        "blocks of 32 where 128 divides": task.loss(Int4Blocks(), divisor=128),
        "blocks of 128 where 128 divides": task.loss(Int4Blocks(128), divisor=128),
        "blocks of 128 where 128 divides, rounded to nearest": task.loss(Nearest(128), divisor=128),
        "fp32 activations": task.loss(Plain()),
        "int8 embedding": task.loss(Int4Blocks(), SCHEME.embedding),
    }


def _loss_figures(losses: Mapping[str, float]) -> list[Figure]:
    def ratio(name: str, of: str, over: str, target: str, holds: Callable[[float], bool]) -> Figure:
        value = losses[of] / losses[over]
        return Figure(f"loss: {name}", value, "x", target, holds(value))

    nearest_128 = "blocks of 128 where 128 divides, rounded to nearest"
    chosen = losses["chosen"]
    return [
        Figure("loss of the chosen form", chosen, "1 - cos", "<= 0.01", chosen <= 0.01),
        ratio(
            "rounded to nearest over chosen, blocks of 32",
            "rounded to nearest", "chosen", ">= 1.2", lambda x: x >= 1.2,
        ),
        ratio(
            "rounded to nearest over chosen, blocks of 64",
            "blocks of 64, rounded to nearest", "blocks of 64", ">= 1.1", lambda x: x >= 1.1,
        ),
        ratio(
            "rounded to nearest over chosen, blocks of 128",
            nearest_128, "blocks of 128 where 128 divides", ">= 1.1", lambda x: x >= 1.1,
        ),
        ratio(
            "blocks of 128 over 32, where 128 divides",
            "blocks of 128 where 128 divides", "blocks of 32 where 128 divides",
            ">= 1.2", lambda x: x >= 1.2,
        ),
        ratio(
            "8-bit over fp32 activations",
            "chosen", "fp32 activations", "<= 1.1", lambda x: x <= 1.1,
        ),
        ratio(
            "int8 over fp32 embedding",
            "int8 embedding", "chosen", "<= 1.05", lambda x: x <= 1.05,
        ),
        ratio(
            f"chosen over errors fed back in spans of {SPAN}",
            "chosen", "errors fed back", "not set", lambda _: True,
        ),
    ]  # fmt: skip


def _times(rounds: int) -> dict[str, dict[str, list[float]]]:
    """Time a product by block and accuracy level, in turn; milliseconds by tokens and form."""
    forms = {
        f"blocks of {block}, level {level}": _session(block, level)
        for block, level in ((32, 4), (128, 4), (32, 1))
    }
    samples: dict[str, dict[str, list[float]]] = {}
    for tokens in TOKENS:
        x = np.random.default_rng(0).standard_normal((tokens, INPUTS), dtype=np.float32)
        samples[str(tokens)] = {name: [] for name in forms}
        repeats = max(1, 128 // tokens)  # a single token takes a tenth of a millisecond
        for _ in range(rounds):
            for name, session in forms.items():
                session.run(None, {"x": x})  # what another form has left in the caches is gone
                started = time.perf_counter()
                for _ in range(repeats):
                    session.run(None, {"x": x})
                seconds = (time.perf_counter() - started) / repeats
                samples[str(tokens)][name].append(1e3 * seconds)
    return samples


def _session(block: int, level: int) -> onnxruntime.InferenceSession:
    torch.manual_seed(0)
    stats = ActivationStats(1.0, 1.0, 1.0, torch.ones(INPUTS))
    stored = Int4Blocks(block).quantize(torch.randn(OUTPUTS, INPUTS), stats)
    values = [
        ir.val(name, const_value=ir.tensor(stored[suffix].numpy(), name=name))
        for name, suffix in (("codes", ""), ("scale", "_scale"), ("zero", "_zero"))
    ]
    codes = stored[""].reshape(OUTPUTS, INPUTS // block, block // 2).numpy()
    values[0] = ir.val("codes", const_value=ir.tensor(codes, name="codes"))
    x = ir.val("x", dtype=ir.DataType.FLOAT, shape=["tokens", INPUTS])
    y = ir.val("y", dtype=ir.DataType.FLOAT, shape=["tokens", OUTPUTS])
    attributes = {
        "K": INPUTS, "N": OUTPUTS, "bits": 4, "block_size": block, "accuracy_level": level
    }  # fmt: skip
    product = ir.node("MatMulNBits", [x, *values], attributes, domain=DOMAIN, outputs=[y])
    graph = ir.Graph(
        [x], [y], nodes=[product], initializers=values, opset_imports={"": 23, DOMAIN: 1}, name="g"
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    proto = ir.to_proto(ir.Model(graph, ir_version=11))
    return onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def _time_figures(samples: Mapping[str, Mapping[str, Sequence[float]]]) -> list[Figure]:
    figures = []
    for tokens, runs in samples.items():
        for other, target in (("blocks of 32, level 1", 1.0), ("blocks of 128, level 4", 0.5)):
            pairs = zip(runs[other], runs["blocks of 32, level 4"], strict=True)
            ratios = [other / chosen for other, chosen in pairs]
            median = statistics.median(ratios)
            figures.append(
                Figure(
                    f"{tokens} tokens: time of {other} over chosen",
                    median,
                    "x",
                    f">= {target}",
                    median >= target,
                    (min(ratios), max(ratios)),
                )
            )
    return figures


def _seconds_per_million() -> Figure:
    """Time `quantize` in one thread, as the makers of the data file call it."""
    weight, threads = torch.randn(512, 4096), torch.get_num_threads()
    stats = ActivationStats(1.0, 1.0, 1.0, torch.rand(4096))
    torch.set_num_threads(1)
    runs = []
    for _ in range(ROUNDS):
        started = time.process_time()
        Int4Blocks().quantize(weight, stats)
        runs.append((time.process_time() - started) / weight.numel() * 1e6)
    torch.set_num_threads(threads)
    median = statistics.median(runs)
    # 7 billion, twice, on two cores, in a quarter of an hour
    return Figure(
        "core seconds to quantise a million weights",
        median,
        "s",
        "<= 0.128",
        median <= 0.128,
        (min(runs), max(runs)),
    )


def _nearest(weight: torch.Tensor, block: int) -> torch.Tensor:
    blocks = weight.reshape(len(weight), -1, block)
    low = blocks.amin(dim=-1, keepdim=True).clamp(max=0)
    high = blocks.amax(dim=-1, keepdim=True).clamp(min=0)
    step = ((high - low) / 15).clamp(min=1e-30)
    zero = (-low / step).round()
    codes = ((blocks / step).round() + zero).clamp(0, 15)
    return ((codes - zero) * step).reshape(weight.shape)


if __name__ == "__main__":
    sys.exit(main("int4", measure, quick="Fewer rounds of the times."))
