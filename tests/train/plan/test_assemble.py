"""From a planned step to ids: the strings of serving, and what may be a negative of what."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from anna_train.data.rows import RowFile
from anna_train.data.training_data import DataSet
from anna_train.model.trained_model import Base, open_base
from anna_train.plan.assemble import Assembler, Batch, shared
from anna_train.plan.batch_plan import PlannedRow, PlannedStep
from anna_train.recipe import DataRecipe, LimitsRecipe, TuneRecipe

from anna_export.errors import InputError
from anna_export.text.prompt_file import TaskFile
from anna_export.text.prompt_formats import FORMATS, Example

TASKS = TaskFile.model_validate(
    {
        "tasks": {
            "find": {"format": "e5", "instruction": "Find it.", "documents": "passage"},
            "passage": {
                "text": "A passage, of a kind that is rather long, as some models were given: "
            },
            "alike": {"format": "bge-en-icl", "instruction": "Find texts alike."},
        }
    }
)
ROWS: list[dict[str, object]] = [
    {"query": "first query", "pos": ["first answer"], "neg": ["shown answer", "first wrong"]},
    {"query": "second query", "pos": ["second answer", "first wrong"], "neg": ["second wrong"]},
    {"query": "third query", "pos": ["third answer"], "neg": ["third wrong"]},
    {"query": "shown query", "pos": ["shown answer"], "neg": ["wrong as well"]},
]


@pytest.fixture(scope="module")
def base(tiny_base: Path) -> Base:
    return open_base(str(tiny_base))


def opened(folder: Path, task: str = "find", **fields: object) -> DataSet:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row | fields) + "\n" for row in ROWS))
    recipe = TuneRecipe.model_validate(
        {
            "base": "base",
            "prompts": "prompts.json",
            "data": [{"path": path, "task": task}],
            "loss": {"soft_labels": 0},
        }
    )
    return DataSet.open(DataRecipe(path=path, task=task), TASKS, recipe)


def assembled(base: Base, data: DataSet, limits: LimitsRecipe | None = None) -> Batch:
    """Return a step of two groups: rows 0 and 1 see row 3 as their example, row 2 sees none."""
    rows = (
        PlannedRow(0, 0, 0, (0, 1), (3,)),
        PlannedRow(0, 1, 0, (0,), (3,)),
        PlannedRow(1, 2, 0, (0,), ()),
    )
    return Assembler(base.tokeniser, limits or LimitsRecipe(), base.spec).batch(
        PlannedStep(0, "rows", rows), data
    )


def ids_by_position(batch: Batch) -> dict[int, list[int]]:
    """Return every text's ids with its prefix, by its place."""
    return {
        position: [*group.prefix, *ids]
        for group in batch.groups
        for position, ids in zip(group.positions, group.texts, strict=True)
    }


DOCUMENTS = [
    "first answer",
    "shown answer",
    "first wrong",
    "second answer",
    "second wrong",
    "third answer",
    "third wrong",
]


def test_ids_are_those_of_serving(base: Base, tmp_path: Path) -> None:
    ids_of = ids_by_position(assembled(base, opened(tmp_path)))
    with_example = FORMATS["e5"].prompt("Find it.", [Example("shown query", "shown answer")])
    alone = FORMATS["e5"].prompt("Find it.")
    passage = TASKS.tasks["passage"].prompt()
    wanted = [
        *base.tokeniser.ids(["first query", "second query"], with_example),
        *base.tokeniser.ids(["third query"], alone),
        *base.tokeniser.ids(DOCUMENTS, passage),
    ]
    assert [ids_of[position] for position in range(10)] == wanted


def test_examples_are_a_shared_prefix(base: Base, tmp_path: Path) -> None:
    first, second, documents = assembled(base, opened(tmp_path)).groups
    prompt = FORMATS["e5"].prompt("Find it.", [Example("shown query", "shown answer")])
    assert first.prefix == base.tokeniser.prefix_ids(prompt)[: len(first.prefix)]
    assert len(first.prefix) > 25 and all(len(ids) < 6 for ids in first.texts)
    assert second.prefix == []  # one query shares with nobody
    assert len(documents.prefix) > 10 and documents.positions == list(range(3, 10))


def test_documents_are_distinct(base: Base, tmp_path: Path) -> None:
    batch = assembled(base, opened(tmp_path))
    assert (batch.queries, batch.documents) == (3, 7)
    assert batch.tokens == sum(
        len(group.prefix) + sum(map(len, group.texts)) for group in batch.groups
    )


def test_a_passage_seen_in_an_example_is_no_negative(base: Base, tmp_path: Path) -> None:
    targets = assembled(base, opened(tmp_path)).targets
    example_answer = DOCUMENTS.index("shown answer")
    assert targets.own_documents.tolist() == [
        [0, -1, 2],
        [3, 4, -1],
        [5, 6, -1],
    ]  # 0's own first negative
    assert not targets.others[0, example_answer] and not targets.others[1, example_answer]
    assert targets.others[2, example_answer]  # the third query does not see it


def test_what_answers_a_query_is_no_negative_of_it(base: Base, tmp_path: Path) -> None:
    others = assembled(base, opened(tmp_path)).targets.others
    # "first wrong" is the second row's other positive
    assert not others[1, DOCUMENTS.index("first wrong")]
    assert not others[0, 0] and not others[1, 3] and not others[2, 5]
    assert others[2, DOCUMENTS.index("first wrong")] and others[0, DOCUMENTS.index("third answer")]


@pytest.mark.parametrize("kind", ["classification", "clustering", "sts"])
def test_only_retrieval_takes_other_queries_documents(
    base: Base, tmp_path: Path, kind: str
) -> None:
    assert not assembled(base, opened(tmp_path, type=kind)).targets.others.any()


def test_teachers_scores_are_those_of_the_drawn_texts(base: Base, tmp_path: Path) -> None:
    data = opened(tmp_path)
    scores: list[dict[str, object]] = [
        {"pos_scores": [9.0], "neg_scores": [0.0, 1.0]},
        {"pos_scores": [7.0, 8.0], "neg_scores": [2.0]},
    ]
    scored = [row | row_scores for row, row_scores in zip(ROWS, scores, strict=False)]
    data.rows.path.write_text("".join(json.dumps(row) + "\n" for row in scored))
    data = replace(data, rows=RowFile(data.rows.path))
    step = PlannedStep(0, "rows", (PlannedRow(0, 0, 0, (1, 0), ()), PlannedRow(0, 1, 1, (0,), ())))
    teacher = Assembler(base.tokeniser, LimitsRecipe(), base.spec).batch(step, data).targets.teacher
    assert teacher is not None
    assert teacher.tolist() == [[9.0, 1.0, 0.0], [8.0, 2.0, 0.0]]


def test_texts_are_cut_to_their_limits(base: Base, tmp_path: Path) -> None:
    limits = LimitsRecipe(query=1, document=1, example_query=1, example_response=1)
    ids_of = ids_by_position(assembled(base, opened(tmp_path, task="alike"), limits))
    cut = base.tokeniser.truncate(["first query"], 1)
    example = Example(*base.tokeniser.truncate(["shown query", "shown answer"], 1))
    prompt = FORMATS["bge-en-icl"].prompt("Find texts alike.", [example])
    assert ids_of[0] == base.tokeniser.ids(cut, prompt)[0]
    assert cut != ["first query"]
    assert ids_of[3] == base.tokeniser.ids(base.tokeniser.truncate(["first answer"], 1))[0]


def test_cut_texts_are_counted(base: Base, tmp_path: Path) -> None:
    data = opened(tmp_path)
    planned = PlannedRow(0, 0, 0, (0, 1), ())
    assert (
        Assembler(base.tokeniser, LimitsRecipe(), base.spec).count_cut(data, data.rows[0], planned)
        == 0
    )
    short = Assembler(base.tokeniser, LimitsRecipe(query=1, document=512), base.spec)
    assert short.count_cut(data, data.rows[0], planned) == 1
    shorter = Assembler(base.tokeniser, LimitsRecipe(query=1, document=1), base.spec)
    assert shorter.count_cut(data, data.rows[0], planned) == 4


def test_prompts_longer_than_the_model_are_refused(base: Base) -> None:
    limits = LimitsRecipe(query=100, document=100, example_query=100, example_response=100)
    assembler = Assembler(base.tokeniser, limits, base.spec)
    assembler.require_room(TASKS.tasks["find"], 1)
    with pytest.raises(InputError, match=r"expected 3 examples and a query within .* 512 tokens"):
        assembler.require_room(TASKS.tasks["find"], 3)


def test_equal_texts_keep_a_token_of_their_own() -> None:
    group = shared([list(range(20))] * 2, [0, 1], 20)
    assert (group.prefix, group.texts) == (list(range(19)), [[19], [19]])
