"""A folder of small tasks, one of every category, of made-up sentences about a few topics."""

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from demo.tasks import write_data

TOPICS: Final = {
    "bank": "account card payment transfer fee interest loan statement balance cheque",
    "garden": "rose soil seed watering hedge lawn compost spade bloom greenhouse",
    "ship": "anchor deck sail harbour captain mast voyage cargo tide rudder",
    "music": "violin chord rhythm opera concert melody drum piano choir score",
}
_OTHER_WORDS: Final = "old new small good late open quiet bright second early long plain".split()


def write_small_tasks(folder: Path, count: int = 60, names: Sequence[str] = ()) -> Path:
    """Write tasks of about `count` units each; all seven categories, or those named."""
    rng = random.Random(0)
    builders = {
        "SmallRetrieval": _retrieval,
        "SmallReranking": _reranking,
        "SmallClassification": _classification,
        "SmallClustering": _clustering,
        "SmallPairs": _pairs,
        "SmallSTS": _sts,
        "SmallSummaries": _summaries,
    }
    manifest = {}
    for name in names or builders:
        base, fields, data = builders[name](rng, count)
        revision = write_data(folder / "data" / name, data)
        metadata = {"name": name, "description": "Made up.", **fields}
        manifest[name] = {"base": base, "revision": revision, "metadata": metadata}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def sentence(rng: random.Random, topic: str, length: int = 7) -> str:
    """Return words of a topic among others."""
    words = [
        *rng.choices(TOPICS[topic].split(), k=length // 2),
        *rng.choices(_OTHER_WORDS, k=length),
    ]
    rng.shuffle(words)
    return " ".join(words)


Built = tuple[str, dict[str, Any], Mapping[str, Mapping[str, pa.Table]]]


def _texts(rng: random.Random, count: int) -> list[tuple[str, str]]:
    topics = list(TOPICS)
    return [
        (topics[index % len(topics)], sentence(rng, topics[index % len(topics)]))
        for index in range(count)
    ]


def _varied(rng: random.Random, text: str, changes: int) -> str:
    words = text.split()
    for _ in range(changes):
        words[rng.randrange(len(words))] = rng.choice(_OTHER_WORDS)
    return " ".join(words)


def _ranked(rng: random.Random, count: int) -> dict[str, dict[str, pa.Table]]:
    documents = [text for _, text in _texts(rng, 2 * count)]
    queries = [_varied(rng, text, 4) for text in documents[:count]]
    return {
        "corpus": {
            "test": pa.table(
                {
                    "_id": [f"d{index}" for index in range(len(documents))],
                    "title": [""] * len(documents),
                    "text": documents,
                }
            )
        },
        "queries": {
            "test": pa.table({"_id": [f"q{index}" for index in range(count)], "text": queries})
        },
        "default": {
            "test": pa.table(
                {
                    "query-id": [f"q{index}" for index in range(count)],
                    "corpus-id": [f"d{index}" for index in range(count)],
                    "score": [1] * count,
                }
            )
        },
    }


def _retrieval(rng: random.Random, count: int) -> Built:
    return "CQADupstackGamingRetrieval", {}, _ranked(rng, count)


def _reranking(rng: random.Random, count: int) -> Built:
    candidates = [
        [f"d{(index + step) % (2 * count)}" for step in range(12)] for index in range(count)
    ]
    ranked = pa.table(
        {"query-id": [f"q{index}" for index in range(count)], "corpus-ids": candidates}
    )
    fields = {"type": "Reranking", "main_score": "map_at_1000"}
    return (
        "CQADupstackGamingRetrieval",
        fields,
        _ranked(rng, count) | {"top_ranked": {"test": ranked}},
    )


def _classification(rng: random.Random, count: int) -> Built:
    labels = {topic: index for index, topic in enumerate(TOPICS)}
    splits = {}
    for split in ("train", "test"):
        topics, texts = zip(*_texts(rng, max(count, 48)), strict=True)
        splits[split] = pa.table(
            {"text": texts, "label": [labels[topic] for topic in topics], "label_text": topics}
        )
    return "Banking77Classification", {}, {"default": splits}


def _clustering(rng: random.Random, count: int) -> Built:
    topics, texts = zip(*_texts(rng, count), strict=True)
    table = pa.table({"sentences": texts, "labels": topics})
    return "GeoreviewClusteringP2P", {"eval_langs": ["eng-Latn"]}, {"default": {"test": table}}


def _pairs(rng: random.Random, count: int) -> Built:
    left = [text for _, text in _texts(rng, count)]
    labels = [index % 2 for index in range(count)]
    right = [
        _varied(rng, text, 5) if same else _texts(rng, 4)[index % 4][1]
        for index, (text, same) in enumerate(zip(left, labels, strict=True))
    ]
    right[1] = left[3]  # one text in two pairs
    table = pa.table({"sent1": [left], "sent2": [right], "labels": [labels]})
    return "TwitterURLCorpus", {}, {"default": {"test": table}}


def _sts(rng: random.Random, count: int) -> Built:
    left = [text for _, text in _texts(rng, count)]
    changes = [index % 6 for index in range(count)]
    right = [_varied(rng, text, 2 * number) for text, number in zip(left, changes, strict=True)]
    table = pa.table(
        {"sentence1": left, "sentence2": right, "score": [5.0 - number for number in changes]}
    )
    return "STSBenchmark", {}, {"default": {"test": table}}


def _summaries(rng: random.Random, count: int) -> Built:
    texts = [text for _, text in _texts(rng, max(20, count // 3))]
    machines = [[_varied(rng, text, 2 * number) for number in range(5)] for text in texts]
    table = pa.table(
        {
            "text": texts,
            "human_summaries": [[_varied(rng, text, 1) for _ in range(2)] for text in texts],
            "machine_summaries": machines,
            "relevance": [[5.0, 4.0, 3.0, 2.0, 1.0]] * len(texts),
        }
    )
    return "SummEvalSummarization.v2", {}, {"default": {"test": table}}
