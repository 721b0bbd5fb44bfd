"""`wprox fit`: from a table to a model folder with its likelihood on held-out rows, baselines and pictures."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import typer

from wprox._interruptions import SENTENCE, interruptions
from wprox._version import __version__
from wprox.app.output import FitFolder
from wprox.app.report import METRICS, counted, listed, metrics_text, model_result, results_table, say, show
from wprox.app.tables import Table, read_table
from wprox.models.flow.jko_flow import JKOFlow
from wprox.models.folders import CONFIG, TENSORS
from wprox.solvers import StepFailedError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from wprox.app.baselines import Baseline

FAILED = 1
VALIDATION_FRACTION = 0.1  # of the rows that are not held out: for early stopping and the baselines' settings
DRAWN_SAMPLES = 3_000
SAMPLES, TRAJECTORY = "samples.png", "trajectory.png"
FILES = (CONFIG, TENSORS, METRICS, SAMPLES, TRAJECTORY)


@dataclass(frozen=True)
class FitOptions:
    """What `wprox fit` was asked for; see its help for the options of the same names."""

    data: Path
    out: Path
    overwrite: bool
    integer: bool
    bounds: tuple[float, float] | None
    drop_constant: bool
    smoothing: float
    held_out: float
    seed: int
    blocks: int | None
    step_size: float | None
    iterations: int | None
    fine_tune: bool
    fine_tune_iterations: int | None
    baselines: bool
    threads: int | None
    quiet: bool

    @property
    def of_the_flow(self) -> dict[str, Any]:
        """The arguments of `JKOFlow` that were given."""
        arguments = {
            "n_blocks": self.blocks,
            "step_sizes": self.step_size,
            "iterations": self.iterations,
            "fine_tune": self.fine_tune,
            "fine_tune_iterations": self.fine_tune_iterations,
            "integer": self.integer,
            "bounds": self.bounds,
            "smoothing": self.smoothing,
            "drop_constant": self.drop_constant,
            "seed": self.seed,
            "progress": not self.quiet and sys.stderr.isatty(),
        }
        return {name: value for name, value in arguments.items() if value is not None}


class Rows(NamedTuple):
    """The rows of a table: to train on, to stop by, and to report on."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def fit_table(options: FitOptions) -> None:
    """Train, write the model and what is known of it, and say so.

    Raises:
        ValueError, TypeError, ImportError, OSError: for what cannot be read, trained on or written.
        typer.Exit: where training failed or was interrupted, after what there is was written.
    """
    with FitFolder(options.out, options.overwrite, FILES) as folder:
        try:
            _fit(options, folder)
        except KeyboardInterrupt:
            if folder.place is None:
                raise
            typer.echo(f"{SENTENCE}; {folder.place} has the model", err=True)
            raise typer.Exit(interruptions.exit_code) from None


def _fit(options: FitOptions, folder: FitFolder) -> None:
    start, quiet = time.perf_counter(), options.quiet
    table = read_table(options.data)
    _check_entries(table, options.data, options.integer, options.bounds)
    rows = _split(table.values, options.data, options.held_out, options.seed)
    constant = _constant_columns(rows.train, table, options.data, options.drop_constant)
    size = f"{counted(len(table.values), 'row')} of {counted(len(table.columns), 'number')}"
    say(f"{options.data}: {size}; training on {len(rows.train):,}", quiet)
    if constant:
        say(f"left out, for they do not vary in the training rows: {listed(constant)}", quiet)

    flow, failed = _train(rows, options)
    if flow.selection_ is not None:
        say(f"chosen: {flow.selection_}", quiet)
    if table.named:
        flow.feature_names_in_ = np.array(table.columns, dtype=object)
    metrics = _metrics_of(flow, rows, table, constant, options)
    _write(flow, rows, table.columns, metrics, folder, finished=not (failed or flow.interrupted_))
    if options.baselines and not (failed or flow.interrupted_):
        for baseline in _baselines(rows, options):
            result = model_result(baseline.name, baseline.setting, baseline.nll, flow.preprocessing_.dim)
            metrics["held_out"].append(result | {"seconds": baseline.seconds})
    metrics["seconds"] = time.perf_counter() - start
    folder.replace(METRICS, metrics_text(metrics))
    if not quiet:
        show(results_table(metrics["held_out"], len(rows.test)))
    _say_where(flow, folder, failed)
    place = folder.place
    say(f"wrote {place} in {metrics['seconds']:.0f} s; next: wprox sample {place} -n 1000 --out samples.csv", quiet)


def _write(
    flow: JKOFlow, rows: Rows, columns: Sequence[str], metrics: dict[str, Any], folder: FitFolder, finished: bool
) -> None:
    """Write the flow, metrics.json and pictures; the flow also where its likelihood or pictures cannot be made."""
    pictures: dict[str, Figure] = {}

    def write(new: Path) -> None:
        flow.save(new)
        (new / METRICS).write_text(metrics_text(metrics), encoding="utf-8")
        for name, figure in pictures.items():
            figure.savefig(new / name)

    setting = "start, " * (flow.start_ is not None) + counted(len(flow.blocks_), "block")
    setting += f", data smoothed by {flow.smoothing:g}" if flow.smoothing else ""
    try:
        nll = -flow.score(rows.test)
        metrics["held_out"].append(model_result("JKO flow", setting, nll, flow.preprocessing_.dim))
        pictures |= _pictures(flow, rows.test, columns)
    finally:
        folder.write(write, finished)


def _say_where(flow: JKOFlow, folder: FitFolder, failed: bool) -> None:
    """Say where the model is, and end the program where that is not all there is to say."""
    what = "its start, " * (flow.start_ is not None) + counted(len(flow.blocks_), "block")
    if folder.trouble:
        typer.echo(
            f"wprox: {folder.out} could not be written ({folder.trouble}); the model is in {folder.place}", err=True
        )
    elif folder.place != folder.out:
        what += f"; {folder.out} keeps the model that it had"
    if failed:
        typer.echo(f"wprox: {folder.place} has what was trained before, {what}", err=True)
    elif flow.interrupted_:
        typer.echo(f"{SENTENCE}; {folder.place} has what was trained so far, {what}", err=True)
        raise typer.Exit(interruptions.exit_code)
    if failed or folder.trouble:
        raise typer.Exit(FAILED)


def _metrics_of(flow: JKOFlow, rows: Rows, table: Table, constant: list[str], options: FitOptions) -> dict[str, Any]:
    """What metrics.json says of a flow, before it is compared with others."""
    return {
        "wprox": __version__,
        "data": {
            "file": str(options.data),
            "rows": len(table.values),
            "training_rows": len(rows.train),
            "validation_rows": len(rows.validation),
            "held_out_rows": len(rows.test),
            "columns": table.columns,
            "constant_columns": constant,
        },
        "seed": options.seed,
        "interrupted": flow.interrupted_,
        "selection": None if flow.selection_ is None else flow.selection_.to_json(),
        "held_out": [],
        "blocks": flow.history_,
    }


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


def _split(values: np.ndarray, data: Path, fraction: float, seed: int) -> Rows:
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
            f"{data} has {counted(n, 'row')}; with {held_out} held out and {validation} for validation, too "
            "few are left to train on. Give more rows (hundreds, for a useful model), or lower --held-out"
        )
    order = np.random.default_rng(seed).permutation(n)
    return Rows(
        values[order[held_out + validation :]],
        values[order[held_out : held_out + validation]],
        values[order[:held_out]],
    )


def _constant_columns(train: np.ndarray, table: Table, data: Path, drop: bool) -> list[str]:
    constant = [name for name, same in zip(table.columns, (train == train[0]).all(0), strict=True) if same]
    if constant and not drop:
        raise ValueError(
            f"{len(constant)} of {len(table.columns)} columns of {data} are constant in the training rows: "
            f"{listed(constant)}. A constant has no density; remove such columns, or add --drop-constant to leave "
            "them out and have them again in what is generated"
        )
    if len(constant) == len(table.columns):
        raise ValueError(f"all columns of {data} are constant in the training rows; there is nothing to learn")
    return constant


def _train(rows: Rows, options: FitOptions) -> tuple[JKOFlow, bool]:
    """The trained flow, and whether its training failed after some blocks."""
    if options.threads is not None:
        torch.set_num_threads(options.threads)
        import_module("threadpoolctl").threadpool_limits(options.threads)  # numpy's; it comes with scikit-learn
    flow = JKOFlow(**options.of_the_flow)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="interrupted", category=RuntimeWarning)  # said at the end
            return flow.fit(torch.as_tensor(np.concatenate([rows.train, rows.validation]))), False
    except StepFailedError as error:
        typer.echo(f"wprox: {error}", err=True)
        if not (getattr(flow, "blocks_", None) or getattr(flow, "start_", None)):
            raise typer.Exit(FAILED) from None
        return flow, True


def _baselines(rows: Rows, options: FitOptions) -> list[Baseline]:
    with interruptions.held():
        from wprox.app.baselines import fit_baselines

    return fit_baselines(
        *rows,
        integer=options.integer,
        bounds=options.bounds,
        seed=options.seed,
        report=lambda name: say(f"for comparison: {name}", options.quiet),
    )


def _pictures(flow: JKOFlow, rows: np.ndarray, columns: Sequence[str]) -> dict[str, Figure]:
    with interruptions.held():
        from wprox.plot import plot_flow, plot_samples

    generated = flow.sample(DRAWN_SAMPLES, seed=0).numpy()
    return {SAMPLES: plot_samples(rows, generated, columns), TRAJECTORY: plot_flow(flow, rows)}
