"""What prompts list says of prompts that are not baked."""

from dataclasses import replace
from pathlib import Path

from anna_export.cli.prompts import _why_none_is_baked
from anna_export.spec import Head, PoolingMode, read_spec


def test_reason_is_the_mask_or_the_pooling(base: Path) -> None:
    causal = read_spec(base)
    both_ways = replace(causal, causal=False)
    mean = replace(causal, head=Head(PoolingMode.MEAN))
    every = "prompts are computed with every text: "
    assert _why_none_is_baked(causal) == ""
    assert _why_none_is_baked(both_ways) == f"{every}the model's attention is bidirectional"
    assert _why_none_is_baked(mean) == f"{every}mean pooling includes the prompt"
