"""Words and characters: BM25, TF-IDF and LSA, each for many queries at once."""

from collections import Counter
from collections.abc import Sequence
from typing import Final

import bm25s
import numpy as np
from scipy import sparse
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfTransformer
from sklearn.preprocessing import normalize

from anna_export.errors import InputError

K1: Final = 1.2
B: Final = 0.75
# of one letter too: C, R, and the words of Chinese that stand alone
_WORD: Final = r"(?u)\b\w+\b"
LSA_DIM: Final = 128
# the axes are found on at most this many documents, evenly spread: more hardly turn them
LSA_DOCUMENTS: Final = 50_000
GRAMS: Final = (3, 4, 5)
_GRAM_BUCKETS: Final = 2**18
# what names a text stands at its front; its grams are most of the time and memory
_GRAM_CHARACTERS: Final = 1_000
_GRAM_TEXTS: Final = 4_096
# odd numbers with well-spread bits, one for each place in a gram
_MULTIPLIERS: Final = np.array(
    [
        0x9E3779B97F4A7C15,
        0xC2B2AE3D27D4EB4F,
        0x165667B19E3779F9,
        0x27D4EB2F165667C5,
        0x85EBCA77C2B2AE63,
    ],
    dtype=np.uint64,
)


class Words:
    """Documents as words.

    Args:
        texts: N documents.

    Raises:
        InputError: If no text has a word.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        tokenised = bm25s.tokenize(
            list(texts), token_pattern=_WORD, stopwords=None, show_progress=False
        )
        if not any(tokenised.ids):
            raise InputError("expected words in the texts to mine from, found none")
        index = bm25s.BM25(k1=K1, b=B, backend="numpy", csc_backend="numpy")
        index.index(tokenised, show_progress=False)
        self._words: dict[str, int] = index.vocab_dict
        scores, size = index.scores, len(index.vocab_dict)
        # bm25s holds a column of documents for each word, "" not among them
        starts = np.concatenate(
            [scores["indptr"], np.full(size + 1 - len(scores["indptr"]), scores["indptr"][-1])]
        )
        self._bm25 = sparse.csr_matrix(
            (scores["data"], scores["indices"], starts), shape=(size, len(texts))
        )
        counts = self._matrix(tokenised.ids)
        self._weights = TfidfTransformer(sublinear_tf=True).fit(counts)
        self.vectors: sparse.csr_matrix = self._weights.transform(counts).astype(np.float32)

    def bm25(self, queries: Sequence[str]) -> np.ndarray:
        """Return (B, N) float32 BM25 scores, 0 where no word is shared."""
        return np.asarray((self._counts(queries) @ self._bm25).toarray(), dtype=np.float32)

    def weigh(self, texts: Sequence[str]) -> sparse.csr_matrix:
        """Return (B, words) TF-IDF rows of unit length; words no document has are left out."""
        return self._weights.transform(self._counts(texts)).astype(np.float32)

    def _counts(self, texts: Sequence[str]) -> sparse.csr_matrix:
        tokens = bm25s.tokenize(
            list(texts), token_pattern=_WORD, stopwords=None, return_ids=False, show_progress=False
        )
        words = self._words
        return self._matrix([[words[word] for word in row if word in words] for row in tokens])

    def _matrix(self, ids: Sequence[Sequence[int]]) -> sparse.csr_matrix:
        counts = [Counter(row) for row in ids]
        starts = np.cumsum([0, *map(len, counts)])
        columns = np.fromiter((word for row in counts for word in row), np.int32, starts[-1])
        values = np.fromiter((n for row in counts for n in row.values()), np.float32, starts[-1])
        return sparse.csr_matrix((values, columns, starts), shape=(len(ids), len(self._words)))


class Lsa:
    """Texts as their words' main directions: the dense retriever where no encoder is given.

    Args:
        words: The documents.
        seed: Start of the randomised factorisation.
    """

    def __init__(self, words: Words, seed: int) -> None:
        vectors = words.vectors
        fitted = vectors[:: -(-vectors.shape[0] // LSA_DOCUMENTS)]
        dim = max(1, min(LSA_DIM, fitted.shape[0] - 1, fitted.shape[1] - 1))
        self._words = words
        self._axes = TruncatedSVD(dim, random_state=seed).fit(fitted)
        self.vectors = self._project(vectors)

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Return (B, D) float32 rows of unit length, 0 for a text without a known word."""
        return self._project(self._words.weigh(texts))

    def _project(self, vectors: sparse.csr_matrix) -> np.ndarray:
        return normalize(self._axes.transform(vectors)).astype(np.float32)


class CharacterGrams:
    """Texts as the TF-IDF of their runs of 3 to 5 characters, in hashed columns.

    Args:
        texts: The documents whose frequencies weigh a gram.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        document_counts = np.zeros(_GRAM_BUCKETS)
        for start in range(0, len(texts), _GRAM_TEXTS):
            counts = _gram_counts(texts[start : start + _GRAM_TEXTS])
            document_counts += np.bincount(counts.indices, minlength=_GRAM_BUCKETS)
        self._idf = (np.log((1 + len(texts)) / (1 + document_counts)) + 1).astype(np.float32)

    def weigh(self, texts: Sequence[str]) -> sparse.csr_matrix:
        """Return (B, buckets) TF-IDF rows of unit length."""
        counts = _gram_counts(texts)
        counts.data = (1 + np.log(counts.data)) * self._idf[counts.indices]
        return normalize(counts, copy=False)


def _gram_counts(texts: Sequence[str]) -> sparse.csr_matrix:
    """Count the grams of texts, all texts at once: their code points as one array."""
    cut = [f" {' '.join(text[:_GRAM_CHARACTERS].lower().split())} " for text in texts]
    letters = np.frombuffer("".join(cut).encode("utf-32-le"), np.uint32).astype(np.uint64)
    lengths = np.array([len(text) for text in cut])
    owner = np.repeat(np.arange(len(cut)), lengths)
    left = np.repeat(np.cumsum(lengths), lengths) - np.arange(len(letters))
    rows, columns = [], []
    for size in GRAMS:
        starts = np.flatnonzero(left >= size)
        hashed = np.full(len(starts), size, dtype=np.uint64)
        for offset in range(size):
            hashed ^= letters[starts + offset] * _MULTIPLIERS[offset]
            hashed ^= hashed >> np.uint64(29)
        hashed *= _MULTIPLIERS[0]
        columns.append((hashed >> np.uint64(64 - 18)).astype(np.int32))
        rows.append(owner[starts])
    column, row = np.concatenate(columns), np.concatenate(rows)
    increments = np.ones(len(column), dtype=np.float32)
    # adds up a text's equal grams
    return sparse.coo_matrix((increments, (row, column)), shape=(len(cut), _GRAM_BUCKETS)).tocsr()
