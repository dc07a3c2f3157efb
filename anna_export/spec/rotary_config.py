"""Reads rotary embedding from a config.json, of today's keys or older ones, as transformers does.

Source: modeling_rope_utils of transformers 5.23.
"""

import math
from typing import Final

from anna_export.errors import UnsupportedError
from anna_export.spec.config_file import ConfigFile
from anna_export.spec.family import FULL_ATTENTION, SLIDING_ATTENTION, Family
from anna_export.spec.rotary import QueryScaling, Rotary, RotaryKind, RotaryScaling

_DEFAULT: Final = "default"


def read_rotaries(config: ConfigFile, family: Family) -> tuple[Rotary, Rotary | None]:
    """Return the rotary embedding of layers without a window, and of those with, where it differs.

    Raises:
        UnsupportedError: If a rope_type is another than the supported ones.
        InputError: If rope_parameters is no object.
    """
    if not family.rotary_by_layer_type:
        return _rotary(config, _parameters(config)), None
    # transformers 5 writes one object a layer type; before, two bases and a scaling of the first
    both = config.part("rope_parameters")
    if both.values and not {FULL_ATTENTION, SLIDING_ATTENTION} & set(both.values):
        raise UnsupportedError(
            f"expected rope_parameters by layer type ({FULL_ATTENTION}, {SLIDING_ATTENTION}) in "
            f"{config.path}, found {dict(both.values)!r}"
        )
    full = ConfigFile(
        config.path, {**both.part(FULL_ATTENTION).values, **config.part("rope_scaling").values}
    )
    windowed = _rotary(
        config, both.part(SLIDING_ATTENTION), base=config.number("rope_local_base_freq")
    )
    if windowed.scaling is not None:
        raise UnsupportedError(
            f"expected plain rotary embedding (rope_type {_DEFAULT}) of layers with a window, "
            f"found {windowed.scaling.kind} in {config.path}"
        )
    return _rotary(config, full), windowed


def read_query_scaling(config: ConfigFile, family: Family) -> QueryScaling | None:
    """Return how queries grow with their position; None where they do not."""
    if not family.scales_queries:
        return None
    rope = _parameters(config)
    positions = rope if rope.has("original_max_position_embeddings") else config
    key = "original_max_position_embeddings" if positions is rope else "max_position_embeddings"
    return QueryScaling(rope.number("llama_4_scaling_beta"), positions.integer(key))


def _parameters(config: ConfigFile) -> ConfigFile:
    """Return the parameters: transformers takes rope_scaling before the others.

    Source: convert_rope_params_to_dict.
    """
    scaling, parameters = config.part("rope_scaling"), config.part("rope_parameters")
    if (
        scaling.values
        and parameters.values
        and "rope_theta" not in {**config.values, **scaling.values}
    ):
        raise UnsupportedError(
            "expected rope_theta in rope_scaling, which replaces rope_parameters, in "
            f"{config.path}, found none; take rope_scaling out"
        )
    return scaling if scaling.values else parameters


def _rotary(config: ConfigFile, rope: ConfigFile, base: float | None = None) -> Rotary:
    """Return what an object of parameters says; its base may stand beside it, or be given."""
    if rope.has("rope_theta"):
        theta = rope.number("rope_theta")
    else:
        theta = config.number("rope_theta") if base is None else base
    kind = rope.values.get("rope_type", rope.values.get("type", _DEFAULT))
    fraction = {**config.values, **rope.values}.get("partial_rotary_factor")
    if fraction not in (None, 1):
        raise UnsupportedError(
            f"expected rotary embedding of whole heads, found partial_rotary_factor {fraction!r} "
            f"in {config.path}"
        )
    if kind == _DEFAULT:
        return Rotary(theta)
    if kind not in list(RotaryKind):
        kinds = ", ".join((_DEFAULT, *RotaryKind))
        raise UnsupportedError(
            f"expected rotary embedding of a rope_type among {kinds}, found {kind!r} in "
            f"{config.path}"
        )
    return Rotary(theta, _SCALINGS[RotaryKind(kind)](config, rope))


def _linear(_: ConfigFile, rope: ConfigFile) -> RotaryScaling:
    return RotaryScaling(RotaryKind.LINEAR, rope.number("factor"))


def _llama3(config: ConfigFile, rope: ConfigFile) -> RotaryScaling:
    return RotaryScaling(
        RotaryKind.LLAMA3,
        rope.number("factor"),
        original_positions=_original_positions(config, rope),
        low_freq_factor=rope.number("low_freq_factor"),
        high_freq_factor=rope.number("high_freq_factor"),
    )


def _yarn(config: ConfigFile, rope: ConfigFile) -> RotaryScaling:
    positions = _original_positions(config, rope)
    factor = rope.number_or("factor", config.integer("max_position_embeddings") / positions)
    return RotaryScaling(
        RotaryKind.YARN,
        factor,
        original_positions=positions,
        beta_fast=rope.number_or("beta_fast", 0) or 32.0,
        beta_slow=rope.number_or("beta_slow", 0) or 1.0,
        truncate=rope.flag("truncate") if rope.has("truncate") else True,
        attention_factor=_attention_factor(rope, factor),
    )


def _attention_factor(rope: ConfigFile, factor: float) -> float:
    """Return what yarn multiplies cosines and sines by; 1 where mscale says so twice."""
    if rope.has("attention_factor"):
        return rope.number("attention_factor")
    mscale, of_all = rope.number_or("mscale", 0), rope.number_or("mscale_all_dim", 0)
    if mscale and of_all:
        return _mscale(factor, mscale) / _mscale(factor, of_all)
    return _mscale(factor, 1)


def _mscale(factor: float, weight: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0


def _original_positions(config: ConfigFile, rope: ConfigFile) -> int:
    """Return the longest sequence before: beside the parameters, among them, or today's."""
    key = "original_max_position_embeddings"
    for source in (config, rope):
        if source.has(key):
            return source.integer(key)
    return config.integer("max_position_embeddings")


_SCALINGS: Final = {
    RotaryKind.LINEAR: _linear,
    RotaryKind.LLAMA3: _llama3,
    RotaryKind.YARN: _yarn,
}
