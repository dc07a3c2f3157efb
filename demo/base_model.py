"""A small real base model, trained from scratch: Mistral v0.1 in everything but size.

No weights can be downloaded on a fresh machine, so the demonstration makes its own: contrastive
training (InfoNCE over in-batch negatives) on docstring pairs, last-token pooling, unit length. It
never sees a prompt: instructions and examples are what its adapter learns.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from anna_train.model.forward import Decoder, embed
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling
from torch import Tensor
from torch.nn import functional
from transformers import MistralConfig, MistralModel, PreTrainedTokenizerFast

from demo.base_recipe import MAX_TOKENS, PROMPTS, BaseRecipe
from demo.corpus import Pair
from demo.progress import progress_bar
from demo.repeatable import repeatable
from demo.tokenizer import PAD, build_tokenizer, load_sentencepiece, save_tokenizer

# Batches of like length are cut from this many shuffled ones, so that they still differ per epoch.
_BUCKET_BATCHES = 16


# Attention's logit of a token for itself, at the start, in heads that lean to the end.
_NEAREST_LOGIT = 8.0


def model_config(vocab_size: int, pad_id: int) -> MistralConfig:
    """Return Mistral v0.1's configuration at a four-million-parameter size.

    head_dim is not hidden_size / num_attention_heads, so that nothing downstream assumes it is.
    """
    return MistralConfig(
        vocab_size=vocab_size,
        hidden_size=128,
        intermediate_size=320,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=48,
        max_position_embeddings=32768,
        sliding_window=4096,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        rms_norm_eps=1e-5,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=pad_id,
        # 1 / sqrt(hidden_size): at the usual 0.02 so small a model learns half as fast
        initializer_range=0.08,
        use_cache=False,
    )


def train_base(pairs: Sequence[Pair], folder: Path, recipe: BaseRecipe) -> None:
    """Train a base model and write it as a sentence-transformers folder with bf16 weights."""
    tokenizer = build_tokenizer(load_sentencepiece(), MAX_TOKENS)
    examples = _tokenise(pairs, tokenizer, recipe.train_tokens)
    with repeatable(recipe.seed):
        model = MistralModel(model_config(len(tokenizer), tokenizer.convert_tokens_to_ids(PAD)))
        _lean_to_the_end(model)
        _train(model, examples, recipe)
    save_base(model, tokenizer, folder)


def _lean_to_the_end(model: MistralModel) -> None:
    """Start half the heads with more attention for near tokens than for far ones.

    A constant part of every token's state becomes a constant query and key; rotary embedding turns
    their product into one that falls with distance, as about its power -0.9. From weights that see
    all tokens alike, so short a tuning never learns that a prompt's examples are not the query.
    """
    config = model.config
    constant, scale = torch.ones(config.hidden_size), 0.5
    embeddings = model.embed_tokens.weight.detach()
    # what the first norm makes of the constant, beside the random rest of a state
    part = config.hidden_size**0.5 * scale / (1 + scale**2) ** 0.5
    strength = (_NEAREST_LOGIT * config.head_dim**0.5 / (config.head_dim // 2)) ** 0.5 / part
    embeddings += scale * embeddings.pow(2).mean().sqrt() * constant
    for layer in model.layers:
        for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj):
            heads = torch.zeros(projection.out_features // config.head_dim, config.head_dim)
            # one of each pair of dimensions that are turned together
            heads[: len(heads) // 2, : config.head_dim // 2] = 1
            direction = constant / constant.norm()
            projection.weight.detach().add_(strength * torch.outer(heads.flatten(), direction))


def save_base(model: MistralModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write weights (bf16, as real bases have), tokenizer and sentence-transformers files."""
    with TemporaryDirectory(dir=folder.parent) as scratch:
        model.save_pretrained(scratch)
        save_tokenizer(tokenizer, Path(scratch))
        transformer = Transformer(scratch, model_kwargs={"dtype": torch.bfloat16})
        SentenceTransformer(
            modules=[
                transformer,
                Pooling(model.config.hidden_size, pooling_mode="lasttoken"),
                Normalize(),
            ],
            prompts=PROMPTS,
            device="cpu",
        ).save(str(folder), create_model_card=False)
    # sentence-transformers writes it without the framing keys
    save_tokenizer(tokenizer, folder)


def contrastive_loss(queries: Tensor, documents: Tensor, temperature: float) -> Tensor:
    """InfoNCE in both directions; every other row of the batch is a negative."""
    scores = queries @ documents.T / temperature
    labels = torch.arange(len(scores))
    return (
        functional.cross_entropy(scores, labels) + functional.cross_entropy(scores.T, labels)
    ) / 2


@dataclass(frozen=True, slots=True)
class _Example:
    query: list[int]
    document: list[int]


def _tokenise(
    pairs: Sequence[Pair], tokenizer: PreTrainedTokenizerFast, max_tokens: int
) -> list[_Example]:
    def ids(texts: list[str]) -> list[list[int]]:
        return tokenizer(texts, truncation=True, max_length=max_tokens)["input_ids"]

    queries, documents = ids([pair.query for pair in pairs]), ids([pair.document for pair in pairs])
    return [_Example(*both) for both in zip(queries, documents, strict=True)]


def _batches(examples: Sequence[_Example], recipe: BaseRecipe) -> Iterator[list[_Example]]:
    """Yield batches of like document length for ever, in an order drawn from torch's seed."""
    while True:
        shuffled = [examples[index] for index in torch.randperm(len(examples)).tolist()]
        size = min(recipe.batch_pairs, len(examples))
        batches = []
        for start in range(0, len(shuffled), size * _BUCKET_BATCHES):
            bucket = shuffled[start : start + size * _BUCKET_BATCHES]
            bucket.sort(key=lambda example: len(example.document))
            cuts = range(0, len(bucket) - size + 1, size)
            batches += [bucket[cut : cut + size] for cut in cuts]
        yield from (batches[index] for index in torch.randperm(len(batches)).tolist())


def _train(model: MistralModel, examples: Sequence[_Example], recipe: BaseRecipe) -> None:
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.learning_rate, weight_decay=0.01, fused=True
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: _rate((step + 1) / recipe.steps, recipe.warmup_share)
    )
    batches, decoder = _batches(examples, recipe), Decoder.of(model)
    with progress_bar("base model", recipe.steps) as advance:
        for _ in range(recipe.steps):
            batch = next(batches)
            loss = contrastive_loss(
                embed(decoder, [example.query for example in batch]),
                embed(decoder, [example.document for example in batch]),
                recipe.temperature,
            )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            advance()


def _rate(done: float, warmup: float) -> float:
    """Share of the full learning rate: rises in a line, falls along a cosine."""
    if done < warmup:
        return done / warmup
    return 0.5 * (1 + math.cos(math.pi * (done - warmup) / (1 - warmup)))
