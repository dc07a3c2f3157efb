"""What TensorRT made of a graph: its table of fused layers, and the check of its fusions."""

import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from anna_export.spec import EmbeddingSpec

_MODULE = re.compile(r"layers\.\d+\.(?:self_attn|mlp)\.[a-z]+_proj")
_PROFILE = re.compile(r"_myl(\d+)_\d+$")
_FUSED_ATTENTION = re.compile(r"_gem[mv]_mha_v\d")


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer: a kernel, or a few that run as one."""

    kind: str  # such as gemm, kgen, runtime_fusion
    name: str
    tactic: str
    inputs: tuple[str, ...]  # types
    profile: int  # index of the optimisation profile whose shapes it is for

    @property
    def modules(self) -> tuple[str, ...]:
        """The linear modules that are multiplied in it."""
        return tuple(_MODULE.findall(self.name)) if self.kind == "gemm" else ()

    @property
    def is_attention(self) -> bool:
        """Whether it is one fused kernel of queries, keys and values."""
        return bool(_FUSED_ATTENTION.search(self.tactic))


def read_layers(messages: Sequence[str]) -> list[Layer]:
    """Read the table out of what the library logged; empty if it logged none."""
    tables = [message for message in messages if message.startswith("Layers:")]
    return [_read(row) for table in tables for row in table.splitlines() if "LayerType: " in row]


def _read(row: str) -> Layer:
    def field(name: str) -> str:
        match = re.search(rf"{name}: ([^,]*)", row)
        return match[1].strip() if match else ""

    inputs = row.partition("Inputs: ")[2].partition("Outputs: ")[0]
    types = tuple(re.findall(r"Datatype: (\w+)", inputs))
    name = field("Name")
    profile = _PROFILE.search(name)
    return Layer(
        field("LayerType"), name, field("TacticName"), types, int(profile[1]) if profile else 0
    )


def summary(layers: Sequence[Layer]) -> dict[str, int]:
    """Count the first profile's layers by kind, and those that are attention or an FP8 product."""
    layers = [layer for layer in layers if layer.profile == 0]
    kinds = Counter(layer.kind for layer in layers)
    return {
        "layers": len(layers),
        **{kind: kinds[kind] for kind in sorted(kinds)},
        "fused attention": sum(layer.is_attention for layer in layers),
        "fp8 products": sum(_is_fp8(layer) for layer in layers),
    }


def fusion_report(
    layers: Sequence[Layer], spec: EmbeddingSpec, fp8_modules: Collection[str]
) -> list[str]:
    """Name what is not fused, or not in FP8, though it should be; empty where the check passed.

    Args:
        layers: What was built.
        spec: The model's numbers.
        fp8_modules: Linear modules that are to multiply in FP8.
    """
    report = []
    for profile in sorted({layer.profile for layer in layers}):
        used = [layer for layer in layers if layer.profile == profile]
        multiplied = {module for layer in used if _is_fp8(layer) for module in layer.modules}
        if missing := sorted(set(fp8_modules) - multiplied):
            report.append(
                f"profile {profile}: {len(missing)} layers do not multiply in FP8, the first "
                f"{missing[0]}"
            )
        attention = sum(layer.is_attention for layer in used)
        if attention != spec.layers:
            report.append(
                f"profile {profile}: attention is fused in {attention} of {spec.layers} layers"
            )
    return report


def _is_fp8(layer: Layer) -> bool:
    """Say whether tokens and weight of a product are both FP8."""
    return bool(layer.modules) and layer.inputs.count("FP8") >= 2
