"""The command line: what it writes, what it refuses, and what Ctrl-C leaves."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from wprox import JKOFlow, StepFailedError
from wprox.app.cli import app
from wprox.app.tables import read_table, write_table

QUICK = ["--blocks", "1", "--iterations", "5", "--no-fine-tune"]
QUIETER = [*QUICK, "--no-baselines"]


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def refused(result, *words):
    """Exit code 2, one sentence as the last line on stderr, and no traceback."""
    assert result.exit_code == 2, (result.output, result.exception)
    assert "Traceback" not in result.output
    complaint = result.stderr.splitlines()[-1]
    assert complaint.startswith("wprox: ")
    for word in words:
        assert word in complaint
    return True


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    file = tmp_path_factory.mktemp("data") / "table.csv"
    write_table(file, np.random.default_rng(0).normal(size=(120, 2)) * 2 + 1, ["east", "north"])
    return file


@pytest.fixture(scope="module")
def fitted(table, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fitted") / "model"
    result = run("fit", table, "--out", folder, "--seed", 3, *QUICK)
    assert result.exit_code == 0, result.output
    return folder, result


# what it does


def test_fit_writes_a_model_metrics_and_pictures(table, fitted):
    folder, result = fitted
    assert {path.name for path in folder.iterdir()} == {
        "model.safetensors", "config.json", "metrics.json", "samples.png", "trajectory.png",
    }  # fmt: skip
    metrics = json.loads((folder / "metrics.json").read_text())
    models = [entry["model"] for entry in metrics["held_out"]]
    assert models == ["JKO flow", "Gaussian", "Gaussian mixture", "kernel density"]
    for entry in metrics["held_out"]:
        assert entry["bits_per_dim"] == pytest.approx(entry["nll"] / (2 * np.log(2)))
        assert f"{entry['nll']:.3f}" in result.stdout
        assert entry["model"] in result.stdout
    data = metrics["data"]
    assert data["columns"] == ["east", "north"]
    assert (data["rows"], data["held_out_rows"], data["validation_rows"], data["training_rows"]) == (120, 18, 10, 92)
    assert "training on 92" in result.stderr


def test_held_out_rows_are_scored_as_the_library_scores_them(table, fitted):
    folder, _ = fitted
    order = np.random.default_rng(3).permutation(120)
    held_out = read_table(table).values[order[:18]]
    nll = json.loads((folder / "metrics.json").read_text())["held_out"][0]["nll"]
    assert nll == pytest.approx(-JKOFlow.load(folder).score(held_out), abs=1e-9)


def test_same_seed_same_model(table, fitted, tmp_path):
    folder, _ = fitted
    assert run("fit", table, "--out", tmp_path / "again", "--seed", 3, *QUIETER).exit_code == 0
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


def test_quiet_prints_nothing(table, tmp_path):
    result = run("fit", table, "--out", tmp_path / "model", *QUICK, "--quiet")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")


def test_options_reach_the_flow(table, tmp_path):
    arguments = ["--step-size", 0.5, "--smoothing", 0.01, "--fine-tune-iterations", 3, "--threads", 1]
    quick = ["--blocks", "1", "--iterations", "5", "--no-baselines"]
    threads = torch.get_num_threads()
    try:
        result = run("fit", table, "--out", tmp_path / "model", *quick, *arguments)
    finally:
        torch.set_num_threads(threads)
    assert result.exit_code == 0, result.output
    flow = JKOFlow.load(tmp_path / "model")
    assert flow.step_sizes_ == [0.5]
    assert (flow.smoothing, flow.iterations, flow.fine_tune_iterations) == (0.01, 5, 3)
    assert flow.history_[-1]["block"] == "fine-tuning"


def test_integers_bounds_and_constant_columns(tmp_path):
    values = np.random.default_rng(0).integers(0, 5, size=(100, 3))
    values[:, 1] = 2
    write_table(tmp_path / "table.csv", values, ["a", "b", "c"])
    options = ["--integer", "--bounds", 0, 4, "--drop-constant"]
    result = run("fit", tmp_path / "table.csv", "--out", tmp_path / "model", *QUICK, *options)
    assert result.exit_code == 0, result.output
    assert "do not vary in the training rows: b" in result.stderr
    assert run("sample", tmp_path / "model", "-n", 50, "--out", tmp_path / "new.csv").exit_code == 0
    table = read_table(tmp_path / "new.csv")
    assert table.columns == ["a", "b", "c"]
    assert set(table.values[:, 1]) == {2}
    assert set(table.values[:, 0]) <= {0, 1, 2, 3, 4}
    info = run("info", tmp_path / "model")
    assert "2 dimensions" in info.stdout
    assert "left out as constant: b" in info.stdout


@pytest.mark.parametrize("ending", [".csv", ".npy", ".parquet"])
def test_sample_and_score_in_every_format(fitted, tmp_path, ending):
    folder, _ = fitted
    file = tmp_path / f"new{ending}"
    result = run("sample", folder, "-n", 7, "--out", file, "--seed", 5)
    assert result.exit_code == 0, result.output
    flow = JKOFlow.load(folder)
    table = read_table(file)
    np.testing.assert_allclose(table.values, flow.sample(7, seed=5))
    assert table.columns == (["x1", "x2"] if ending == ".npy" else ["east", "north"])
    result = run("score", folder, file, "--out", tmp_path / "scores.csv")
    assert result.exit_code == 0, result.output
    scores = read_table(tmp_path / "scores.csv")
    assert scores.columns == ["log_prob"]
    np.testing.assert_allclose(scores.values[:, 0], flow.log_prob(table.values))
    assert f"7 rows: NLL {-scores.values.mean():.4f} nats" in result.stdout


def test_score_matches_columns_by_name(fitted, tmp_path):
    folder, _ = fitted
    values = np.random.default_rng(1).normal(size=(5, 2))
    write_table(tmp_path / "one.csv", values, ["east", "north"])
    write_table(tmp_path / "two.csv", values[:, ::-1], ["north", "east"])
    assert run("score", folder, tmp_path / "one.csv").stdout == run("score", folder, tmp_path / "two.csv").stdout


def test_info(fitted):
    folder, _ = fitted
    result = run("info", folder)
    assert result.exit_code == 0
    for words in ("1 block, 2 dimensions", "east, north", "92 of the 120 rows", "kernel density", "transport cost"):
        assert " ".join(words.split()) in " ".join(result.stdout.split())


def test_a_model_folder_without_metrics_still_works(table, tmp_path):
    flow = JKOFlow(n_blocks=1, iterations=2, fine_tune=False).fit(read_table(table).values)
    flow.save(tmp_path / "model")
    assert run("sample", tmp_path / "model", "-n", 2, "--out", tmp_path / "new.csv").exit_code == 0
    assert read_table(tmp_path / "new.csv").columns == ["x1", "x2"]
    assert run("info", tmp_path / "model").exit_code == 0
    assert run("score", tmp_path / "model", table).exit_code == 0


def test_an_empty_folder_is_filled_and_another_is_overwritten_on_request(table, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    assert run("fit", table, "--out", folder, *QUIETER).exit_code == 0
    (folder / "notes.txt").write_text("mine")
    before = (folder / "metrics.json").read_bytes()
    assert refused(run("fit", table, "--out", folder, *QUIETER), "exists already", "--overwrite")
    assert run("fit", table, "--out", folder, *QUIETER, "--seed", 1, "--overwrite").exit_code == 0
    assert (folder / "notes.txt").read_text() == "mine"
    assert (folder / "metrics.json").read_bytes() != before


# bad input


TWO_VALUES = "a\n" + "1\n2\n" * 20


@pytest.mark.parametrize(
    ("text", "options", "words"),
    [
        ("a,b\n1,2\n3,nan\ninf,4\n", ["--numbers"], ["2 NaN or infinite entries", "row 2, column 'b'"]),
        ("a,city\n1,Paris\n2,Rome\n", ["--numbers"], ["not numbers", "'city'"]),
        ("a,b\n" + "1,2\n2,2\n" * 50, ["--numbers"], ["1 of 2 columns", "constant", ": b.", "--drop-constant"]),
        ("a,b\n" + "1,2\n" * 50, ["--drop-constant"], ["all columns", "constant"]),
        ("a,b\n1,2\n3,4\n5,6\n", [], ["has 3 rows", "Give more rows"]),
        ("a,b\n1,2\n3\n", [], ["1 entries in row 2"]),
        ("", [], ["is empty"]),
        ("a\n" + "1\n2.5\n" * 20, ["--integer"], ["20 entries", "not whole numbers", "row 2, column 'a': 2.5"]),
        (TWO_VALUES + "9\n", ["--bounds", "0", "4"], ["1 entry", "outside --bounds 0 4", "row 41", ": 9"]),
        (TWO_VALUES, ["--bounds", "4", "0"], ["lower bound first, got 4 0"]),
        (TWO_VALUES, ["--step-size", "-1"], ["step_size", "positive", "-1"]),
        (TWO_VALUES, ["--smoothing", "-1"], ["smoothing", "-1"]),
        (TWO_VALUES, ["--blocks", "0"], ["n_blocks must be at least 1, got 0"]),
        (TWO_VALUES, ["--iterations", "0"], ["iterations must be at least 1, got 0"]),
        (TWO_VALUES, ["--held-out", "1.5"], ["--held-out must lie between 0 and 1"]),
        (TWO_VALUES, ["--seed", "-1"], ["--seed must not be negative, got -1"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_tables_and_options(tmp_path, text, options, words):
    (tmp_path / "table.csv").write_text(text)
    result = run("fit", tmp_path / "table.csv", "--out", tmp_path / "model", *[o for o in QUIETER if options], *options)
    assert refused(result, *words)
    assert not (tmp_path / "model").exists()


def test_bad_files(table, tmp_path):
    assert refused(run("fit", tmp_path / "none.csv", "--out", tmp_path / "model"), "none.csv does not exist")
    assert refused(run("fit", tmp_path / "none.xlsx", "--out", tmp_path / "model"), "'.xlsx'")
    (tmp_path / "noise.npy").write_bytes(b"not an array")
    assert refused(run("fit", tmp_path / "noise.npy", "--out", tmp_path / "model"), "not a readable .npy")
    np.save(tmp_path / "objects.npy", np.array([[{}]]), allow_pickle=True)
    assert refused(run("fit", tmp_path / "objects.npy", "--out", tmp_path / "model"), "Python objects")
    assert refused(run("fit", table, "--out", tmp_path / "noise.npy"), "is a file, not a folder")
    assert refused(run("fit", table, "--out", tmp_path / "noise.npy" / "model"), "cannot be made")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads and writes everything")
def test_files_without_permission(table, tmp_path):
    (tmp_path / "secret.csv").write_text("a\n1\n")
    (tmp_path / "secret.csv").chmod(0)
    assert refused(run("fit", tmp_path / "secret.csv", "--out", tmp_path / "model"), "cannot be read")
    (tmp_path / "locked").mkdir(mode=0o500)
    assert refused(run("fit", table, "--out", tmp_path / "locked" / "model"), "not a folder that you may write to")


def test_parquet_without_its_extra(fitted, tmp_path, monkeypatch):
    pd.DataFrame({"a": [1.0]}).to_parquet(tmp_path / "table.parquet")
    monkeypatch.setitem(sys.modules, "pandas", None)
    folder, _ = fitted
    hint = 'pip install "wprox[parquet]"'
    assert refused(run("fit", tmp_path / "table.parquet", "--out", tmp_path / "model"), hint)
    assert refused(run("sample", folder, "-n", 1, "--out", tmp_path / "new.parquet"), hint)


@pytest.mark.parametrize("n", ["0", "-3"])
def test_sample_of_nothing(fitted, tmp_path, n):
    assert refused(run("sample", fitted[0], "-n", n, "--out", tmp_path / "new.csv"), "n must be at least 1", n)


def test_sample_where_it_cannot_write(fitted, tmp_path):
    (tmp_path / "new.csv").write_text("")
    assert refused(run("sample", fitted[0], "-n", 1, "--out", tmp_path / "new.csv"), "exists already")
    assert refused(run("sample", fitted[0], "-n", 1, "--out", tmp_path / "new.txt"), "'.txt'")
    assert refused(run("sample", fitted[0], "-n", 1, "--out", tmp_path / "none" / "new.csv"), "does not exist")
    assert refused(run("sample", fitted[0], "-n", 1, "--seed", -1, "--out", tmp_path / "new.npy"), "seed")
    assert run("sample", fitted[0], "-n", 1, "--out", tmp_path / "new.csv", "--overwrite").exit_code == 0


def test_score_of_other_columns(fitted, tmp_path):
    write_table(tmp_path / "wide.csv", np.zeros((2, 3)))
    assert refused(run("score", fitted[0], tmp_path / "wide.csv"), "has 3 columns, the model was fitted to 2")
    write_table(tmp_path / "other.csv", np.zeros((2, 2)), ["east", "south"])
    assert refused(run("score", fitted[0], tmp_path / "other.csv"), "has no column north")


@pytest.mark.parametrize("command", [["info"], ["sample", "-n", "1", "--out", "new.csv"], ["score", "new.csv"]])
def test_folders_that_are_no_models(fitted, tmp_path, command, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name, *rest = command
    if name == "score":
        write_table("new.csv", np.zeros((1, 2)))
    assert refused(run(name, "none", *rest), "no such folder")
    (tmp_path / "empty").mkdir()
    assert refused(run(name, "empty", *rest), "has no config.json")
    (tmp_path / "broken").mkdir()
    for file in fitted[0].iterdir():
        (tmp_path / "broken" / file.name).write_bytes(file.read_bytes()[:100])
    assert refused(run(name, "broken", *rest), "damaged")


FITTED = (
    '{"data": {"file": "x", "rows": %s, "training_rows": 1, "held_out_rows": 1, "columns": [], "constant_columns": []}'
    ', "held_out": [{"model": "x", "nll": %s, "bits_per_dim": 1, "setting": %s}]}'
)


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"data": []}',
        '{"data": {"rows": 1}}',
        '{"data": {"columns": 5}}',
        '{"held_out": [{"model": "x"}]}',
        '{"held_out": 3}',
        "[" * 100_000,
        "9" * 5000,
        FITTED % ('"x"', "1.0", '"x"'),
        FITTED % ("3", '"x"', '"x"'),
        FITTED % ("3", "1.0", "4"),
        FITTED % ("3", "1.0", '"\\ud800"'),
    ],
)
def test_damaged_metrics(fitted, tmp_path, content):
    for file in fitted[0].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "metrics.json").write_text(content)
    assert refused(run("info", tmp_path), "metrics.json", "delete it")


def test_usage_errors_have_exit_code_2(table):
    for arguments in (
        ["fit", table],
        ["fit"],
        ["sample", "x", "--out", "y.csv"],
        ["fly"],
        ["fit", table, "--bounds", "1"],
    ):
        result = run(*arguments)
        assert result.exit_code == 2
        assert "Traceback" not in result.output


# failures and interruptions


def test_a_failed_step_keeps_the_blocks_before(table, tmp_path, monkeypatch):
    flow = JKOFlow(n_blocks=1, iterations=2, fine_tune=False).fit(read_table(table).values)

    def fail(self, X, validation=None):
        vars(self).update(
            {name: value for name, value in vars(flow).items() if name.endswith("_")} | {"_dtype": X.dtype}
        )
        raise StepFailedError("step 1 failed at iteration 3")

    monkeypatch.setattr(JKOFlow, "fit", fail)
    result = run("fit", table, "--out", tmp_path / "model")
    assert result.exit_code == 1
    assert "step 1 failed at iteration 3" in result.stderr
    assert "1 block" in result.stderr
    assert JKOFlow.load(tmp_path / "model").sample(1).shape == (1, 2)


def test_ctrl_c_before_the_first_block_leaves_nothing(table, tmp_path, monkeypatch):
    def interrupt(self, X, validation=None):
        raise KeyboardInterrupt

    monkeypatch.setattr(JKOFlow, "fit", interrupt)
    result = run("fit", table, "--out", tmp_path / "model")
    assert result.exit_code == 130
    assert result.stderr.endswith("wprox: interrupted\n")
    assert not (tmp_path / "model").exists()


def test_ctrl_c_during_the_comparison_leaves_the_model(table, tmp_path, monkeypatch):
    def interrupt(*parts, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("wprox.app.baselines.fit_baselines", interrupt)
    assert run("fit", table, "--out", tmp_path / "model", *QUICK).exit_code == 130
    assert run("sample", tmp_path / "model", "-n", 2, "--out", tmp_path / "new.csv").exit_code == 0
    assert read_table(tmp_path / "new.csv").columns == ["east", "north"]


SAYS_WHEN_IT_TRAINS = """
import signal, sys, torch
from wprox.app.cli import main
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a test run in the background would inherit as ignored
step, count = torch.optim.AdamW.step, 0
def counted(*arguments, **options):
    global count
    count += 1
    if count == 30:
        print("thirty steps", file=sys.stderr, flush=True)
    return step(*arguments, **options)
torch.optim.AdamW.step = counted
main()
"""


def test_ctrl_c_leaves_a_usable_model(tmp_path):
    write_table(tmp_path / "table.csv", np.random.default_rng(0).gamma(2, size=(1000, 2)))
    command = [sys.executable, "-c", SAYS_WHEN_IT_TRAINS, "fit", "table.csv", "--out", "model", "--iterations", "9999"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert any("thirty steps" in line for line in process.stderr)
            process.send_signal(signal.SIGINT)
            stderr = process.communicate(timeout=60)[1]
        finally:
            process.kill()
    assert process.returncode == 130, stderr
    assert "interrupted; model has what was trained so far" in stderr
    assert "Traceback" not in stderr
    metrics = json.loads((tmp_path / "model" / "metrics.json").read_text())
    assert metrics["interrupted"]
    assert [entry["model"] for entry in metrics["held_out"]] == ["JKO flow"]
    assert (tmp_path / "model" / "samples.png").stat().st_size > 0
    assert run("sample", tmp_path / "model", "-n", 3, "--out", tmp_path / "new.csv").exit_code == 0
    assert "was interrupted" in run("info", tmp_path / "model").stdout


def fitted_to(file, folder):
    flow = JKOFlow(n_blocks=1, iterations=5, fine_tune=False)
    table = read_table(file)
    flow.fit(table.values)
    if table.named:
        flow.feature_names_in_ = np.array(table.columns, dtype=object)
    flow.save(folder)
    return flow


def test_columns_called_x1_and_x2_are_matched_by_name(tmp_path):
    x = np.random.default_rng(0).normal(size=(200, 2)) * [1, 0.1] + [0, 10]
    for name, columns, rows in (
        ("fit.csv", ["x1", "x2"], x),
        ("swapped.csv", ["x2", "x1"], x[:, ::-1]),
        ("other.csv", ["a", "b"], x),
        ("unnamed.npy", None, x),
    ):
        write_table(tmp_path / name, rows, columns)
    flow = fitted_to(tmp_path / "fit.csv", tmp_path / "named")
    expected = f"NLL {-flow.score(x):.4f} nats"
    fitted_to(tmp_path / "unnamed.npy", tmp_path / "model")
    for folder, file in (
        ("named", "fit.csv"),
        ("named", "swapped.csv"),
        ("named", "unnamed.npy"),
        ("model", "other.csv"),
        ("model", "unnamed.npy"),
    ):
        assert expected in run("score", tmp_path / folder, tmp_path / file).output
    assert refused(run("score", tmp_path / "named", tmp_path / "other.csv"), "no column x1, x2")


def test_score_says_which_rows_have_no_density(tmp_path):
    x = np.random.default_rng(0).uniform(size=(100, 1))
    JKOFlow(n_blocks=1, iterations=5, fine_tune=False, bounds=(0, 1)).fit(x).save(tmp_path / "model")
    x[[3, 7]] = 2.0
    write_table(tmp_path / "rows.npy", x)
    said = run("score", tmp_path / "model", tmp_path / "rows.npy").output.replace("\n", " ")
    assert "100 rows: NLL inf nats" in said
    assert "2 rows with density 0 (outside the bounds, or too far out), the first is row 4; the others: NLL" in said


def test_a_warning_is_a_sentence_without_a_line_of_code(tmp_path):
    file = tmp_path / "table.csv"
    file.write_text("0,1\n" + "".join(f"{k},{k * k % 7}\n" for k in range(30)))
    result = run("fit", file, "--out", tmp_path / "m", "--held-out", "2", "-q")
    lines = result.stderr.splitlines()
    assert lines[0].startswith(f"wprox: the columns of {file} are named by numbers (0, 1)")
    assert len(lines) == 2
