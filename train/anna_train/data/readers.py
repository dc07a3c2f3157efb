"""Other trainers' data as rows: Tevatron, sentence-transformers, FlagEmbedding.

Tevatron: a passage is its title, a space and its text, as its trainer joins them; ids are kept as
`query_id`, `pos_ids` and `neg_ids`.

sentence-transformers: an anchor with a positive and any number of negatives; records that share the
anchor, and prompt and type if they have them, are one row, with the first one's other columns. A
list in `score`, `scores` or `label`, one number for the positive and each
negative, is a teacher's. One number beside a pair of texts is a similarity on a scale of its own
and no logit, so it decides whether the second is a positive or a negative of the first, and is kept
beside them in `pos_similarity` and `neg_similarity`; rows of sentence1 and sentence2 are of type
sts.
"""

import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from enum import StrEnum
from typing import IO, Any, Final

from anna_export.errors import InputError, UnsupportedError
from anna_train.data.records import Record
from anna_train.data.rows import Row, RowError, TaskType


class Format(StrEnum):
    """A trainer's way to write its data; FlagEmbedding's is ours."""

    TEVATRON = "tevatron"
    SENTENCE_TRANSFORMERS = "sentence-transformers"
    FLAGEMBEDDING = "flagembedding"


SIMILARITIES: Final = ("pos_similarity", "neg_similarity")
PAIR: Final = ("sentence1", "sentence2")
_PASSAGES: Final = ("positive_passages", "negative_passages")
_ANCHORS: Final = ("anchor", "query", "question", PAIR[0])
_POSITIVES: Final = ("positive", "answer", PAIR[1])
_NEGATIVE: Final = re.compile(r"negative(?:_(\d+))?")
# the same anchor asked for something else is another row
_TASK: Final = ("prompt", "type")
_SCORES: Final = ("score", "scores", "label")


def recognise(record: Record) -> Format:
    """Say whose a record is, by its fields.

    Raises:
        UnsupportedError: If it is nobody's, naming what was found.
    """
    fields = record.fields
    if _PASSAGES[0] in fields:
        return Format.TEVATRON
    if "query" in fields and "pos" in fields:
        return Format.FLAGEMBEDDING
    if _named(fields, _ANCHORS) and _named(fields, _POSITIVES):
        return Format.SENTENCE_TRANSFORMERS
    raise UnsupportedError(
        f"expected query and {_PASSAGES[0]} (tevatron), anchor and positive, or {PAIR[0]}, "
        f"{PAIR[1]} and score (sentence-transformers), or query and pos (flagembedding), found "
        f"{', '.join(map(str, fields))[:200] or 'no fields'}, in {record.where}; rename them so"
    )


def flagembedding_row(record: Record) -> Row:
    """Take a row.

    Raises:
        InputError: If it is malformed, naming its place and field.
    """
    return _row(record.fields, record.where)


def tevatron_row(record: Record) -> Row:
    """Take a Tevatron record; scores, a prompt and a type may stand beside its own fields.

    Raises:
        InputError: If it is malformed, naming its place and field.
    """
    fields = dict(record.fields)
    for name, texts, ids in zip(_PASSAGES, ("pos", "neg"), ("pos_ids", "neg_ids"), strict=True):
        passages = fields.pop(name, None) or []
        if not isinstance(passages, list):
            raise InputError(
                f"expected a list of passages in {name}, found {type(passages).__name__}, in "
                f"{record.where}"
            )
        fields[texts] = [
            _passage(passage, f"{name}[{index}], in {record.where}")
            for index, passage in enumerate(passages)
        ]
        if texts == "pos" and not passages:
            raise InputError(
                f"expected one passage or more in {name}, found none, in {record.where}"
            )
        if passages and all("docid" in passage for passage in passages):
            fields[ids] = [passage["docid"] for passage in passages]
    return _row(fields, record.where)


def joined_rows(
    records: Iterable[Record], spool: IO[bytes], positive_score: float | None
) -> Iterator[Row | None]:
    """Join sentence-transformers records that share an anchor, in the order anchors first come.

    Args:
        records: The records.
        spool: An empty file to write and read, so that memory holds only where each anchor's are.
        positive_score: The least number of a pair of sentences that makes it a positive.

    Yields:
        Rows; None for an anchor of which no pair is a positive.

    Raises:
        InputError: If a record is malformed, naming its place and field.
    """
    offsets_by_anchor: dict[bytes, list[int]] = {}
    for record in records:
        part = _part(record, positive_score)
        anchor = json.dumps([part["query"], *(part["other"].get(name) for name in _TASK)])
        key = hashlib.blake2b(anchor.encode(), digest_size=16).digest()
        offsets_by_anchor.setdefault(key, []).append(spool.tell())
        spool.write(json.dumps(part).encode() + b"\n")
    for offsets in offsets_by_anchor.values():
        parts = []
        for offset in offsets:
            spool.seek(offset)
            parts.append(json.loads(spool.readline()))
        yield _join(parts)


def _part(record: Record, positive_score: float | None) -> dict[str, Any]:
    """Take a record apart: its anchor, and each text with its number, if it has one."""
    fields = dict(record.fields)
    anchor, texts = _take_texts(fields, record)
    part: dict[str, Any] = {
        "query": texts[0],
        "pos": texts[1:2],
        "neg": texts[2:],
        "where": record.where,
    }
    kind = next((name for name in _SCORES if fields.get(name) is not None), None)
    if kind is None:
        return part | {"other": fields}
    value, count = fields.pop(kind), len(texts) - 1
    if isinstance(value, list) and len(value) == count:
        part |= {"pos_scores": value[:1], "neg_scores": value[1:]}
    elif count == 1 and not isinstance(value, list):
        if anchor == PAIR[0]:
            fields["type"] = str(TaskType.STS)
        part |= _similar(texts[1:], _number(value, kind, record.where), kind, positive_score)
    else:
        raise InputError(
            f"expected {count} numbers in {kind}, one for each text, found "
            f"{len(value) if isinstance(value, list) else repr(value)[:60]}, in {record.where}"
        )
    return part | {"other": fields}


def _take_texts(fields: dict[str, Any], record: Record) -> tuple[str, list[str]]:
    """Take anchor, positive and negatives out of a record; return the anchor's column and texts."""
    anchor, positive = _named(fields, _ANCHORS), _named(fields, _POSITIVES)
    if anchor is None or positive is None:
        raise InputError(
            f"expected an anchor and a positive, found {', '.join(map(str, fields))[:200]}, in "
            f"{record.where}"
        )
    numbered = sorted(
        (int(match[1] or 0), name) for name in fields if (match := _NEGATIVE.fullmatch(name))
    )
    names = [anchor, positive, *(name for _, name in numbered if fields[name] is not None)]
    texts = [_text(fields.pop(name), name, record.where) for name in names]
    for _, name in numbered:
        fields.pop(name, None)
    return anchor, texts


def _similar(
    texts: list[str], score: float, kind: str, positive_score: float | None
) -> dict[str, Any]:
    """Return a scored pair's text as a positive or a negative."""
    if positive_score is None:
        raise InputError(
            f"expected `positive_score` beside pairs with a {kind}, found none: it says from "
            "which number on a pair is a positive, say 4 of 0 to 5"
        )
    side, other_side = ("pos", "neg") if score >= positive_score else ("neg", "pos")
    return {
        side: texts,
        f"{side}_similarity": [score],
        other_side: [],
        f"{other_side}_similarity": [],
    }


def _join(parts: list[dict[str, Any]]) -> Row | None:
    """Join an anchor's parts; a text that comes twice is taken once."""
    fields: dict[str, Any] = dict(parts[0]["other"]) | {"query": parts[0]["query"]}
    for side in ("pos", "neg"):
        texts = [text for part in parts for text in part[side]]
        distinct = list(dict.fromkeys(texts))
        fields[side] = distinct
        for name in (f"{side}_scores", f"{side}_similarity"):
            if not any(name in part for part in parts):
                continue
            numbers = [number for part in parts for number in part.get(name, ())]
            if len(numbers) != len(texts):
                raise InputError(
                    "expected numbers with all of an anchor's records or none, found them with "
                    f"some, in that of {parts[0]['where']}"
                )
            first = dict(reversed(list(zip(texts, numbers, strict=True))))
            fields[name] = [first[text] for text in distinct]
    return _row(fields, parts[0]["where"]) if fields["pos"] else None


def _named(fields: Mapping[str, Any], names: Iterable[str]) -> str | None:
    return next((name for name in names if name in fields), None)


def _passage(passage: object, where: str) -> str:
    if not isinstance(passage, dict) or not isinstance(passage.get("text"), str):
        raise InputError(f"expected an object with a text in {where}, found another value")
    title = passage.get("title")
    if title is not None and not isinstance(title, str):
        raise InputError(f"expected a text as the title in {where}, found another value")
    return f"{title} {passage['text']}" if title else str(passage["text"])


def _text(value: object, name: str, where: str) -> str:
    if not isinstance(value, str):
        kind = "null" if value is None else type(value).__name__
        raise InputError(f"expected a text in {name}, found {kind}, in {where}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InputError(
            f"expected valid Unicode in {name}, found a lone surrogate, in {where}"
        ) from None
    return value


def _number(value: object, name: str, where: str) -> float:
    try:
        number = float(value) if isinstance(value, str | int | float) else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise InputError(f"expected a number in {name}, found {value!r:.60}, in {where}")
    return number


def _row(fields: Mapping[str, Any], where: str) -> Row:
    try:
        return Row.of_json(dict(fields))
    except RowError as error:
        raise InputError(f"{error}, in {where}") from None
