"""Reads a model's numbers from its config.json."""

from dataclasses import dataclass
from pathlib import Path

from anna_export.errors import InputError, UnsupportedError
from anna_export.files.json_file import read_json
from anna_export.files.model_folders import MODEL, require_file, require_folder
from anna_export.spec.config_file import ConfigFile
from anna_export.spec.families import FAMILIES
from anna_export.spec.family import FULL_ATTENTION, Family
from anna_export.spec.model import EmbeddingSpec
from anna_export.spec.rotary_config import read_query_scaling, read_rotaries
from anna_export.spec.unsupported import refuse_unsupported_architecture


def read_spec(model: Path) -> EmbeddingSpec:
    """Read the spec of a Hugging Face model folder.

    Raises:
        MissingError: If the folder or its config.json does not exist.
        UnsupportedError: If it holds a model of no supported family, or with a setting of one that
            is not supported.
        InputError: If a number is missing, or none.
    """
    require_folder(model)
    path = require_file(model, MODEL)
    values = read_json(path)
    refuse_unsupported_architecture(path, values, FAMILIES)
    family = FAMILIES[values["model_type"]]
    try:
        return _spec(ConfigFile(path, {**family.absent, **values}), family)
    except KeyError as error:
        raise InputError(
            f"expected the key {error} in {path}, found none; use the config.json that came with "
            "the weights"
        ) from None
    except (TypeError, OverflowError) as error:
        raise InputError(
            f"expected numbers in {path}, found {error}; use the config.json that came with the "
            "weights"
        ) from None


def _spec(config: ConfigFile, family: Family) -> EmbeddingSpec:
    dim, heads = config.integer("hidden_size"), config.integer("num_attention_heads")
    _refuse_unsupported(config, family, dim, heads)
    windows = _windows(config, family)
    rotary, windowed_rotary = read_rotaries(config, family)
    scalar = family.query_scalar_key
    return EmbeddingSpec(
        vocab_size=config.integer("vocab_size"),
        dim=dim,
        ffn_dim=config.integer("intermediate_size"),
        layers=config.integer("num_hidden_layers"),
        heads=heads,
        kv_heads=_or(config, "num_key_value_heads", heads),
        head_dim=_or(config, "head_dim", dim // max(heads, 1)),
        norm_eps=config.number("rms_norm_eps"),
        rope_theta=rotary.theta,
        max_positions=config.integer("max_position_embeddings"),
        sliding_window=windows.window,
        family=family.model_type,
        causal=windows.causal,
        full_attention_layers=windows.full_layers,
        biases=_biases(config, family),
        rope_scaling=rotary.scaling,
        windowed_rope_theta=None if windowed_rotary is None else windowed_rotary.theta,
        query_scaling=read_query_scaling(config, family),
        query_scalar=None if scalar is None else config.integer(scalar),
    )


def _or(config: ConfigFile, key: str, otherwise: int) -> int:
    return config.integer(key) if config.has(key) else otherwise


def _biases(config: ConfigFile, family: Family) -> tuple[str, ...]:
    """Return the linear modules of a layer that have a bias."""
    chosen = (modules for key, modules in family.biases.items() if config.flag(key))
    return (*family.always_biased, *(module for modules in chosen for module in modules))


@dataclass(frozen=True, slots=True)
class _Windows:
    causal: bool
    window: int | None  # tokens less than so far away are attended to
    full_layers: tuple[int, ...]  # those without the window, where others have it


def _windows(config: ConfigFile, family: Family) -> _Windows:
    causal, layers = _is_causal(config, family), config.integer("num_hidden_layers")
    types = family.layer_types(config, max(layers, 0))
    full = tuple(index for index, kind in enumerate(types) if kind == FULL_ATTENTION)
    if len(full) == len(types):
        return _Windows(causal, None, ())
    window = config.integer("sliding_window")
    if config.flag("use_bidirectional_attention"):
        # half of it on each side; Gemma3TextConfig of transformers
        window = window // 2 + 1
    # masking_utils of transformers: a window to both sides includes its last token
    return _Windows(causal, window if config.flag_or("is_causal", True) else window + 1, full)


def _is_causal(config: ConfigFile, family: Family) -> bool:
    """Say whether a token attends to none behind it; both ways to say so have to agree."""
    causal = config.flag_or("is_causal", True)
    both_ways = config.flag("use_bidirectional_attention")
    stated = "is_causal" in config.values and config.has("use_bidirectional_attention")
    # a family that reads the key writes it always, false where nobody said anything
    unsaid = family.reads_bidirectional_key and not both_ways
    if stated and causal == both_ways and not unsaid:
        raise UnsupportedError(
            f"expected is_causal and use_bidirectional_attention to say the same in "
            f"{config.path}, found {causal} and {both_ways}; take out the wrong one"
        )
    if both_ways and causal and not family.reads_bidirectional_key:
        raise UnsupportedError(
            f"expected is_causal false beside use_bidirectional_attention true in {config.path}, "
            f"found none: of a {family.model_type} transformers reads is_causal alone, and would "
            "run it causally; add it"
        )
    return causal and not both_ways


def _refuse_unsupported(config: ConfigFile, family: Family, dim: int, heads: int) -> None:
    path, key, activation = config.path, family.activation_key, family.activation
    if config.values.get(key, activation) != activation:
        raise UnsupportedError(
            f"expected {key} {activation}, found {config.values[key]!r} in {path}"
        )
    for key in family.refused:
        if config.has(key):
            raise UnsupportedError(
                f"expected no {key}, found {config.values[key]!r} in {path}: attention without it "
                "is all that is exported"
            )
    if family.even_dim and heads > 0 and dim % heads:
        raise UnsupportedError(
            f"expected hidden_size to be a multiple of num_attention_heads, found {dim} and "
            f"{heads} in {path}"
        )
