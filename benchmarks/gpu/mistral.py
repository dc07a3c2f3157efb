"""A Mistral-7B of random weights on a GPU: embedding in bf16 and FP8, and a LoRA training step."""

import math
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from anna_kernels import last_token_pool_normalise
from transformers import MistralConfig, MistralModel

from benchmarks.lib.cuda_timing import bf16_products_per_second, fp8_products_per_second, timed
from benchmarks.lib.record import Figure, Results, say

SHAPES = ((1, 32), (1, 512), (32, 64), (32, 512), (8, 2048))
TRAINED = (16, 512)
LORA_RANK = 64
LARGEST_E4M3 = 448.0


def config(layers: int = 32) -> MistralConfig:
    """Return Mistral-7B's numbers."""
    return MistralConfig(
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=layers,
        num_attention_heads=32,
        num_key_value_heads=8,
        vocab_size=32000,
        max_position_embeddings=32768,
        sliding_window=None,
        attn_implementation="sdpa",
    )


def random_model(layers: int = 32) -> MistralModel:
    """Make a model on the device; its weights keep the size of what passes through it."""
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("meta"):
            model = MistralModel(config(layers))
    finally:
        torch.set_default_dtype(dtype)
    model = model.to_empty(device="cuda").eval().requires_grad_(False)
    torch.manual_seed(0)
    for name, weight in model.named_parameters():
        if weight.ndim == 1:
            weight.fill_(1)
        else:
            weight.normal_(0, 1 if "embed" in name else 1 / math.sqrt(weight.shape[1]))
    # what is no parameter was empty too
    model.rotary_emb = type(model.rotary_emb)(config=model.config).to("cuda")
    return model


def operations(batch: int, seq: int, layers: int = 32) -> float:
    """Count what embedding a batch multiplies and adds, attention to earlier tokens alone."""
    model = config(layers)
    dim, ffn = model.hidden_size, model.intermediate_size
    keys = dim * model.num_key_value_heads // model.num_attention_heads
    linear = 2 * dim * (dim + keys) + 3 * dim * ffn
    attention = 2 * dim * (seq + 1) / 2
    return 2 * batch * seq * layers * (linear + attention)


def embed(model: MistralModel, ids: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Embed right-padded ids: causal attention keeps padding out of every real token."""
    hidden = model(input_ids=ids, use_cache=False).last_hidden_state
    return last_token_pool_normalise(hidden, lengths - 1)


class Fp8Linear(torch.nn.Module):
    """A linear layer as the scheme fp8 computes it: E4M3, one scale an output, one a tensor."""

    def __init__(self, linear: torch.nn.Linear, largest: float) -> None:
        super().__init__()
        scale = linear.weight.abs().amax(1, keepdim=True).float() / LARGEST_E4M3
        self.codes = (linear.weight.float() / scale).to(torch.float8_e4m3fn)
        self.scale = scale.T.contiguous()
        device = linear.weight.device
        self.inverse = torch.tensor(LARGEST_E4M3 / largest, device=device)
        self.input_scale = torch.full((1, 1), largest / LARGEST_E4M3, device=device)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return x times the weight, (..., out) in bf16."""
        flat = x.reshape(-1, x.shape[-1])
        codes = _codes(flat, self.inverse)
        rows = self.input_scale.expand(len(flat), 1).contiguous()
        out = torch._scaled_mm(codes, self.codes.T, rows, self.scale, out_dtype=torch.bfloat16)
        return out.view(*x.shape[:-1], -1)


@torch.compile(dynamic=True)
def _codes(x: torch.Tensor, inverse: torch.Tensor) -> torch.Tensor:
    return (x * inverse).clamp(-LARGEST_E4M3, LARGEST_E4M3).to(torch.float8_e4m3fn)


def to_fp8(model: MistralModel, ids: torch.Tensor) -> None:
    """Calibrate every linear layer's range on ids, and replace it."""
    largest: dict[str, float] = {}
    hooks = []
    linears = {n: m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    for name, module in linears.items():

        def see(_: Any, inputs: tuple[torch.Tensor, ...], name: str = name) -> None:
            largest[name] = inputs[0].abs().max().item()

        hooks.append(module.register_forward_pre_hook(see))
    model(input_ids=ids, use_cache=False)
    for hook in hooks:
        hook.remove()
    for name, module in linears.items():
        parent, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(parent), attribute, Fp8Linear(module, largest[name]))


@torch.no_grad()
def measure_embedding(results: Results) -> None:
    """Measure tokens a second at full size in bf16 and FP8, and the share of the peak."""
    peaks = {"bf16": bf16_products_per_second(), "fp8": fp8_products_per_second()}
    say(", ".join(f"{name} peak {peak / 1e12:.0f} TFLOP/s" for name, peak in peaks.items()))
    model = random_model()
    ids = torch.randint(3, 32000, (8, 64), device="cuda")
    lengths = torch.full((8,), 64, device="cuda")
    exact = embed(model, ids, lengths)
    rows = _embedding_rows(model, "bf16", peaks["bf16"])
    to_fp8(model, ids)
    cosines = (embed(model, ids, lengths) * exact).sum(1)
    if not cosines.isfinite().all():
        results.skip("full-size FP8", "its vectors are not finite")
    rows += _embedding_rows(model, "fp8", peaks["fp8"])
    results.samples["embedding"] = {
        "peaks": peaks,
        "rows": rows,
        "fp8_cosines": cosines.tolist(),
    }
    for name in ("bf16", "fp8"):
        rows_of = [row for row in rows if row["precision"] == name]
        best = max(rows_of, key=lambda row: row["tokens_per_second"])
        figures = (
            ("tokens a second", best["tokens_per_second"], "tokens/s"),
            ("share of the peak", best["share_of_peak"], ""),
        )
        results.figures += [
            Figure(
                f"Mistral-7B shape, PyTorch {name}, {best['batch']} x {best['tokens']}: {label}",
                value,
                unit,
                "printed",
                math.isfinite(value),
            )
            for label, value, unit in figures
        ]


def _embedding_rows(model: MistralModel, name: str, peak: float) -> list[dict[str, Any]]:
    rows = []
    for batch, seq in SHAPES:
        ids = torch.randint(3, 32000, (batch, seq), device="cuda")
        lengths = torch.full((batch,), seq, device="cuda")
        seconds = timed(partial(embed, model, ids, lengths), 5)
        rows.append(
            {
                "precision": name,
                "batch": batch,
                "tokens": seq,
                "ms": seconds.median * 1e3,
                "spread_ms": [seconds.least * 1e3, seconds.most * 1e3],
                "tokens_per_second": batch * seq / seconds.median,
                "share_of_peak": operations(batch, seq) / seconds.median / peak,
            }
        )
        say(f"{name} {batch} x {seq}: {rows[-1]['tokens_per_second']:,.0f} tokens/s")
    return rows


def measure_training(results: Results) -> None:
    """Measure a LoRA step of anna_train's forward pass at full size, activations recomputed."""
    if find_spec("peft") is None:
        results.skip("training", "peft is not installed")
        return
    from anna_train.model.forward import Decoder
    from anna_train.model.forward import embed as embed_for_training
    from peft import LoraConfig, get_peft_model

    model = random_model()
    modules = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    lora = LoraConfig(r=LORA_RANK, lora_alpha=2 * LORA_RANK, target_modules=modules)
    tuned = get_peft_model(model, lora)
    decoder = Decoder.of(tuned.get_base_model())
    batch, seq = TRAINED
    texts = torch.randint(3, 32000, (batch, seq)).tolist()
    losses = []

    def step() -> None:
        vectors = embed_for_training(decoder, texts, recompute=True)
        queries, documents = vectors.view(2, batch // 2, -1)
        loss = torch.nn.functional.cross_entropy(
            queries @ documents.T / 0.02, torch.arange(batch // 2, device="cuda")
        )
        loss.backward()
        losses.append(loss.detach())

    seconds = timed(step, 3)
    gradients = [p.grad for n, p in tuned.named_parameters() if "lora_B" in n]
    sound = all(g is not None and g.isfinite().all() and g.any() for g in gradients)
    results.samples["training"] = {
        "batch": batch,
        "tokens": seq,
        "seconds": seconds.median,
        "loss": losses[0].item(),
        "peak_bytes": torch.cuda.max_memory_allocated(),
    }
    rate = batch * seq / seconds.median
    name = f"Mistral-7B shape, LoRA r={LORA_RANK}, forward and backward, {batch} x {seq}"
    results.figures += [
        Figure(f"{name}: tokens a second", rate, "tokens/s", "printed", math.isfinite(rate)),
        Figure(
            "the same: LoRA B without a finite gradient",
            len(gradients) - sum(bool(g is not None and g.isfinite().all()) for g in gradients),
            "",
            "== 0",
            sound,
        ),
    ]
