"""The merged weights, one tensor at a time: base plus adapters, in fp32, cast once."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Self

import torch

from anna_export.errors import DamagedError, MissingError, UnsupportedError
from anna_export.files.hashing import file_sha256
from anna_export.files.json_file import read_json
from anna_export.files.model_folders import Adapters, in_order
from anna_export.spec import EMBEDDING_WEIGHT, EmbeddingSpec, Precision, read_spec
from anna_export.text.framing import find_tokenizer, load_tokenizer
from anna_export.text.unread_tokenizer import require_reached
from anna_export.weights.adapter import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    Adapter,
    Delta,
    read_adapter,
)
from anna_export.weights.fit import require_all, require_fit
from anna_export.weights.modules import Modules, read_modules
from anna_export.weights.names import by_name
from anna_export.weights.safetensors_files import StoredTensor, read_header

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
TORCH_DTYPES: Final = {
    Precision.FP32: torch.float32,
    Precision.FP16: torch.float16,
    Precision.BF16: torch.bfloat16,
}
# Numbers worked on at once in fp32 while a tensor is merged: 4 MiB, so that it stays in cache.
_CHUNK_NUMBERS = 1 << 20
# Of a table that is written in blocks of rows.
_BLOCK_BYTES = 128 << 20


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Weights of base and adapters, merged when read; nothing is held in memory.

    Each adapter is merged into what those before it left, as peft's merge_and_unload does.

    Raises:
        MissingError: If a weight is missing.
        ShapeError: If a weight, delta or replacement has another shape than the spec's.
        UnsupportedError: If base or adapter has a tensor this model has no place for.
    """

    folder: Path
    spec: EmbeddingSpec
    base: dict[str, StoredTensor]
    adapters: tuple[Adapter, ...]
    modules: Modules = field(default_factory=Modules)

    def __post_init__(self) -> None:
        shapes = self.spec.weight_shapes()
        replaced = {name for adapter in self.adapters for name in adapter.replaced}
        require_all(self.folder, shapes, self.base, replaced)
        embedding = self.base[EMBEDDING_WEIGHT]
        for adapter in self.adapters:
            embedding = adapter.replaced.get(EMBEDDING_WEIGHT, embedding)
            rows = (*embedding.shape, 0)[0]
            require_fit(adapter, shapes | {EMBEDDING_WEIGHT: (rows, self.spec.dim)})

    @classmethod
    def open(cls, model: Path, adapter: Adapters = None) -> Self:
        """Open a Hugging Face model folder and, over it, folders of LoRA adapters, in order."""
        modules = read_modules(model, adapter)
        spec = modules.with_head(read_spec(model))
        base = by_name(
            tensor for path in weight_files(model) for tensor in read_header(path).values()
        )
        adapters = tuple(read_adapter(folder) for folder in in_order(adapter))
        tokenizer, base_rows = find_tokenizer(model, adapter), spec.vocab_size
        for lora in adapters:
            embedding = lora.replaced.get(EMBEDDING_WEIGHT)
            if embedding is not None and len(embedding.shape) == 2:
                # an adapter trained with added tokens brings its own, larger embedding
                rows = embedding.shape[0]
                if rows > base_rows and tokenizer == model:
                    require_reached(lora.folder, tokenizer, load_tokenizer, rows, base_rows)
                spec = replace(spec, vocab_size=rows)
        return cls(model, spec, base | modules.weights, adapters, modules)

    def deltas(self, name: str) -> tuple[Delta, ...]:
        """Return what is added to a weight, in order."""
        return _deltas(self._counting(name), name)

    def stored_dtype(self, name: str) -> torch.dtype:
        """Type the base stores a weight in."""
        return self.base[name].torch_dtype

    def read(
        self,
        name: str,
        dtype: torch.dtype,
        *,
        transpose: bool = False,
        merge: bool = True,
        rows: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Read one merged weight, or some of its rows.

        Args:
            name: As in the spec's `weight_shapes`.
            dtype: Type of the result; sums are in fp32 and rounded once.
            transpose: Return a matrix as (in, out) instead of (out, in).
            merge: Add the adapters' deltas; what they replace, they replace in either case.
            rows: (N,) int64 rows of a matrix that is not turned; None for all.

        Returns:
            A contiguous tensor.

        Raises:
            DamagedError: If a number in it is NaN or infinite, or becomes so in `dtype`.
        """
        adapters, source = self._counting(name), self.base[name]
        if adapters:
            source = adapters[0].replaced.get(name, source)
        weight, deltas = source.read(rows), _deltas(adapters, name) if merge else ()
        if deltas or (transpose and weight.ndim == 2):
            weight = _merge(weight, deltas, dtype, transpose, rows)
        else:
            weight = weight.to(dtype)
        if name == EMBEDDING_WEIGHT:
            _set_rows(weight.T if transpose else weight, adapters, rows)
        _require_finite(weight, name, source.path)
        return weight

    def source_hashes(self) -> dict[str, str]:
        """Return sha256 of the files that identify where the weights came from, all but the base's.

        Those of the second adapter start with "2-", and so on.
        """
        files = {"config.json": self.folder / "config.json"}
        if (index := self.folder / INDEX_FILE).exists():
            files[INDEX_FILE] = index
        for number, adapter in enumerate(self.adapters, start=1):
            for name in (CONFIG_FILE, WEIGHTS_FILE):
                files[name if number == 1 else f"{number}-{name}"] = adapter.folder / name
        files |= self.modules.files
        return {name: file_sha256(path) for name, path in files.items()}

    def _counting(self, name: str) -> tuple[Adapter, ...]:
        """Return the adapters from the last that replaces a weight on."""
        first = max((i for i, each in enumerate(self.adapters) if name in each.replaced), default=0)
        return self.adapters[first:]


def _deltas(adapters: Sequence[Adapter], name: str) -> tuple[Delta, ...]:
    return tuple(adapter.deltas[name] for adapter in adapters if name in adapter.deltas)


def _set_rows(
    embedding: torch.Tensor, adapters: Sequence[Adapter], rows: torch.Tensor | None
) -> None:
    """Set the rows that were trained by themselves; later adapters' deltas add to them."""
    for following, adapter in enumerate(adapters, start=1):
        if (trained := adapter.token_rows) is None:
            continue
        indices, values = torch.tensor(trained.indices), trained.rows.read().float()
        for delta in _deltas(adapters[following:], EMBEDDING_WEIGHT):
            b, a = delta.factors()
            values.addmm_(b[indices], a, alpha=delta.scale)
        values = values.to(embedding.dtype)
        if rows is None:
            embedding[indices] = values
        else:
            targets, sources = torch.nonzero(rows[:, None] == indices, as_tuple=True)
            embedding[targets] = values[sources]


def _merge(
    weight: torch.Tensor,
    deltas: Sequence[Delta],
    dtype: torch.dtype,
    transpose: bool,
    rows: torch.Tensor | None,
) -> torch.Tensor:
    """Add the deltas, or some of their rows, in fp32, row block by row block, and cast once."""
    factors = [delta.factors() for delta in deltas]
    if rows is not None:
        factors = [(b[rows], a) for b, a in factors]
    if transpose:
        # turned while still narrow: half the bytes, and what follows runs along the rows
        weight = weight.T.contiguous()
        factors = [(a.T, b.T) for b, a in factors]
    if not factors and weight.dtype is dtype:
        return weight
    merged = weight if weight.dtype is dtype else torch.empty(weight.shape, dtype=dtype)
    height, columns = weight.shape
    step = max(1, _CHUNK_NUMBERS // columns)
    scratch = torch.empty((min(step, height), columns))
    for start in range(0, height, step):
        end = min(start + step, height)
        block = scratch[: end - start].copy_(weight[start:end])
        for delta, (b, a) in zip(deltas, factors, strict=True):
            block.addmm_(b[start:end], a, alpha=delta.scale)
        merged[start:end] = block
    return merged


def _require_finite(weight: torch.Tensor, name: str, path: Path) -> None:
    low, high = torch.aminmax(weight)  # NaN if any number is
    if math.isfinite(low) and math.isfinite(high):
        return
    # bf16 and fp32 reach as far as any sum of theirs; fp16 does not
    hint = "; fp16 ends at 65504, bf16 does not" if weight.dtype is torch.float16 else ""
    raise DamagedError(
        f"expected finite numbers in {name}, found {low:g} to {high:g} in {path} or in what an "
        f"adapter adds to it{hint}"
    )


def row_blocks(rows: int, row_bytes: int) -> Sequence[torch.Tensor]:
    """Return the rows of a matrix as blocks that are small in memory, (N,) int64 each."""
    return torch.arange(rows).split(max(1, _BLOCK_BYTES // row_bytes))


def weight_files(model: Path) -> list[Path]:
    """Return the files of a base's weights.

    Raises:
        MissingError: If there is none, or one of several is missing.
        UnsupportedError: If they are pickled.
        DamagedError: If their index names anything but files beside it.
    """
    # in the order of transformers: a whole file is taken before an index, which may be stale
    if (model / SINGLE_FILE).exists():
        return [model / SINGLE_FILE]
    if (model / INDEX_FILE).exists():
        files = [model / name for name in _shard_names(model / INDEX_FILE)]
        missing = [path.name for path in files if not path.exists()]
        if missing:
            raise MissingError(
                f"expected {len(files)} weight files by {INDEX_FILE}, found no "
                f"{', '.join(missing)} in {model}; download the model again"
            )
        return files
    if any(model.glob("*.bin")):
        raise UnsupportedError(
            f"expected safetensors in {model}, found .bin: pickle files can run code and are not "
            "read; convert with AutoModel.from_pretrained(...).save_pretrained(...)"
        )
    raise MissingError(
        f"expected {SINGLE_FILE} or {INDEX_FILE} in {model}, found neither; download them too"
    )


def _shard_names(index: Path) -> list[str]:
    weight_map = read_json(index).get("weight_map")
    names = weight_map.values() if isinstance(weight_map, dict) else [weight_map]
    for name in names:
        # a name that is a path could lead out of the folder
        if not isinstance(name, str) or name != Path(name).name or name in ("", ".."):
            raise DamagedError(
                f"expected file names as weight_map in {index}, found {name!r}; download it again"
            )
    return sorted(set(names))
