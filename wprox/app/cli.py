"""The command line: wprox fit, sample, score and info."""

from __future__ import annotations

import json
import math
import os
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import torch
import typer

from wprox._version import __version__
from wprox.app.tables import Table, check_output, default_columns, read_table, replacing, write_table
from wprox.models.flow.jko_flow import JKOFlow
from wprox.solvers import StepFailedError

if TYPE_CHECKING:
    from rich.table import Table as RichTable

    from wprox.app.baselines import Baseline

BAD_INPUT, FAILED, INTERRUPTED = 2, 1, 130
VALIDATION_FRACTION = 0.1  # of the rows that are not held out: for early stopping and the baselines' settings
DRAWN_SAMPLES = 3_000
METRICS, SAMPLES, TRAJECTORY = "metrics.json", "samples.png", "trajectory.png"

app = typer.Typer(
    help="Proximal optimisation in Wasserstein space: fit a JKO flow to a table of numbers, sample it, score rows.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Data = Annotated[Path, typer.Argument(metavar="DATA", help="A table: .csv with a header, .npy, or .parquet.")]
Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="A folder that wprox fit wrote.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]


def main() -> None:
    """The entry point of `wprox`."""
    app(prog_name="wprox")


@app.command()
def fit(
    data: Data,
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Where the model and its pictures go.")],
    overwrite: Overwrite = False,
    integer: Annotated[bool, typer.Option("--integer", help="The data are integers: dequantise them.")] = False,
    bounds: Annotated[
        tuple[float, float] | None,
        typer.Option(metavar="LOW HIGH", help="All entries lie between these: model them through the logit."),
    ] = None,
    drop_constant: Annotated[
        bool, typer.Option("--drop-constant", help="Leave out columns that do not vary; samples have them again.")
    ] = False,
    smoothing: Annotated[
        float, typer.Option(metavar="DELTA", help="For data without a density: model e^-δ x + √(1 - e^-2δ) noise.")
    ] = 0.0,
    held_out: Annotated[float, typer.Option(metavar="FRACTION", help="Rows kept apart to report on.")] = 0.15,
    seed: Annotated[int, typer.Option(help="Of the split and the training: same seed, same model.")] = 0,
    blocks: Annotated[int | None, typer.Option(help="Blocks (JKO steps) at most.", show_default="8")] = None,
    step_size: Annotated[float | None, typer.Option(help="The step size γ of a block.", show_default="1")] = None,
    iterations: Annotated[int | None, typer.Option(help="Gradient steps a block, at most.", show_default="300")] = None,
    fine_tune: Annotated[
        bool, typer.Option("--fine-tune/--no-fine-tune", help="Train all blocks together at the end.")
    ] = True,
    fine_tune_iterations: Annotated[
        int | None, typer.Option(help="Gradient steps of the fine-tuning, at most.", show_default="2000")
    ] = None,
    baselines: Annotated[
        bool, typer.Option("--baselines/--no-baselines", help="Fit a Gaussian, mixtures and kernel densities too.")
    ] = True,
    threads: Annotated[int | None, typer.Option(min=1, help="Processor cores to use.", show_default="all")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")] = False,
) -> None:
    """Fit a JKO flow to DATA and report its likelihood on rows it has not seen.

    Writes the model (model.safetensors, config.json), metrics.json, samples.png and trajectory.png to FOLDER. Ctrl-C
    ends the training early and keeps the blocks trained so far.
    """
    with _plain_errors():
        start = time.perf_counter()
        _check_folder(out, overwrite)
        table = read_table(data)
        _check_entries(table, data, integer, bounds)
        train, validation, test = _split(table.values, data, held_out, seed)
        constant = _constant_columns(train, table, data, drop_constant)
        size = f"{_counted(len(table.values), 'row')} of {_counted(len(table.columns), 'number')}"
        _say(f"{data}: {size}; training on {len(train):,}", quiet)
        if constant:
            _say(f"left out, for they do not vary in the training rows: {_listed(constant)}", quiet)

        flow = _train(
            train,
            validation,
            out,
            {
                "n_blocks": blocks,
                "step_sizes": step_size,
                "iterations": iterations,
                "fine_tune": fine_tune,
                "fine_tune_iterations": fine_tune_iterations,
                "integer": integer,
                "bounds": bounds,
                "smoothing": smoothing,
                "drop_constant": drop_constant,
                "seed": seed,
                "progress": not quiet and sys.stderr.isatty(),
            },
            threads,
        )
        for name in (METRICS, SAMPLES, TRAJECTORY):  # of an earlier model
            (out / name).unlink(missing_ok=True)
        flow.save(out, overwrite=True)

        metrics: dict[str, Any] = {
            "wprox": __version__,
            "data": {
                "file": str(data),
                "rows": len(table.values),
                "training_rows": len(train),
                "validation_rows": len(validation),
                "held_out_rows": len(test),
                "columns": table.columns,
                "constant_columns": constant,
            },
            "seed": seed,
            "interrupted": flow.interrupted_,
            "held_out": [],
            "blocks": flow.history_,
        }
        nll = -flow.score(test)
        dim = flow.preprocessing_.dim
        setting = _counted(len(flow.blocks_), "block") + (f", data smoothed by {smoothing:g}" if smoothing else "")
        metrics["held_out"].append(_result("JKO flow", setting, nll, dim))
        _write_metrics(out, metrics)  # so that Ctrl-C during the comparison leaves the names of the columns, too
        if baselines and not flow.interrupted_:
            for baseline in _baselines(train, validation, test, integer, bounds, seed, quiet):
                metrics["held_out"].append(
                    _result(baseline.name, baseline.setting, baseline.nll, dim) | {"seconds": baseline.seconds}
                )
        metrics["seconds"] = time.perf_counter() - start
        _write_metrics(out, metrics)
        _draw(flow, test, table.columns, out)
        if not quiet:
            _print(_results_table(metrics["held_out"], len(test)))
        if flow.interrupted_:
            typer.echo(
                f"wprox: interrupted; {out} has what was trained so far, {_counted(len(flow.blocks_), 'block')}",
                err=True,
            )
            raise typer.Exit(INTERRUPTED)
        _say(f"wrote {out} in {metrics['seconds']:.0f} s; next: wprox sample {out} -n 1000 --out samples.csv", quiet)


@app.command()
def sample(
    folder: Folder,
    n: Annotated[int, typer.Option("-n", help="How many rows.")],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="A .csv, .npy or .parquet file to write.")],
    seed: Annotated[int | None, typer.Option(help="Same seed, same rows.", show_default="a fresh one")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Generate rows with the model in FOLDER."""
    with _plain_errors():
        check_output(out, overwrite)
        flow = JKOFlow.load(folder)
        rows = flow.sample(n, seed).numpy()
        write_table(out, rows, _columns(folder, flow), overwrite)


@app.command()
def score(
    folder: Folder,
    data: Data,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Write the log-likelihood of each row here.")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Print the negative log-likelihood of DATA under the model in FOLDER.

    Columns are matched by name where both have names.
    """
    with _plain_errors():
        if out is not None:
            check_output(out, overwrite)
        flow = JKOFlow.load(folder)
        values = _matched(read_table(data), data, _columns(folder, flow))
        log_prob = flow.log_prob(values).numpy()
        if out is not None:
            write_table(out, log_prob[:, None], ["log_prob"], overwrite)
        nll = -float(log_prob.mean())
        typer.echo(f"{len(values):,} rows: NLL {nll:.4f} nats, {_bits(nll, flow.preprocessing_.dim):.4f} bits/dim")


@app.command()
def info(folder: Folder) -> None:
    """Say what the model in FOLDER is: its data, blocks and held-out likelihood."""
    with _plain_errors():
        from rich.table import Table as RichTable

        flow = JKOFlow.load(folder)
        metrics = _metrics(folder)
        fitted = metrics.get("data", {})
        columns = _columns(folder, flow)
        size = f"{_counted(len(flow.blocks_), 'block')}, {_counted(flow.preprocessing_.dim, 'dimension')}"
        typer.echo(f"JKO flow in {folder}: {size}")
        typer.echo(f"columns: {_listed(columns)}")
        if fitted:
            typer.echo(f"fitted to {fitted['training_rows']:,} of the {fitted['rows']:,} rows of {fitted['file']}")
            if fitted["constant_columns"]:
                typer.echo(f"left out as constant: {_listed(fitted['constant_columns'])}")
        if flow.interrupted_:
            typer.echo("the training was interrupted")
        table = RichTable("block", "step size", "validation NLL (nats)", "transport cost", "iterations", "seconds")
        for entry in flow.history_:
            table.add_row(
                str(entry["block"]),
                f"{entry['step_size']:g}" if "step_size" in entry else "",
                f"{entry['held_out_nll']:.4f}",
                f"{entry['transport_cost']:.4g}" if "transport_cost" in entry else "",
                str(entry["iterations"]),
                f"{entry['seconds']:.1f}",
            )
        _print(table)
        if metrics.get("held_out"):
            _print(_results_table(metrics["held_out"], fitted["held_out_rows"]))


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Bad input ends the program with one sentence on stderr and exit code 2, Ctrl-C with exit code 130."""
    try:
        yield
    except (ValueError, TypeError, ImportError, OSError) as error:
        typer.echo(f"wprox: {error}", err=True)
        raise typer.Exit(BAD_INPUT) from None
    except KeyboardInterrupt:
        typer.echo("wprox: interrupted", err=True)
        raise typer.Exit(INTERRUPTED) from None


def _say(text: str, quiet: bool) -> None:
    if not quiet:
        typer.echo(text, err=True)


def _print(table: RichTable) -> None:
    from rich.console import Console

    Console().print(table)


def _check_folder(out: Path, overwrite: bool) -> None:
    """Say before the training, not after it, that the model cannot be written."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file, not a folder; choose another name")
    if out.is_dir() and any(out.iterdir()) and not overwrite:
        raise ValueError(f"{out} exists already and is not empty; choose another folder or add --overwrite")
    nearest = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise ValueError(f"{out} cannot be made: {nearest} is not a folder that you may write to")


def _check_entries(table: Table, data: Path, integer: bool, bounds: tuple[float, float] | None) -> None:
    """The checks of `JKOFlow`, made where rows and columns still have the file's numbers and names."""
    if integer:
        _refuse_entries(table, table.values != np.rint(table.values), data, "are not whole numbers, as --integer says")
    if bounds is not None:
        low, high = bounds
        if not low < high:
            raise ValueError(f"--bounds takes the lower bound first, got {low:g} {high:g}")
        outside = (table.values < low) | (table.values > high)
        _refuse_entries(table, outside, data, f"lie outside --bounds {low:g} {high:g}")


def _refuse_entries(table: Table, bad: np.ndarray, data: Path, what: str) -> None:
    count = int(bad.sum())
    if count:
        row, column = divmod(int(bad.ravel().argmax()), bad.shape[1])
        raise ValueError(
            f"{count} {'entries' if count > 1 else 'entry'} of {data} {what}; the first at row {row + 1}, column "
            f"{table.columns[column]!r}: {table.values[row, column]:g}"
        )


def _split(values: np.ndarray, data: Path, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Training, validation and held-out rows, drawn at random."""
    if not 0 < fraction < 1:
        raise ValueError(f"--held-out must lie between 0 and 1, got {fraction:g}")
    if seed < 0:
        raise ValueError(f"--seed must not be negative, got {seed}")
    n = len(values)
    held_out = max(1, round(fraction * n))
    validation = max(1, round(VALIDATION_FRACTION * (n - held_out)))
    if n - held_out - validation < 2:
        raise ValueError(
            f"{data} has {_counted(n, 'row')}; with {held_out} held out and {validation} for validation, too "
            "few are left to train on. Give more rows (hundreds, for a useful model), or lower --held-out"
        )
    order = np.random.default_rng(seed).permutation(n)
    return (
        values[order[held_out + validation :]],
        values[order[held_out : held_out + validation]],
        values[order[:held_out]],
    )


def _constant_columns(train: np.ndarray, table: Table, data: Path, drop: bool) -> list[str]:
    constant = [name for name, same in zip(table.columns, (train == train[0]).all(0), strict=True) if same]
    if constant and not drop:
        raise ValueError(
            f"{len(constant)} of {len(table.columns)} columns of {data} are constant in the training rows: "
            f"{_listed(constant)}. A constant has no density; remove such columns, or add --drop-constant to leave "
            "them out and have them again in what is generated"
        )
    if len(constant) == len(table.columns):
        raise ValueError(f"all columns of {data} are constant in the training rows; there is nothing to learn")
    return constant


def _train(
    train: np.ndarray, validation: np.ndarray, out: Path, arguments: dict[str, Any], threads: int | None
) -> JKOFlow:
    if threads is not None:
        torch.set_num_threads(threads)
        import_module("threadpoolctl").threadpool_limits(threads)  # numpy's; it comes with scikit-learn
    flow = JKOFlow(**{name: value for name, value in arguments.items() if value is not None})
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="interrupted", category=RuntimeWarning)  # said at the end
            return flow.fit(torch.as_tensor(train), validation=torch.as_tensor(validation))
    except StepFailedError as error:
        typer.echo(f"wprox: {error}", err=True)
        if getattr(flow, "blocks_", None):
            flow.save(out, overwrite=True)
            typer.echo(f"wprox: {out} has what was trained before, {_counted(len(flow.blocks_), 'block')}", err=True)
        raise typer.Exit(FAILED) from None


def _baselines(
    train: np.ndarray,
    validation: np.ndarray,
    test: np.ndarray,
    integer: bool,
    bounds: tuple[float, float] | None,
    seed: int,
    quiet: bool,
) -> list[Baseline]:
    from wprox.app.baselines import fit_baselines

    return fit_baselines(
        train,
        validation,
        test,
        integer=integer,
        bounds=bounds,
        seed=seed,
        report=lambda name: _say(f"for comparison: {name}", quiet),
    )


def _write_metrics(out: Path, metrics: dict[str, Any]) -> None:
    with replacing(out / METRICS) as file:
        file.write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")


def _draw(flow: JKOFlow, rows: np.ndarray, columns: Sequence[str], out: Path) -> None:
    from wprox.plot import plot_flow, plot_samples

    generated = flow.sample(DRAWN_SAMPLES, seed=0).numpy()
    for name, figure in ((SAMPLES, plot_samples(rows, generated, columns)), (TRAJECTORY, plot_flow(flow, rows))):
        with replacing(out / name) as file:
            figure.savefig(file)


def _result(model: str, setting: str, nll: float, dim: int) -> dict[str, Any]:
    return {"model": model, "setting": setting, "nll": nll, "bits_per_dim": _bits(nll, dim)}


def _bits(nll: float, dim: int) -> float:
    return nll / (dim * math.log(2))


def _results_table(results: list[dict[str, Any]], rows: int) -> RichTable:
    from rich.table import Table as RichTable

    table = RichTable("model", title=f"Negative log-likelihood of {rows:,} held-out rows (lower is better)")
    table.add_column("nats a row", justify="right")
    table.add_column("bits/dim", justify="right")
    table.add_column("setting", style="dim")
    best = min(result["nll"] for result in results)
    for result in results:
        table.add_row(
            result["model"],
            f"{result['nll']:.3f}",
            f"{result['bits_per_dim']:.3f}",
            result["setting"],
            style="bold" if result["nll"] == best else None,
        )
    return table


def _metrics(folder: Path) -> dict[str, Any]:
    file = folder / METRICS
    if not file.is_file():
        return {}
    try:
        metrics = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is damaged, it is not JSON: {error}; delete it, or fit the model again") from None
    data = metrics.get("data", {}) if isinstance(metrics, dict) else None
    fitted = {"file", "rows", "training_rows", "held_out_rows", "columns", "constant_columns"}
    results = metrics.get("held_out", []) if isinstance(metrics, dict) else None
    if (
        not isinstance(data, dict)
        or not isinstance(results, list)
        or (data and not fitted <= set(data))
        or (results and not data)
        or not all({"model", "nll", "bits_per_dim", "setting"} <= set(result) for result in results)
        or not all(isinstance(column, str) for column in _listable(data.get("columns", [])))
    ):
        raise ValueError(f"{file} is damaged or was not written by wprox; delete it, or fit the model again")
    return metrics


def _listable(value: object) -> list:
    return value if isinstance(value, list) else [value]


def _columns(folder: Path, flow: JKOFlow) -> list[str]:
    """The names of the columns that the model was fitted to; x1, …, xd where the folder does not say."""
    columns = _metrics(folder).get("data", {}).get("columns")
    return columns if columns and len(columns) == flow.n_features_in_ else default_columns(flow.n_features_in_)


def _matched(table: Table, data: Path, columns: list[str]) -> np.ndarray:
    """The table's values in the order of the model's columns."""
    if len(table.columns) != len(columns):
        raise ValueError(
            f"{data} has {len(table.columns)} columns, the model was fitted to {len(columns)}: {_listed(columns)}"
        )
    unnamed = default_columns(len(columns))
    if table.columns == columns or unnamed in (table.columns, columns):
        return table.values
    missing = [name for name in columns if name not in table.columns]
    if missing:
        raise ValueError(f"{data} has no column {_listed(missing)}, which the model was fitted to")
    return table.values[:, [table.columns.index(name) for name in columns]]


def _listed(names: Sequence[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _counted(n: int, what: str) -> str:
    return f"{n:,} {what}{'' if n == 1 else 's'}"
