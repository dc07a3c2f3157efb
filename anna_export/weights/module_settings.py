"""The settings and weights of one module of a sentence-transformers folder."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from anna_export.errors import DamagedError, MissingError, UnsupportedError
from anna_export.files.json_file import read_json
from anna_export.spec import Dense, PoolingMode
from anna_export.text.st_files import ACTIVATIONS
from anna_export.weights.safetensors_files import StoredTensor, read_header

CONFIG_FILE: Final = "config.json"
WEIGHTS_FILE: Final = "model.safetensors"
_ROW: Final = "sentence_embedding"
# Before pooling had one name: a key for each, in the order their rows are put side by side.
_LEGACY_POOLING: Final = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_POOLING_KEYS: Final = {
    *("pooling_mode", "include_prompt", "embedding_dimension", "word_embedding_dimension"),
    *_LEGACY_POOLING,
}
# By the class alone: torch.nn.Tanh is a way to write its module too.
_ACTIVATIONS: Final = {path.rpartition(".")[2]: name for name, path in ACTIVATIONS.items()}


@dataclass(frozen=True, slots=True)
class ListedModule:
    """One entry of modules.json.

    Args:
        kind: The class of sentence-transformers; "" for another package's.
        type: The class as it is written.
        path: Its folder within the model's.
        folder: Its folder.
    """

    kind: str
    type: str
    path: str
    folder: Path

    @property
    def config_file(self) -> Path:
        """Where its settings are, if it has any."""
        return self.folder / CONFIG_FILE

    def settings(self) -> dict[str, Any]:
        """Return its settings; none where it has no file, which some kinds need not have."""
        return read_json(self.config_file) if self.config_file.exists() else {}


def read_pooling(module: ListedModule) -> tuple[PoolingMode, bool]:
    """Return which tokens are pooled, and whether a prompt's are among them.

    Raises:
        UnsupportedError: For another pooling, several, or settings of another class.
        DamagedError: If include_prompt is not true or false.
    """
    settings, file = read_json(module.config_file), module.config_file
    _refuse_unknown_keys(settings, file)
    modes = settings.get("pooling_mode")
    if modes is None:
        set_keys = [key for key in _LEGACY_POOLING if settings.get(key)]
        modes = [_LEGACY_POOLING[key] for key in set_keys] or ["mean"]
    modes = [modes] if isinstance(modes, str) else modes
    supported = [str(mode) for mode in PoolingMode]
    if not isinstance(modes, list) or len(modes) != 1 or modes[0] not in supported:
        called = " and ".join(map(str, modes)) if isinstance(modes, list) else repr(modes)
        raise UnsupportedError(
            f"expected the pooling of {module.path} to be one of {', '.join(supported)}, found "
            f"{called} in {file}"
        )
    include_prompt = settings.get("include_prompt", True)
    if not isinstance(include_prompt, bool):
        raise DamagedError(
            f"expected include_prompt to be true or false in {file}, found {include_prompt!r}"
        )
    return PoolingMode(modes[0]), include_prompt


def _refuse_unknown_keys(settings: Mapping[str, Any], file: Path) -> None:
    if unknown := sorted(settings.keys() - _POOLING_KEYS):
        raise UnsupportedError(
            f"expected settings of sentence-transformers' Pooling in {file}, found {unknown[0]}"
        )


def require_whole_row(module: ListedModule) -> None:
    """Refuse a module that reads or writes anything but the pooled row.

    Raises:
        UnsupportedError: If it does.
    """
    settings = module.settings()
    for key in ("module_input_name", "module_output_name"):
        if (value := settings.get(key)) not in (None, _ROW):
            raise UnsupportedError(
                f"expected {module.path} to work on the pooled row ({key} {_ROW}), found {value!r} "
                f"in {module.config_file}"
            )


def read_dense(module: ListedModule) -> Dense:
    """Return a Dense module's sizes and activation.

    Raises:
        UnsupportedError: For a residual, an activation, or features that are not computed here.
        DamagedError: If its sizes are not numbers.
    """
    require_whole_row(module)
    settings, file = read_json(module.config_file), module.config_file
    if settings.get("use_residual"):
        raise UnsupportedError(
            f"expected {module.path} without a residual, found use_residual in {file}"
        )
    # left out, it is Tanh
    written = settings.get("activation_function", "torch.nn.modules.activation.Tanh")
    package, _, name = str(written).rpartition(".")
    if not package.startswith("torch.nn") or name not in _ACTIVATIONS:
        raise UnsupportedError(
            f"expected the activation of {module.path} to be one of {', '.join(_ACTIVATIONS)} of "
            f"torch.nn, found {written} in {file}"
        )
    inputs, outputs, bias = (settings.get(key) for key in ("in_features", "out_features", "bias"))
    bias = True if bias is None else bias
    if type(inputs) is not int or type(outputs) is not int or not isinstance(bias, bool):
        raise DamagedError(
            f"expected in_features, out_features and bias in {file}, found {inputs!r}, "
            f"{outputs!r} and {bias!r}"
        )
    return Dense(inputs, outputs, bias, _ACTIVATIONS[name])


def dense_weights(
    module: ListedModule, index: int, bias: bool
) -> Iterator[tuple[str, StoredTensor]]:
    """Yield where a Dense module's weights are, by their names in a spec's `weight_shapes`.

    Raises:
        MissingError: If they are not there, or others are.
        UnsupportedError: If they are pickled.
    """
    path = module.folder / WEIGHTS_FILE
    if not path.exists() and any(module.folder.glob("*.bin")):
        raise UnsupportedError(
            f"expected safetensors in {module.folder}, found .bin: pickle files can run code and "
            "are not read; save the model again with sentence-transformers"
        )
    tensors = read_header(path)
    expected = {"linear.weight", "linear.bias"} if bias else {"linear.weight"}
    if tensors.keys() != expected:
        raise MissingError(
            f"expected {' and '.join(sorted(expected))} in {path}, found "
            f"{', '.join(sorted(tensors)) or 'nothing'}; save the model again"
        )
    for name, tensor in tensors.items():
        yield f"head.dense.{index}.{name.removeprefix('linear.')}", tensor
