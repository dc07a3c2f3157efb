#!/usr/bin/env bash
# transformers 5.23.0: how far attention with a sliding window reaches once a decoder is bidirectional.
#
# One would guess: sliding_window 8 is one width, causal or not, and use_bidirectional_attention makes any decoder bidirectional.
# What happens: the window counts the token itself if the model is causal (7 before it), excludes it with is_causal false (8 on
# either side), and is halved by Gemma 3's use_bidirectional_attention (4 on either side). A mistral that says
# use_bidirectional_attention runs causally, and nothing is said.
#
# Seen (2026-12-01, torch 2.13.0, CPU; positions that change a token's output, relative to it):
#   mistral: -7 to +0
#   mistral, is_causal false: -8 to +8
#   mistral, use_bidirectional_attention true: -7 to +0
#   gemma3_text: -7 to +0
#   gemma3_text, is_causal false: -8 to +8
#   gemma3_text, use_bidirectional_attention true: -4 to +4
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q --disable-pip-version-check transformers==5.23.0 torch==2.13.0
"$dir/venv/bin/python" - <<'PY'
import torch
from transformers import Gemma3TextConfig, Gemma3TextModel, MistralConfig, MistralModel

COMMON = dict(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2,
              num_key_value_heads=1, head_dim=16, pad_token_id=0)
WINDOW, MIDDLE, LENGTH = 8, 20, 40


def reach(model_class, config):
    """How far before and behind a token another token changes its output."""
    torch.manual_seed(0)
    model = model_class(config).eval()
    ids = torch.arange(1, LENGTH + 1)[None]
    with torch.no_grad():
        before = model(ids).last_hidden_state[0, MIDDLE]
        changed = []
        for i in range(LENGTH):
            other = ids.clone()
            other[0, i] = 50
            if not torch.equal(model(other).last_hidden_state[0, MIDDLE], before):
                changed.append(i - MIDDLE)
    return min(changed), max(changed)


def mistral(**settings):
    return reach(MistralModel, MistralConfig(**COMMON, sliding_window=WINDOW, **settings))


def gemma3(**settings):
    config = Gemma3TextConfig(**COMMON, sliding_window=WINDOW, layer_types=["sliding_attention"], **settings)
    return reach(Gemma3TextModel, config)


seen = {
    "mistral": mistral(),
    "mistral, is_causal false": mistral(is_causal=False),
    "mistral, use_bidirectional_attention true": mistral(use_bidirectional_attention=True),
    "gemma3_text": gemma3(),
    "gemma3_text, is_causal false": gemma3(is_causal=False),
    "gemma3_text, use_bidirectional_attention true": gemma3(use_bidirectional_attention=True),
}
for name, (first, last) in seen.items():
    print(f"{name}: {first} to {last:+d}")
causal, both, half = (-7, 0), (-8, 8), (-4, 4)
assert list(seen.values()) == [causal, both, causal, causal, both, half], "windows reach elsewhere now"
PY
