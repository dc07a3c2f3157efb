"""The reference: the model as the libraries that made it run it, and none of our reading of it.

Token ids, prompts, pooling and what follows it are those of sentence-transformers, over
transformers' tokenizer and model and peft's adapter. A folder with modules.json is opened as
sentence-transformers opens it; one without is last-token pooling and unit length over what
AutoTokenizer and AutoModel give.
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import peft
import torch
import transformers
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import (
    Dense,
    Normalize,
    Pooling,
    Transformer,
)
from tokenizers import processors

from anna_export.console.quiet import quiet_libraries
from anna_export.errors import InputError
from anna_export.reference.model import empty_decoder
from anna_export.reference.plain_folder import plain_adapter, plain_model
from anna_export.spec import dense_words, pooling_words
from anna_export.text.framing import TOKENIZER_FILE, TOKENIZER_FILES
from anna_export.text.st_files import MODULES_FILE
from anna_export.weights.adapter import CONFIG_FILE, WEIGHTS_FILE
from anna_export.weights.safetensors_files import read_header

_AS_IT_IS: Final[Mapping[str, Any]] = {}
# A decoder of next to nothing, for what stands around it: no weight of it is read.
_NO_DECODER: Final[Mapping[str, Any]] = {
    "num_hidden_layers": 0,
    "layer_types": [],
    "vocab_size": 1,
    "pad_token_id": None,
}


@dataclass(frozen=True, slots=True)
class Library:
    """A model as its libraries opened it."""

    model: SentenceTransformer
    adapter: bool

    @property
    def transformer(self) -> Any:
        """sentence-transformers' Transformer: tokenizer and decoder."""
        return self.model[0]

    @property
    def dim(self) -> int:
        """D, the length of a vector."""
        return int(self.model.get_embedding_dimension())

    @property
    def prompts(self) -> dict[str, str]:
        """What stands in front of a text, by name; the library's own names without a text left out.

        A folder without modules.json has none: sentence-transformers reads them beside that file.
        """
        return {name: text for name, text in self.model.prompts.items() if text}

    @property
    def name(self) -> str:
        """The library that runs the model, and its version."""
        return f"sentence-transformers {version('sentence-transformers')}"

    @property
    def decoder(self) -> str:
        """The decoder's class, and the library that it is of."""
        decoder = type(self.transformer.model).__name__
        return f"{decoder} of transformers {version('transformers')}"

    @property
    def lora(self) -> str | None:
        """What put the adapter on; None without one."""
        return f"peft {version('peft')}, unmerged" if self.adapter else None

    def frame(self, front_ids: Sequence[int], back_ids: Sequence[int]) -> None:
        """Have the tokenizer put these tokens around a text, where somebody chose so at export."""
        tokenizer = self.transformer.tokenizer
        front, back = (tokenizer.convert_ids_to_tokens(list(ids)) for ids in (front_ids, back_ids))
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single=[*front, "$A", *back],
            special_tokens=list(zip([*front, *back], [*front_ids, *back_ids], strict=True)),
        )

    def modules(self) -> list[str]:
        """Return what follows the decoder, in the library's own words."""
        return [_named(module) for module in list(self.model)[1:]]

    def pooled_tokens(self, length: int, prompt_tokens: int) -> list[int]:
        """Return which tokens of a text of this length the library pools.

        Its Pooling is asked: it pools the rows of an identity matrix.
        """
        features = {
            "token_embeddings": torch.eye(length)[None],
            "attention_mask": torch.ones((1, length), dtype=torch.int64),
            "prompt_length": prompt_tokens,
        }
        pooled = self.model[1](features)["sentence_embedding"][0]
        return torch.nonzero(pooled).flatten().tolist()


def _named(module: Any) -> str:
    match module:
        case Pooling():
            # the last token is never a prompt's
            leaves_out = not module.include_prompt and module.pooling_mode != "lasttoken"
            return pooling_words(module.pooling_mode, leaves_out_prompt=leaves_out)
        case Dense():
            activation = type(module.activation_function).__name__.lower()
            linear = module.linear
            has_bias = linear.bias is not None
            return dense_words(linear.in_features, linear.out_features, activation, bias=has_bias)
    return type(module).__name__


def open_library(model: Path, adapters: Sequence[Path], device: str = "cpu") -> Library:
    """Open base and adapters in fp32; all adapters but the last are merged, by peft.

    Args:
        model: The base model's folder.
        adapters: The LoRA adapters' folders, in order.
        device: PyTorch's name of it.

    Raises:
        InputError: If peft has no place for a tensor of an adapter.
    """
    with quiet_libraries(), plain_model(model) as plain, _folder_of(plain, adapters) as folder:
        opened = open_folder(folder)
        transformer = opened[0]
        for number, adapter in enumerate(adapters, start=1):
            with plain_adapter(adapter) as lora:
                transformer.model = _with_adapter(
                    transformer.model, lora, merged=number < len(adapters)
                )
        return Library(opened.to(device).eval(), bool(adapters))


def open_library_shell(model: Path, adapters: Sequence[Path]) -> Library:
    """Open all but the decoder, which is transformers' own by config.json, on the meta device."""
    plain = plain_model(model, weights=False)
    with quiet_libraries(), plain as base, _folder_of(base, adapters) as folder:
        shell = open_folder(folder, config=_NO_DECODER)
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
        # keys and values that nothing reads again would be held for every layer
        config.use_cache = shell[0].config.use_cache
        shell[0].model = empty_decoder(config)
        return Library(shell.eval(), bool(adapters))


def open_folder(
    folder: Path, device: str | None = "cpu", config: Mapping[str, Any] = _AS_IT_IS
) -> SentenceTransformer:
    """Open a model's folder in fp32; one without modules.json pools its last token.

    Args:
        folder: Weights under their own names, and all that is around them.
        device: PyTorch's name of it; None lets sentence-transformers choose.
        config: Settings of config.json to change.
    """
    # of a decoder in a narrower type, the library narrows the modules behind it too
    arguments: dict[str, Any] = {
        "model_kwargs": {"dtype": torch.float32, "local_files_only": True},
        "config_kwargs": {**config, "local_files_only": True},
    }
    if (folder / MODULES_FILE).exists():
        return SentenceTransformer(str(folder), device=device, local_files_only=True, **arguments)
    transformer = Transformer(str(folder), **arguments)
    pooling = Pooling(transformer.get_embedding_dimension(), "lasttoken")
    return SentenceTransformer(modules=[transformer, pooling, Normalize()], device=device)


@contextmanager
def _folder_of(model: Path, adapters: Sequence[Path]) -> Iterator[Path]:
    """Give one folder, of links, with the base's weights and what adapters say around them.

    An adapter of sentence-transformers says all but the weights; any other, if anything, which
    tokenizer it was trained with. The last one counts.
    """
    if not adapters:
        yield model
        return
    paths = {path.name: path for path in model.iterdir()}
    for adapter in adapters:
        if (adapter / MODULES_FILE).exists():
            paths |= {path.name: path for path in adapter.iterdir()}
        if (adapter / TOKENIZER_FILE).exists():
            for name in TOKENIZER_FILES:
                paths.pop(name, None)
                if (adapter / name).exists():
                    paths[name] = adapter / name
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name, path in paths.items():
            if name not in (CONFIG_FILE, WEIGHTS_FILE):
                (folder / name).symlink_to(path.resolve())
        yield folder


def _with_adapter(decoder: Any, adapter: Path, *, merged: bool) -> Any:
    """Put an adapter on a decoder, by peft, and merge it where others follow."""
    tensors = read_header(adapter / WEIGHTS_FILE)
    keys = set(tensors)
    # an adapter trained with added tokens brings its own, larger embedding
    rows = [
        tensor.shape[0]
        for key, tensor in tensors.items()
        if "embed_tokens." in key and key.endswith(".weight") and "lora_" not in key
    ]
    if rows and rows[0] != decoder.config.vocab_size:
        decoder.resize_token_embeddings(rows[0], mean_resizing=False)
    # an adapter trained under a language head names its modules one level deeper
    headed = any(key.startswith("base_model.model.model.") for key in keys)
    base = _under_head(decoder) if headed else decoder
    tuned = peft.PeftModel.from_pretrained(base, str(adapter), local_files_only=True)
    # peft ignores tensors it finds no module for; a reference without them would prove nothing
    loaded = set(peft.get_peft_model_state_dict(tuned, save_embedding_layers=True))
    loaded |= set(tuned.state_dict())  # the base's own weights, where they were saved with it
    if lost := keys - loaded:
        raise InputError(
            f"expected peft to load every tensor of {adapter}, found {len(lost)} ignored, "
            f"such as {min(lost)}"
        )
    unwrapped = tuned.merge_and_unload() if merged else tuned.get_base_model()
    return unwrapped.model if headed else unwrapped


def _under_head(decoder: Any) -> Any:
    """Return a language model over a decoder; its head computes nothing here and has no values."""
    with torch.device("meta"):
        headed = transformers.AutoModelForCausalLM.from_config(decoder.config, dtype=torch.float32)
    headed.model = decoder
    headed.lm_head.to_empty(device="cpu")
    return headed
