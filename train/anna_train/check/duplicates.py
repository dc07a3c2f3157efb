"""Rules about rows and texts that come twice, in one file or in several.

Hashes are kept and no text: some 250 bytes a row, and 200 a text looked for near-duplicates of.
"""

import hashlib
import zlib
from array import array
from collections.abc import Iterator
from itertools import groupby, islice
from typing import Final

import numpy as np

from anna_export.errors import ExtraError
from anna_train.check.findings import Finding, RowLocation
from anna_train.check.words import digest, grams, words
from anna_train.data.rows import Row, RowFile

try:
    from datasketch import MinHash
except ImportError:
    raise ExtraError(
        "expected datasketch, which compares texts, found none; install anna-export[train]"
    ) from None

REPEATED_ROW: Final = "repeated row"
REPEATED_QUERY: Final = "repeated query"
NEAR_QUERY: Final = "near-duplicate query"
NEAR_DOCUMENT: Final = "near-duplicate document"
# Jaccard similarity of two texts' runs of three words
MIN_SIMILARITY: Final = 0.9
_SHINGLE_WORDS: Final = 3
# 99 % of pairs of similarity 0.9 share a band of eight hashes, 3 % of those of 0.5
_BANDS: Final = 8
_BAND_HASHES: Final = 8
# texts before one in a band that it is compared with; templates share one with thousands
_MAX_COMPARED: Final = 4
# bits of a text's place: its file, its row, its number in the row
_ROW_BITS: Final = 36
_NUMBER_BITS: Final = 16


class RepeatedRows:
    """Finds rows that come twice, and queries that come again with other positives.

    A query under another prompt or of another type is another query.
    """

    def __init__(self) -> None:
        self._rows: dict[int, RowLocation] = {}
        self._queries: dict[int, RowLocation] = {}

    def __call__(self, location: RowLocation, row: Row) -> Iterator[Finding]:
        """Compare a row with all before it."""
        query = (row.prompt or "", str(row.type), row.query)
        same = self._rows.setdefault(digest(*query, *sorted(row.pos)), location)
        first = self._queries.setdefault(digest(*query), location)
        if same != location:
            yield location.warning(
                REPEATED_ROW,
                "query",
                f"expected every row once, found query and positives of {same} again; remove one",
            )
        elif first != location:
            yield location.warning(
                REPEATED_QUERY,
                "query",
                f"expected a query's positives in one row, found the query of {first} again: in "
                "one batch each row's positives are negatives of the other; join the rows",
            )


class NearDuplicates:
    """Finds texts that differ from one before them in a word or so, once all rows were seen.

    Repetitions, spaces aside, are not counted: a document may well be that of several queries.
    datasketch's own index of bands takes 3 kB a text; their hashes, sorted at the end, take 64.

    Args:
        rule: NEAR_QUERY looks at queries, NEAR_DOCUMENT at positives and negatives.
    """

    def __init__(self, rule: str) -> None:
        self._rule = rule
        self._hashed: set[int] = set()
        self._files: list[RowFile] = []
        self._locations = array("Q")
        self._bands = array("Q")  # of each text in turn
        # crc32 takes a tenth of the default's time; candidates are compared exactly anyway
        self._empty = MinHash(_BANDS * _BAND_HASHES, hashfunc=zlib.crc32)

    def __call__(self, location: RowLocation, row: Row) -> Iterator[Finding]:
        """Keep the hashes of a row's texts."""
        if not self._files or location.file is not self._files[-1]:
            self._files.append(location.file)
        # no row has more texts than its place has room for
        for number, (field, text) in enumerate(islice(row.texts(), 2**_NUMBER_BITS)):
            if (field == "query") != (self._rule == NEAR_QUERY):
                continue
            if (text_digest := digest(*text.split())) in self._hashed:
                continue
            self._hashed.add(text_digest)
            if shingles := grams(words(text), _SHINGLE_WORDS):
                self._bands.extend(self._hashes(shingles))
                file_and_row = (len(self._files) - 1) << _ROW_BITS | location.index
                self._locations.append(file_and_row << _NUMBER_BITS | number)
        yield from ()

    def finish(self) -> Iterator[Finding]:
        """Compare texts that share a band with those before them, word by word."""
        for later, pairs in groupby(self._candidates(), key=lambda pair: pair[0]):
            location, field, shingles = self._read(later)
            for _, earlier in pairs:
                other, its_field, its_shingles = self._read(earlier)
                similarity = len(shingles & its_shingles) / len(shingles | its_shingles)
                if similarity >= MIN_SIMILARITY:
                    yield location.warning(
                        self._rule,
                        field,
                        f"expected different texts, found {its_field} of {other} almost again "
                        f"(similarity {similarity:.2f}); remove one",
                    )
                    break  # the first stands for all that are like it

    def _hashes(self, shingles: set[str]) -> Iterator[int]:
        sketch = self._empty.copy()
        sketch.update_batch([shingle.encode() for shingle in shingles])
        for band in sketch.digest().reshape(_BANDS, _BAND_HASHES):
            yield int.from_bytes(hashlib.blake2b(band.tobytes(), digest_size=8).digest(), "big")

    def _candidates(self) -> list[tuple[int, int]]:
        """Return pairs of texts that share a band, the later first, each pair once, in order."""
        bands = np.frombuffer(self._bands, np.uint64).reshape(-1, _BANDS)
        candidates: set[tuple[int, int]] = set()
        for band in bands.T:
            order = np.argsort(band, kind="stable")
            ordered = band[order]
            for back in range(1, _MAX_COMPARED + 1):
                same = ordered[back:] == ordered[:-back]
                candidates.update(
                    zip(order[back:][same].tolist(), order[:-back][same].tolist(), strict=True)
                )
        return sorted(candidates)

    def _read(self, text: int) -> tuple[RowLocation, str, set[str]]:
        """Return a text's place, field and shingles, read from disk."""
        file_and_row, number = divmod(self._locations[text], 2**_NUMBER_BITS)
        file, index = divmod(file_and_row, 2**_ROW_BITS)
        location = RowLocation(self._files[file], index)
        field, content = next(islice(location.row.texts(), number, None))
        return location, field, grams(words(content), _SHINGLE_WORDS)
