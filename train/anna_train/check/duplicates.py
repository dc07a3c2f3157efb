"""Rules about rows and texts that come twice, in one file or in several.

Hashes are kept and no text: 200 bytes or so a row, 3 kB a text looked for near-duplicates of.
"""

import hashlib
import zlib
from collections.abc import Iterator
from itertools import islice
from typing import Final

from datasketch import MinHash, MinHashLSH

from anna_train.check.findings import Finding, Place
from anna_train.check.words import digest, grams, words
from anna_train.rows import Row

REPEATED_ROW: Final = "repeated row"
REPEATED_QUERY: Final = "repeated query"
NEAR_QUERY: Final = "near-duplicate query"
NEAR_DOCUMENT: Final = "near-duplicate document"
# Jaccard similarity of two texts' runs of three words
MIN_SIMILARITY: Final = 0.9
_SHINGLE_WORDS: Final = 3
# Bands and their rows: 99 % of pairs of similarity 0.9 share a band, 3 % of those of 0.5.
_BANDS: Final = (8, 8)
# texts read back to compare one with; templates share a band with thousands
_MAX_COMPARED: Final = 8


class RepeatedRows:
    """Finds rows that come twice, and queries that come again with other positives.

    A query under another prompt or of another type is another query.
    """

    def __init__(self) -> None:
        self._rows: dict[int, Place] = {}
        self._queries: dict[int, Place] = {}

    def __call__(self, place: Place, row: Row) -> Iterator[Finding]:
        """Compare a row with all before it."""
        query = (row.prompt or "", str(row.type), row.query)
        same = self._rows.setdefault(digest(*query, *sorted(row.pos)), place)
        first = self._queries.setdefault(digest(*query), place)
        if same != place:
            yield place.warning(
                REPEATED_ROW,
                "query",
                f"expected every row once, found query and positives of {same} again; remove one",
            )
        elif first != place:
            yield place.warning(
                REPEATED_QUERY,
                "query",
                f"expected a query's positives in one row, found the query of {first} again: in "
                "one batch each row's positives are negatives of the other; join the rows",
            )


class NearDuplicates:
    """Finds texts that differ from one before them in a word or so.

    Repetitions, spaces aside, are not counted: a document may well be that of several queries.

    Args:
        rule: NEAR_QUERY looks at queries, NEAR_DOCUMENT at positives and negatives.
    """

    def __init__(self, rule: str) -> None:
        self._rule = rule
        self._seen: set[int] = set()
        # crc32 takes a tenth of the default's time; candidates are compared exactly anyway
        self._empty = MinHash(_BANDS[0] * _BANDS[1], hashfunc=zlib.crc32)
        self._near = MinHashLSH(
            num_perm=_BANDS[0] * _BANDS[1], params=_BANDS, hashfunc=_short_digest
        )

    def __call__(self, place: Place, row: Row) -> Iterator[Finding]:
        """Compare a row's texts with all before them."""
        for field, text in row.texts():
            if (field == "query") != (self._rule == NEAR_QUERY):
                continue
            if (own := digest(*text.split())) in self._seen:
                continue
            self._seen.add(own)
            if shingles := grams(words(text), _SHINGLE_WORDS):
                yield from self._compare(place, field, shingles)

    def _compare(self, place: Place, field: str, shingles: set[str]) -> Iterator[Finding]:
        sketch = self._empty.copy()
        sketch.update_batch([shingle.encode() for shingle in shingles])
        candidates = sorted(self._near.query(sketch), key=_order)
        for other, its_field in islice(candidates, _MAX_COMPARED):
            its_shingles = grams(words(other.text(its_field)), _SHINGLE_WORDS)
            similarity = len(shingles & its_shingles) / len(shingles | its_shingles)
            if similarity >= MIN_SIMILARITY:
                yield place.warning(
                    self._rule,
                    field,
                    f"expected different texts, found {its_field} of {other} almost again "
                    f"(similarity {similarity:.2f}); remove one",
                )
                return  # the first stands for all that are like it
        self._near.insert((place, field), sketch, check_duplication=False)


def _order(candidate: tuple[Place, str]) -> tuple[str, int, str]:
    place, field = candidate
    return str(place.file.path), place.index, field


def _short_digest(band: bytes) -> bytes:
    return hashlib.blake2b(band, digest_size=8).digest()
