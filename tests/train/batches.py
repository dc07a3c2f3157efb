"""A small model and a batch with every trait, for the tests of gradients."""

import torch
from anna_train.model.forward import Decoder
from anna_train.model.loss import Targets
from anna_train.model.trained_model import TrainedModel, lora_config
from anna_train.plan.assemble import Group
from anna_train.recipe import LoraRecipe, LossRecipe
from peft import get_peft_model
from transformers import MistralConfig, MistralModel

QUERIES, DOCUMENTS = 5, 7
# each switch of the loss alone, and all at once
LOSSES = {
    "contrastive": LossRecipe(soft_labels=0, false_negative_margin=None),
    "soft labels": LossRecipe(contrastive=False, false_negative_margin=None),
    "false negatives": LossRecipe(soft_labels=0, false_negative_margin=0.01),
    "matryoshka": LossRecipe(soft_labels=0, false_negative_margin=None, matryoshka=(8, 16)),
    "all": LossRecipe(soft_labels=0.7, false_negative_margin=0.05, matryoshka=(8,)),
}


def model(*, dropout: float = 0.0, dtype: torch.dtype = torch.float32) -> TrainedModel:
    """Return a model of three layers whose adapter is not zero; the same every time."""
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=12,
        sliding_window=64,
        initializer_range=0.2,
        use_cache=False,
        attn_implementation="sdpa",
    )
    recipe = LoraRecipe(rank=4, alpha=8, dropout=dropout)
    adapted = get_peft_model(MistralModel(config), lora_config(recipe))
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.05)
    return TrainedModel(adapted.to(dtype).train(), Decoder.of(adapted.base_model.model))


def ids(count: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, 97, (count,), generator=generator).tolist()


def groups() -> list[Group]:
    """Two groups of queries behind their own prefixes, and documents without one."""
    return [
        Group(ids(19, 1), [ids(length, 10 + length) for length in (3, 9, 5)], [0, 1, 2]),
        Group(ids(23, 2), [ids(length, 20 + length) for length in (1, 6)], [3, 4]),
        Group(
            [],
            [ids(length, 30 + length) for length in (12, 4, 7, 1, 15, 8, 3)],
            list(range(QUERIES, QUERIES + DOCUMENTS)),
        ),
    ]


def targets() -> Targets:
    """Own documents, one query with a negative less, in-batch negatives for all but one."""
    own_documents = torch.tensor([[0, 5, 6], [1, 5, -1], [2, 6, 0], [3, 0, 1], [4, 5, 2]])
    others = torch.ones(QUERIES, DOCUMENTS, dtype=torch.bool)
    others[torch.arange(QUERIES), own_documents[:, 0]] = False
    others[3] = False
    teacher = torch.tensor(
        [[3.0, 1, 0], [2, 2, 0], [1, 2, 3], [5, 0, 1], [0.5, 0.2, 0.1]], dtype=torch.float32
    )
    return Targets(own_documents, others, teacher)
