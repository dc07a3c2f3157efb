"""Whole runs of a few steps: what they write, how they go on, and what they refuse."""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from anna_train.cli import run
from anna_train.model.forward import Decoder
from anna_train.plan import memory
from anna_train.recipe import read_tune_recipe
from anna_train.run import step as step_module
from anna_train.run.gradient import compute_gradient
from anna_train.run.training_log import read_log
from peft import PeftConfig
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer

import anna_export
from anna_export.cli import run as export
from anna_export.text.framing import CONFIG_FILE, TOKENIZER_FILE
from anna_export.text.prompt_file import read_task_file
from anna_export.text.tokenizer_files import framed_json
from demo.corpus import Corpus
from tests.support.folders import edit_json

MakeRecipe = Callable[..., Path]
STEPS = 8


@pytest.fixture
def make_recipe(tiny_base: Path, tiny_corpus: Corpus, tmp_path: Path) -> MakeRecipe:
    """Write a recipe, its rows and its prompts, and return the recipe's path."""

    def make(**fields: object) -> Path:
        pairs = tiny_corpus.train
        rows: list[dict[str, object]] = [
            {
                "query": pair.query,
                "pos": [pair.document],
                "neg": [pairs[index - 7].document, pairs[index - 30].document],
                "pos_scores": [2.0],
                "neg_scores": [0.0, 1.0],
            }
            for index, pair in enumerate(pairs)
        ]
        write(tmp_path / "rows.jsonl", rows)
        heldout_rows: list[dict[str, object]] = [
            {"query": pair.query, "pos": [pair.document]} for pair in tiny_corpus.heldout
        ]
        write(tmp_path / "held.jsonl", heldout_rows)
        instruction = "Given a summary, retrieve the documentation it belongs to"
        tasks = {
            "query": {"format": "e5", "instruction": instruction, "documents": "document"},
            "document": {"text": ""},
        }
        (tmp_path / "prompts.json").write_text(json.dumps({"default": "query", "tasks": tasks}))
        recipe = {
            "base": str(tiny_base),
            "prompts": "prompts.json",
            "data": [{"path": "rows.jsonl", "task": "query"}],
            "steps": STEPS,
            "batch": {"queries": 8, "negatives": 1, "group": 4},
            "limits": {"query": 16, "document": 16, "example_query": 8, "example_response": 8},
            "examples": {"least": 0, "most": 2},
            "loss": {"temperature": 0.05},
            "lora": {"rank": 4, "alpha": 8, "dropout": 0.1},
            "optimizer": {"learning_rate": 0.002},
            "evaluation": {
                "every": 4,
                "data": [{"path": "held.jsonl", "task": "query"}],
                "examples": 2,
            },
            "run": {
                "precision": "fp32",
                "threads": 1,
                "checkpoint_every": 2,
                "mini_batch_tokens": 100,
            },
        }
        for name, value in fields.items():
            defaults = recipe.get(name)
            recipe[name] = defaults | value if isinstance(defaults, dict) else value  # type: ignore[operator]
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        return tmp_path / "recipe.yaml"

    return make


def write(path: Path, rows: list[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def tuned(recipe: Path, name: str = "adapter", *options: str) -> Path:
    out = recipe.parent / name
    assert run(["tune", "--config", str(recipe), "--out", str(out), *options]) == 0
    return out


def refused(capsys: pytest.CaptureFixture[str], *args: str, code: int = 2) -> str:
    """Run what is to be refused, and return its one line."""
    assert run(list(args)) == code
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("anna-train: "), lines
    return lines[0]


# what a trainer leaves in tokenizer.json
LEFT_OVER = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}


def tune_arguments(recipe: Path) -> list[str]:
    return ["tune", "--config", str(recipe), "--out", str(recipe.parent / "adapter")]


@pytest.fixture(params=["adds both", "adds no end token"])
def any_base(request: pytest.FixtureRequest, tiny_base: Path, tmp_path: Path) -> Path:
    """A base whose tokenizer was saved cutting, and one that adds no `</s>`, as Mistral's does."""
    folder = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    path = folder / TOKENIZER_FILE
    if request.param == "adds both":
        edit_json(path, lambda content: content.update(truncation=LEFT_OVER))
        return folder
    path.write_text(framed_json(path, [1], []))
    edit_json(folder / CONFIG_FILE, lambda config: config.update(add_eos_token=False))
    return folder


@pytest.mark.slow
def test_a_run_writes_an_adapter_that_all_can_read(
    make_recipe: MakeRecipe, any_base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tuned(make_recipe(base=str(any_base)))
    assert "nDCG@10" in capsys.readouterr().out
    weights = load_file(out / "adapter_model.safetensors")
    assert len(weights) == 2 * 3 * 7 and all(weight.any() for weight in weights.values())
    assert PeftConfig.from_pretrained(out).base_model_name_or_path == str(any_base)
    assert not (out.parent / "adapter.training").exists()
    assert json.loads((out / TOKENIZER_FILE).read_text())["truncation"] is None

    texts = ["Return the sum of a list.", "</s> is plain text"]
    theirs = SentenceTransformer(
        str(out), device="cpu", model_kwargs={"dtype": torch.float32}, local_files_only=True
    )
    artifact = out.parent / "artifact"
    source = ["--model", str(any_base), "--adapter", str(out)]
    assert export([*source, "--out", str(artifact)]) == 0
    ours = anna_export.open_encoder(artifact)
    for prompt in ("query", "document", "query-few-shot"):
        np.testing.assert_allclose(
            ours.encode(texts, prompt=prompt),
            theirs.encode(texts, prompt_name=prompt),
            atol=2e-6,
        )


@pytest.mark.slow
def test_the_log_has_every_step_and_the_evaluations_theirs(make_recipe: MakeRecipe) -> None:
    folder = tuned(make_recipe()) / "training"
    steps = read_log(folder / "log.csv")
    assert [int(row["step"]) for row in steps] == list(range(1, STEPS + 1))
    assert all(float(row["soft"]) > 0 and float(row["contrastive"]) > 0 for row in steps)
    evaluations = read_log(folder / "evaluations.csv")
    assert [int(row["step"]) for row in evaluations] == [0, 4, 8]
    assert set(evaluations[0]) == {"step", "held zero-shot", "held few-shot"}
    card = (folder.parent / "README.md").read_text()
    assert f"| held zero-shot | {float(evaluations[0]['held zero-shot']):.4f} |" in card
    assert "rows.jsonl" in (folder.parent / "recipe.yaml").read_text()


@pytest.mark.slow
def test_two_runs_are_equal_and_another_seed_is_not(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe()
    first, second = tuned(recipe, "one"), tuned(recipe, "two")
    other = tuned(make_recipe(seed=1), "other")
    name = "adapter_model.safetensors"
    assert (first / name).read_bytes() == (second / name).read_bytes()
    assert (first / name).read_bytes() != (other / name).read_bytes()


def start(recipe: Path, name: str, **environment: str) -> subprocess.Popen[bytes]:
    arguments = ["tune", "--config", str(recipe), "--out", str(recipe.parent / name)]
    return subprocess.Popen(
        [sys.executable, "-m", "anna_train", *arguments],
        env=os.environ | environment,
        stdout=subprocess.DEVNULL,
    )


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_a_killed_run_ends_with_the_weights_of_one_that_never_stopped(
    make_recipe: MakeRecipe, seed: int
) -> None:
    recipe = make_recipe()
    uninterrupted = tuned(recipe, "whole")
    log = recipe.parent / "killed.training" / "log.csv"
    until = random.Random(seed).randrange(1, STEPS)
    running = start(recipe, "killed")
    deadline = time.monotonic() + 120
    while len(read_log(log)) < until:
        assert running.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)
    running.send_signal(signal.SIGKILL)
    assert running.wait() == -signal.SIGKILL
    assert not (recipe.parent / "killed").exists()

    killed = tuned(recipe, "killed")
    name = "adapter_model.safetensors"
    assert (killed / name).read_bytes() == (uninterrupted / name).read_bytes()
    for table in ("log.csv", "evaluations.csv"):
        rows = [read_log(folder / "training" / table) for folder in (uninterrupted, killed)]
        for row in (*rows[0], *rows[1]):
            row.pop("seconds", None)
        assert rows[0] == rows[1]
    plans = [
        (folder / "training" / "plan.parquet").read_bytes() for folder in (uninterrupted, killed)
    ]
    assert plans[0] == plans[1]


@pytest.mark.slow
def test_two_processes_train_what_one_does(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe()
    single = tuned(recipe, "one")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    running = [start(recipe, "two", RANK=rank, LOCAL_RANK=rank, **shared) for rank in ("0", "1")]
    assert [process.wait(timeout=240) for process in running] == [0, 0]
    plans = [
        (recipe.parent / name / "training" / "plan.parquet").read_bytes() for name in ("one", "two")
    ]
    assert plans[0] == plans[1]
    wanted = load_file(single / "adapter_model.safetensors")
    weights = load_file(recipe.parent / "two" / "adapter_model.safetensors")
    for name, weight in wanted.items():
        # AdamW divides by a gradient's own size, which enlarges the rounding of small ones
        assert (weights[name] - weight).norm() / weight.norm() < 1e-3, name


@pytest.mark.slow
def test_ctrl_c_leaves_a_run_that_goes_on(
    make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = make_recipe()
    uninterrupted = tuned(recipe, "whole")
    calls = iter(range(100))

    def interrupted(*args: object) -> object:
        if next(calls) == 5:
            raise KeyboardInterrupt
        return compute_gradient(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(step_module, "compute_gradient", interrupted)
    assert run(tune_arguments(recipe)) == 130
    assert "interrupted" in capsys.readouterr().err
    monkeypatch.undo()
    name = "adapter_model.safetensors"
    assert (tuned(recipe) / name).read_bytes() == (uninterrupted / name).read_bytes()


def unfinished(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave a run of three steps."""
    calls = iter(range(100))

    def interrupted(*args: object) -> object:
        if next(calls) == 3:
            raise KeyboardInterrupt
        return compute_gradient(*args)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(step_module, "compute_gradient", interrupted)
        assert run(tune_arguments(recipe)) == 130


@pytest.mark.slow
def test_going_on_with_another_recipe_says_what_changed(
    make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    unfinished(make_recipe(), monkeypatch)
    capsys.readouterr()
    changed = make_recipe(optimizer={"learning_rate": 0.001})
    line = refused(capsys, *tune_arguments(changed))
    assert "recipe.optimizer.learning_rate (was 0.002, is 0.001)" in line and "--restart" in line
    assert run([*tune_arguments(changed), "--restart"]) == 0


def test_going_on_with_other_data_says_what_changed(
    make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = make_recipe()
    unfinished(recipe, monkeypatch)
    capsys.readouterr()
    rows = recipe.parent / "rows.jsonl"
    rows.write_text(rows.read_text().replace("the", "The", 1))
    assert "found changed: data.rows (was " in refused(capsys, *tune_arguments(recipe))


@pytest.mark.slow
def test_how_it_is_computed_may_change(
    make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    unfinished(make_recipe(), monkeypatch)
    tuned(make_recipe(run={"mini_batch_tokens": 400, "checkpoint_every": 3}))


def test_a_loss_that_is_not_finite_stops_and_names_the_batch(
    make_recipe: MakeRecipe, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = make_recipe(optimizer={"learning_rate": 1e30}, examples={"most": 0})
    line = refused(capsys, *tune_arguments(recipe), code=1)
    assert "expected a finite " in line and "in step " in line
    assert f"of {recipe.parent / 'rows.jsonl'}; the last checkpoint is kept" in line
    assert not (recipe.parent / "adapter").exists()


def test_an_adapter_target_that_the_model_lacks(
    make_recipe: MakeRecipe, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(capsys, *tune_arguments(make_recipe(lora={"targets": ["q_proj", "qkv"]})))
    assert "expected lora.targets of down_proj, gate_proj" in line and "found qkv" in line


def test_nothing_is_left_of_a_run_that_cannot_begin(
    make_recipe: MakeRecipe, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = make_recipe(base="nowhere")
    before = sorted(recipe.parent.iterdir())
    refused(capsys, *tune_arguments(recipe))
    assert sorted(recipe.parent.iterdir()) == before


@pytest.mark.slow
def test_a_run_goes_on_with_the_mini_batch_it_began_with(
    make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_recipe(run={"mini_batch_tokens": None})
    monkeypatch.setitem(memory._MOST_TOKENS, "cpu", 1000)
    uninterrupted = tuned(recipe, "whole")
    unfinished(recipe, monkeypatch)
    monkeypatch.setitem(memory._MOST_TOKENS, "cpu", 1)  # as if less were free now
    weights = "adapter_model.safetensors"
    assert (tuned(recipe) / weights).read_bytes() == (uninterrupted / weights).read_bytes()


def test_a_lora_b_without_a_gradient_is_refused(
    make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def cut_off(decoder: Decoder, *args: object) -> object:
        losses = compute_gradient(decoder, *args)  # type: ignore[arg-type]
        decoder.model.layers[1].mlp.up_proj.lora_B["default"].weight.grad.zero_()
        return losses

    monkeypatch.setattr(step_module, "compute_gradient", cut_off)
    line = refused(capsys, *tune_arguments(make_recipe()))
    assert "expected a gradient in every lora_B, found none in 1, the first " in line
    assert "layers.1.mlp.up_proj" in line


@pytest.mark.parametrize(
    ("field", "value", "problem"),
    [
        ("pos", "text", "expected a list of texts in pos, found 'text'"),
        ("neg_scores", [1.0], "expected 2 numbers in neg_scores, one for each text, found 1"),
        ("pos_scores", None, "expected pos_scores beside neg_scores, found none"),
        ("query", "  ", "expected a text in query, found spaces alone"),
        ("prompt", "Other.", "expected the task's instruction 'Given a summary"),
        ("type", "ranking", "expected a type of "),
    ],
)
def test_a_malformed_row_names_file_line_and_field(
    make_recipe: MakeRecipe,
    capsys: pytest.CaptureFixture[str],
    field: str,
    value: object,
    problem: str,
) -> None:
    recipe = make_recipe()
    rows = recipe.parent / "rows.jsonl"
    lines = rows.read_text().splitlines()
    lines[4] = json.dumps(json.loads(lines[4]) | {field: value})
    rows.write_text("\n".join(lines))
    line = refused(capsys, *tune_arguments(recipe))
    assert problem in line and f"in line 5 of {rows}" in line


@pytest.mark.slow
def test_rows_without_scores_need_no_soft_labels(
    make_recipe: MakeRecipe, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = make_recipe()
    rows = [json.loads(line) for line in (recipe.parent / "rows.jsonl").read_text().splitlines()]
    bare = [{name: row[name] for name in ("query", "pos", "neg")} for row in rows]
    write(recipe.parent / "rows.jsonl", bare)
    line = refused(capsys, *tune_arguments(recipe))
    assert "run anna-train score, or set loss.soft_labels to 0" in line and "line 1 of" in line
    recipe = make_recipe(loss={"soft_labels": 0})
    write(recipe.parent / "rows.jsonl", bare)
    tuned(recipe)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("base: [", "expected YAML in"),
        ("base: x\nprompts: p\ndata: []\n", "expected another data in"),
        ("base: x\nprompts: p\ndata: [{path: a, task: b}]\nlora: {rnak: 3}", "lora.rnak"),
        (
            "base: x\nprompts: p\ndata: [{path: a, task: b}]\nexamples: {least: 3, most: 1}",
            "expected least up to most, found 3 and 1",
        ),
    ],
)
def test_a_wrong_recipe_names_the_field(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, problem: str
) -> None:
    (tmp_path / "recipe.yaml").write_text(content)
    assert problem in refused(capsys, *tune_arguments(tmp_path / "recipe.yaml"))


def test_missing_files_are_named(
    make_recipe: MakeRecipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "expected a recipe at " in refused(capsys, *tune_arguments(tmp_path / "none.yaml"))
    line = refused(capsys, *tune_arguments(make_recipe(base="nowhere/base")))
    assert "expected a folder, or a model on the hub, named 'nowhere/base'" in line
    recipe = make_recipe()
    (tmp_path / "rows.jsonl").unlink()
    assert "expected a file of training rows at " in refused(capsys, *tune_arguments(recipe))
    recipe = make_recipe(data=[{"path": "rows.jsonl", "task": "qurey"}])
    assert "expected a task of query, document" in refused(capsys, *tune_arguments(recipe))


@pytest.mark.slow
def test_a_finished_adapter_is_not_overwritten_unasked(
    make_recipe: MakeRecipe, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = make_recipe()
    tuned(recipe)
    capsys.readouterr()
    assert "--overwrite" in refused(capsys, *tune_arguments(recipe))
    tuned(recipe, "adapter", "--overwrite")


def test_plan_tells_steps_and_memory_and_compares(
    make_recipe: MakeRecipe, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = make_recipe()
    plan = str(recipe.parent / "plan.parquet")
    assert run(["plan", "--config", str(recipe), "--out", plan, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["steps"], printed["rows"], printed["mini_batch_tokens"]) == (8, 64, 100)
    assert printed["bytes"]["total"] > printed["bytes"]["activations"] > 0
    assert run(["plan", "--config", str(recipe), "--against", plan]) == 0
    other = make_recipe(seed=3)
    assert run(["plan", "--config", str(other), "--against", plan, "--json"]) == 1
    assert json.loads(capsys.readouterr().out.split("none\n")[1])["difference"].startswith("step 0")


def test_tensorboard_is_written_where_it_is_asked_for(
    make_recipe: MakeRecipe, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = make_recipe(run={"tensorboard": True})
    try:
        import tensorboard  # noqa: F401
    except ImportError:
        line = refused(capsys, *tune_arguments(recipe))
        assert "pip install tensorboard" in line
        return
    assert list((tuned(recipe) / "training" / "tensorboard").glob("events*"))


def test_shipped_recipes_are_written_whole_and_can_be_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("demo", "lgai-like"):
        assert run(["recipe", name, "--out", str(tmp_path / name)]) == 0
        recipe = read_tune_recipe(tmp_path / name / "recipe.yaml")
        tasks = read_task_file(recipe.prompts)
        assert {data.task for data in recipe.data} <= set(tasks.tasks)
    assert (recipe.lora.rank, recipe.examples.most, recipe.run.precision) == (64, 5, "bf16")
    capsys.readouterr()
    line = refused(capsys, "recipe", "demo", "--out", str(tmp_path / "demo"))
    assert "expected no " in line
    line = refused(capsys, "recipe", "none", "--out", str(tmp_path / "none"))
    assert "expected a recipe of demo, lgai-like, found 'none'" in line
