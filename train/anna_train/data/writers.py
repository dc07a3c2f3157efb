"""Rows as other trainers' data: Tevatron's passages, sentence-transformers' triplets and pairs."""

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

from anna_train.data.readers import PAIR, SIMILARITIES
from anna_train.data.rows import Row, TaskType


def tevatron_record(row: Row, number: int) -> dict[str, Any]:
    """Return a row as a Tevatron record; what that trainer has no field for stands beside.

    Args:
        row: The row; ids it was read with are used again.
        number: Its place in the file, from 1: its query's id, if it has none.
    """
    fields = row.as_json()
    pos, neg = fields.pop("pos"), fields.pop("neg")
    return {
        "query_id": fields.pop("query_id", str(number)),
        "query": fields.pop("query"),
        "positive_passages": _passages(pos, fields.pop("pos_ids", None)),
        "negative_passages": _passages(neg, fields.pop("neg_ids", None)),
        **fields,
    }


def sentence_transformers_records(row: Row) -> Iterator[dict[str, Any]]:
    """Yield a row as triplets, as pairs if it has no negatives, or as the scored pairs it was.

    Every positive and every negative stands in a triplet, not every pair of them: there are as many
    triplets as the more numerous has texts. A trainer takes every column for a text to embed, so
    there are no others.
    """
    if numbers := _similarities(row):
        for text, number in zip([*row.pos, *row.neg], numbers, strict=True):
            yield dict(zip((*PAIR, "score"), (row.query, text, number), strict=True))
        return
    for index in range(max(len(row.pos), len(row.neg))):
        record = {"anchor": row.query, "positive": row.pos[index % len(row.pos)]}
        if row.neg:
            record["negative"] = row.neg[index % len(row.neg)]
        yield record


def lost_fields(row: Row) -> Iterator[str]:
    """Name what a row has and its sentence-transformers records have no column for."""
    written = SIMILARITIES if _similarities(row) else ()
    if row.scored:
        yield "scores"
    if row.prompt is not None:
        yield "prompt"
    # what is read from scored pairs is of type sts again
    if row.type is not (TaskType.STS if written else TaskType.RETRIEVAL):
        yield "type"
    yield from (name for name in row.other if name not in written)


def _similarities(row: Row) -> list[Any]:
    """Return the number of each text; none if they are not of these texts."""
    sides = [row.other.get(name) for name in SIMILARITIES]
    numbers = [number for side in sides if isinstance(side, list) for number in side]
    return numbers if len(numbers) == len(row.pos) + len(row.neg) else []


def _passages(texts: Sequence[str], ids: object) -> list[dict[str, Any]]:
    docids = (
        ids if isinstance(ids, list) and len(ids) == len(texts) else [_id(text) for text in texts]
    )
    # the title is in the text already, which an empty one leaves as it is
    return [
        {"docid": docid, "title": "", "text": text}
        for docid, text in zip(docids, texts, strict=True)
    ]


def _id(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
