"""The batch plan: what it draws, what it keeps apart, and that it is the same every time."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from anna_train.data.rows import TaskType
from anna_train.data.training_data import DataSet, text_hash
from anna_train.plan.batch_plan import BatchPlan, compile_plan, first_difference
from anna_train.recipe import DataRecipe, TuneRecipe

from anna_export.errors import DamagedError, InputError
from anna_export.text.prompt_file import TaskFile

TASKS = TaskFile.model_validate(
    {"tasks": {"find": {"format": "e5", "instruction": "Find it."}, "plain": {"text": ""}}}
)
MakeData = Callable[..., DataSet]


def recipe(**fields: object) -> TuneRecipe:
    values = {
        "base": "base",
        "prompts": "prompts.json",
        "data": [{"path": "a.jsonl", "task": "find"}],
        "batch": {"queries": 8, "negatives": 2, "group": 4},
        "examples": {"least": 0, "most": 3},
        "loss": {"soft_labels": 0},
    }
    return TuneRecipe.model_validate(values | fields)


def row(index: int, **fields: object) -> dict[str, object]:
    return {
        "query": f"query {index}",
        "pos": [f"answer {index}", f"other answer {index}"],
        "neg": [f"wrong {index} {number}" for number in range(5)],
    } | fields


@pytest.fixture
def data(tmp_path: Path) -> MakeData:
    def make(rows: list[dict[str, object]], name: str = "a") -> DataSet:
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(record) + "\n" for record in rows))
        return DataSet.open(DataRecipe(path=path, task="find"), TASKS, recipe())

    return make


def compiled(tune_recipe: TuneRecipe, *sets: DataSet) -> BatchPlan:
    return compile_plan(tune_recipe, sets, lambda *_: 0)


def test_an_epoch_takes_every_row_once_in_full_steps(data: MakeData) -> None:
    plan = compiled(recipe(epochs=2), data([row(index) for index in range(27)]))
    assert len(plan) == 6
    for epoch in (0, 1):
        rows = [r.row for step in range(3 * epoch, 3 * epoch + 3) for r in plan[step].rows]
        assert len(set(rows)) == len(rows) == 24
    assert [r.row for r in plan[0].rows] != [r.row for r in plan[3].rows]


def test_steps_end_where_they_are_asked_to(data: MakeData) -> None:
    assert len(compiled(recipe(steps=7), data([row(index) for index in range(20)]))) == 7


def test_every_step_is_of_one_data_set(data: MakeData) -> None:
    plan = compiled(
        recipe(),
        data([row(index) for index in range(16)]),
        data([row(index) for index in range(24)], "b"),
    )
    assert sorted(plan[step].data for step in range(len(plan))) == ["a", "a", "b", "b", "b"]


def test_no_query_and_no_positive_is_twice_in_a_step(data: MakeData) -> None:
    rows = [row(index) for index in range(12)]
    rows += [row(index, query=f"Query  {index}") for index in range(12)]  # equal but for spaces
    rows += [row(index + 50, pos=[f"ANSWER {index}"]) for index in range(12)]
    data_set = data(rows)
    plan = compiled(recipe(epochs=3), data_set)
    assert len(plan) >= 9
    for step in range(len(plan)):
        taken = [data_set.rows[planned.row] for planned in plan[step].rows]
        assert len({text_hash(drawn_row.query) for drawn_row in taken}) == len(taken)
        assert len({text_hash(drawn_row.pos[0]) for drawn_row in taken}) == len(taken)


def test_classes_may_share_their_positive_in_a_step(data: MakeData) -> None:
    rows = [row(index, pos=["label"], type=TaskType.CLASSIFICATION) for index in range(16)]
    assert len(compiled(recipe(), data(rows))) == 2


def test_examples_are_of_the_data_set_and_share_no_text_with_their_group(data: MakeData) -> None:
    rows = [row(index) for index in range(10)]
    rows += [row(index + 20, pos=["x", f"Answer {index}"]) for index in range(4)]
    data_set = data(rows)
    plan = compiled(recipe(steps=40, examples={"least": 2, "most": 2}), data_set)
    counts = set()
    for step in range(len(plan)):
        for group in (0, 1):
            members = [planned for planned in plan[step].rows if planned.group == group]
            assert len({planned.examples for planned in members}) == 1
            counts.add(len(members[0].examples))
            examples = [data_set.rows[index] for index in members[0].examples]
            member_rows = [data_set.rows[planned.row] for planned in members]
            texts = {
                text_hash(text) for member in member_rows for text in (member.query, *member.pos)
            }
            assert not texts & {
                text_hash(text) for member in examples for text in (member.query, *member.pos)
            }
    assert counts <= {0, 1, 2} and 2 in counts


def test_number_of_examples_is_drawn_from_the_whole_range(data: MakeData) -> None:
    plan = compiled(recipe(steps=60), data([row(index) for index in range(40)]))
    assert {len(planned.examples) for step in range(60) for planned in plan[step].rows} == {
        0,
        1,
        2,
        3,
    }


def test_negatives_and_positives_are_drawn_from_the_rows_own(data: MakeData) -> None:
    plan = compiled(recipe(steps=30), data([row(index) for index in range(16)]))
    drawn = [planned for step in range(30) for planned in plan[step].rows]
    assert {planned.positive for planned in drawn} == {0, 1}
    assert {number for planned in drawn for number in planned.negatives} == set(range(5))
    assert all(len(set(planned.negatives)) == 2 for planned in drawn)


def test_fewer_negatives_are_taken_whole(data: MakeData) -> None:
    plan = compiled(recipe(), data([row(index, neg=["only"]) for index in range(8)]))
    assert {planned.negatives for planned in plan[0].rows} == {(0,)}


def test_same_recipe_same_plan_other_seed_other_plan(data: MakeData, tmp_path: Path) -> None:
    data_set = data([row(index) for index in range(40)])
    plan, again = compiled(recipe(), data_set), compiled(recipe(), data_set)
    plan.write(tmp_path / "one.parquet")
    again.write(tmp_path / "two.parquet")
    assert (tmp_path / "one.parquet").read_bytes() == (tmp_path / "two.parquet").read_bytes()
    assert first_difference(plan, BatchPlan.read(tmp_path / "two.parquet")) is None
    difference = first_difference(plan, compiled(recipe(seed=1), data_set))
    assert difference is not None and difference.startswith("step 0, row 0: ")
    assert first_difference(plan, compiled(recipe(steps=2), data_set)) == "5 and 2 steps"


def test_any_parquet_reader_reads_it(data: MakeData, tmp_path: Path) -> None:
    data_set = data([{**row(0), "note": 1}, *[row(index) for index in range(1, 9)]])
    compiled(recipe(), data_set).write(tmp_path / "plan.parquet")
    table = pq.read_table(tmp_path / "plan.parquet").to_pandas()
    assert list(table.columns[:4]) == ["step", "epoch", "group", "data"]
    assert (table["line"] == table["row"] + 1).all()


def test_too_few_rows_for_a_step_are_refused(data: MakeData) -> None:
    with pytest.raises(InputError, match=r"expected 8 rows .* found at most 3 rows"):
        compiled(recipe(), data([row(index) for index in range(3)]))


def test_a_file_that_is_no_plan_is_refused(tmp_path: Path) -> None:
    (tmp_path / "plan.parquet").write_bytes(b"nothing")
    with pytest.raises(DamagedError, match="expected a batch plan"):
        BatchPlan.read(tmp_path / "plan.parquet")


def test_a_large_set_of_doubles_ends(data: MakeData) -> None:
    rows = [row(index, pos=["same"]) for index in range(200)]
    with pytest.raises(InputError, match="without doubles"):
        compiled(recipe(), data(rows))


def test_lines_are_those_of_the_file(data: MakeData, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    lines = [json.dumps(row(index)) for index in range(9)]
    path.write_text("\n\n".join(lines) + "\n")
    data_set = DataSet.open(DataRecipe(path=path, task="find"), TASKS, recipe())
    table = compiled(recipe(), data_set).table
    rows = np.array(table.column("row"))
    assert (np.array(table.column("line")) == 2 * rows + 1).all()
