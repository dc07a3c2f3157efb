"""Small random models of every family, of odd shapes, as transformers itself writes them."""

from pathlib import Path
from typing import Any, Final

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from anna_export.verify.texts import ordinary_texts

# heads times head_dim is not the hidden size, nothing is a power of two by accident
_COMMON: Final[dict[str, Any]] = {
    "vocab_size": 512,
    "hidden_size": 48,
    "intermediate_size": 72,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_YARN: Final = {
    "rope_type": "yarn",
    "rope_theta": 10_000.0,
    "factor": 16.0,
    "original_max_position_embeddings": 16,  # texts are longer
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.3,
}
_LLAMA3: Final = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
# model_type → what it has beside the common numbers; windows are shorter than texts
CONFIGS: Final[dict[str, dict[str, Any]]] = {
    "mistral": {"sliding_window": 9},
    "ministral3": {"rope_parameters": _YARN, "sliding_window": None},
    "llama": {
        "rope_parameters": _LLAMA3,
        "attention_bias": True,
        "mlp_bias": True,
        "num_key_value_heads": 1,
    },
    "qwen2": {
        "head_dim": 12,
        "num_attention_heads": 4,
        "rope_parameters": {"rope_type": "linear", "rope_theta": 5000.0, "factor": 2.0},
        "use_sliding_window": True,
        "sliding_window": 9,
        "max_window_layers": 1,
        "tie_word_embeddings": True,
    },
    "qwen3": {"num_key_value_heads": 6, "tie_word_embeddings": True, "rms_norm_eps": 1e-5},
    "gemma3_text": {
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "head_dim": 24,
        "query_pre_attn_scalar": 32,
        "sliding_window": 10,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 1_000_000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
        },
    },
}
BOTH_WAYS: Final = {
    name: {"use_bidirectional_attention": True} if name == "gemma3_text" else {"is_causal": False}
    for name in CONFIGS
}


def config_of(family: str, **changes: Any) -> Any:
    """Return transformers' configuration of a family's small model."""
    settings = {**_COMMON, **CONFIGS[family], **changes}
    return transformers.AutoConfig.for_model(family, **settings)


def write_model(
    folder: Path,
    family: str,
    *,
    headed: bool = False,
    seed: int = 0,
    **changes: Any,
) -> Path:
    """Write a model folder of a family, with a small tokenizer, and return it.

    Args:
        folder: The folder to make.
        family: Its model_type.
        headed: Whether a language head is saved with it.
        seed: Of its weights.
        changes: To its config.json.
    """
    torch.manual_seed(seed)
    config = config_of(family, **changes)
    kind = transformers.AutoModelForCausalLM if headed else transformers.AutoModel
    model = kind.from_config(config, dtype=torch.float32)
    for name, parameter in model.named_parameters():
        # norms of ones and biases of nothing would hide one that is applied in the wrong place
        if "norm" in name:
            torch.nn.init.normal_(parameter, mean=0.5, std=0.2)
        elif name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    small_tokenizer().save_pretrained(folder)
    # some families have a tokenizer class of their own, which builds another one of the same tokens
    transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(folder)
    return folder


def small_tokenizer() -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer of 512 tokens, which quick tests open often."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=["<unk>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(ordinary_texts(200), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=["<s>", "$A", "</s>"], special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="</s>",
    )
