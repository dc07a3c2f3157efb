"""From a planned step to token ids: prompts with examples, distinct documents, what is held true.

Tokens are those of serving: anna-export's tokeniser and prompt formats, on the same strings.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby, takewhile

import numpy as np
import torch

from anna_export.errors import InputError
from anna_export.spec import EmbeddingSpec
from anna_export.text.find_prefix import most_cached_tokens
from anna_export.text.prompt_file import Task
from anna_export.text.prompt_formats import Example
from anna_export.text.prompts import NO_PROMPT, Prompt
from anna_export.text.tokeniser import Tokeniser
from anna_train.data.rows import Row, TaskType
from anna_train.data.training_data import DataSet, text_hash
from anna_train.model.loss import Targets
from anna_train.plan.batch_plan import PlannedRow, PlannedStep
from anna_train.recipe import LimitsRecipe

# A shared start shorter than this costs more in a pass of its own than it saves.
_LEAST_SHARED = 16


@dataclass(frozen=True, slots=True)
class Group:
    """Token ids that share their start.

    Args:
        prefix: The shared ids; none where sharing does not pay.
        texts: What follows it, one row of ids a text.
        positions: Where each text's vector belongs among the batch's.
        prompt_tokens: How many ids at a text's start, the shared ones among them, are its prompt's,
            where pooling leaves that out.
    """

    prefix: list[int]
    texts: list[list[int]]
    positions: list[int]
    prompt_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Batch:
    """One step: n queries and m distinct documents.

    Args:
        groups: All their token ids; vectors of queries have the places 0 to n, those of documents
            follow.
        queries: n.
        documents: m.
        targets: What their vectors are held to.
    """

    groups: list[Group]
    queries: int
    documents: int
    targets: Targets

    @property
    def tokens(self) -> int:
        """How many tokens are computed, a shared prefix once."""
        return sum(len(group.prefix) + sum(map(len, group.texts)) for group in self.groups)


class Assembler:
    """Makes batches of planned steps.

    Args:
        tokeniser: The base model's.
        limits: Tokens that each kind of text may have.
        spec: The base: it says what texts may share.
    """

    def __init__(self, tokeniser: Tokeniser, limits: LimitsRecipe, spec: EmbeddingSpec) -> None:
        self.tokeniser = tokeniser
        self.limits = limits
        self.spec = spec

    def batch(self, step: PlannedStep, data: DataSet) -> Batch:
        """Return what one step computes."""
        rows = [data.rows[planned.row] for planned in step.rows]
        documents: dict[str, int] = {}
        own_documents = [
            [documents.setdefault(text, len(documents)) for text in _own_texts(row, planned)]
            for row, planned in zip(rows, step.rows, strict=True)
        ]
        groups, banned = [], []
        for _, members in groupby(enumerate(step.rows), key=lambda member: member[1].group):
            positions, planned_rows = zip(*members, strict=True)
            examples = [data.rows[index] for index in planned_rows[0].examples]
            prompt = data.task.prompt(self.examples(examples))
            queries = [rows[position].query for position in positions]
            groups.append(self.group(queries, prompt, self.limits.query, positions))
            example_hashes = {text_hash(text) for row in examples for text in row.pos}
            banned += [example_hashes] * len(positions)
        groups.append(self._documents(list(documents), len(rows), data.document_task))
        return Batch(
            groups,
            len(rows),
            len(documents),
            _targets(rows, step.rows, own_documents, documents, banned),
        )

    def examples(self, rows: Iterable[Row]) -> list[Example]:
        """Return rows as worked examples: query and first positive, cut to the limits."""
        rows = list(rows)
        queries = self.tokeniser.truncate([row.query for row in rows], self.limits.example_query)
        responses = self.tokeniser.truncate(
            [row.pos[0] for row in rows], self.limits.example_response
        )
        return [Example(*texts) for texts in zip(queries, responses, strict=True)]

    def count_cut(self, data: DataSet, row: Row, planned: PlannedRow) -> int:
        """Return how many of a planned row's texts are longer than the limits."""
        own_texts = _own_texts(row, planned)
        queries = self.tokeniser.truncate([row.query], self.limits.query)
        documents = self.tokeniser.truncate(own_texts, self.limits.document)
        return sum(
            short != text
            for short, text in zip([*queries, *documents], [row.query, *own_texts], strict=True)
        )

    def require_room(self, task: Task, most: int) -> None:
        """Hold the longest prompt and query to the model's longest sequence.

        Raises:
            InputError: If they do not fit.
        """
        words = task.prompt([Example("a", "a")] * most)
        limits = self.limits
        length = (
            len(self.tokeniser.ids([""], words)[0])
            + most * (limits.example_query + limits.example_response)
            + limits.query
        )
        if length > self.tokeniser.framing.max_tokens:
            raise InputError(
                f"expected {most} examples and a query within the model's "
                f"{self.tokeniser.framing.max_tokens} tokens, found up to {length}; lower "
                "examples.most or limits"
            )

    def _documents(self, texts: list[str], first: int, task: Task | None) -> Group:
        prompt = NO_PROMPT if task is None else task.prompt(())
        return self.group(texts, prompt, self.limits.document, range(first, first + len(texts)))

    def group(
        self, texts: Sequence[str], prompt: Prompt, limit: int, positions: Sequence[int]
    ) -> Group:
        """Return texts behind a prompt, cut to a limit, with what they share taken out in front.

        They share nothing where the model computes a prompt with every text, and no more than the
        prompt where the others' states are pooled.
        """
        rows = self.tokeniser.ids(self.tokeniser.truncate(texts, limit), prompt)
        head, prompt_tokens = self.spec.head, 0
        if head.leaves_out_prompt:
            prompt_tokens = self.tokeniser.prompt_tokens(prompt)
        most = most_cached_tokens(head, min(map(len, rows)), prompt_tokens)
        return shared(rows, positions, most if self.spec.takes_prefix else 0, prompt_tokens)


def shared(
    rows: list[list[int]], positions: Sequence[int], most: int, prompt_tokens: int = 0
) -> Group:
    """Take the longest start that all rows share, where that pays; a token of each is left.

    Args:
        rows: Whole texts.
        positions: Their vectors' places.
        most: The most that may be taken.
        prompt_tokens: How many at a row's start pooling leaves out.
    """
    same = takewhile(lambda ids: len(set(ids)) == 1, zip(*rows, strict=False))
    length = min(sum(1 for _ in same), min(map(len, rows)) - 1, most)
    if len(rows) == 1 or length < _LEAST_SHARED:
        length = 0
    texts = [row[length:] for row in rows]
    return Group(rows[0][:length], texts, list(positions), prompt_tokens)


def _own_texts(row: Row, planned: PlannedRow) -> list[str]:
    return [row.pos[planned.positive], *(row.neg[index] for index in planned.negatives)]


def _targets(
    rows: Sequence[Row],
    planned: Sequence[PlannedRow],
    own_documents: Sequence[Sequence[int]],
    documents: dict[str, int],
    banned: Sequence[set[int]],
) -> Targets:
    """Return what the batch is held to.

    Args:
        rows: The n queries' rows.
        planned: What was drawn of each.
        own_documents: Indices among the documents of each row's positive and negatives.
        documents: The m distinct texts and their places.
        banned: Hashes of the passages that each query sees in its examples.
    """
    width = max(map(len, own_documents))
    indices = np.full((len(rows), width), -1, dtype=np.int64)
    others = np.zeros((len(rows), len(documents)), dtype=bool)
    hashes = np.array([text_hash(text) for text in documents], dtype=np.uint64)
    for index, row in enumerate(rows):
        indices[index, : len(own_documents[index])] = own_documents[index]
        # a passage that the query sees, or that answers it, is no negative of it
        right = banned[index] | {text_hash(text) for text in (row.query, *row.pos)}
        wrong = ~np.isin(hashes, np.array(list(right), dtype=np.uint64))
        negatives = indices[index, 1:]
        negatives[(negatives >= 0) & ~wrong[negatives]] = -1
        if row.type is TaskType.RETRIEVAL:
            others[index] = wrong
    teacher = None
    if all(row.scored or not row.neg for row in rows):
        # a positive alone is all of its row's label, whatever its score
        scores = np.zeros((len(rows), width), dtype=np.float32)
        for index, (row, drawn) in enumerate(zip(rows, planned, strict=True)):
            if row.pos_scores is not None and row.neg_scores is not None:
                taken = [row.neg_scores[negative] for negative in drawn.negatives]
                scores[index, : 1 + len(taken)] = [row.pos_scores[drawn.positive], *taken]
        teacher = torch.from_numpy(scores)
    return Targets(torch.from_numpy(indices), torch.from_numpy(others), teacher)
