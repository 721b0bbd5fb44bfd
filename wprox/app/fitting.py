"""`wprox fit`: from a table to a model folder with its likelihood on held-out rows, baselines and pictures."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import typer

from wprox._interruptions import SENTENCE, interruptions
from wprox._version import __version__
from wprox.app.frames import MixedTable, drawable, read_mixed, typed
from wprox.app.output import FitFolder
from wprox.app.report import METRICS, counted, listed, metrics_text, model_result, results_table, say, show
from wprox.app.tables import Table, read_table
from wprox.models.flow.jko_flow import JKOFlow
from wprox.models.flow.table.columns import TableColumns
from wprox.models.flow.table.finding import KINDS
from wprox.models.folders import CONFIG, TENSORS
from wprox.solvers import StepFailedError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from wprox.app.baselines import Baseline
    from wprox.app.html.report import Report

FAILED = 1
VALIDATION_FRACTION = 0.1  # of the rows that are not held out: for early stopping and the baselines' settings
DRAWN_SAMPLES = 3_000
SAMPLES, TRAJECTORY, REPORT = "samples.png", "trajectory.png", "report.html"
FILES = (CONFIG, TENSORS, METRICS, SAMPLES, TRAJECTORY, REPORT)


@dataclass(frozen=True)
class FitOptions:
    """What `wprox fit` was asked for; see its help for the options of the same names."""

    data: Path
    out: Path
    overwrite: bool
    integer: bool
    bounds: tuple[float, float] | None
    drop_constant: bool
    columns: tuple[str, ...] | None
    smoothing: float
    held_out: float
    seed: int
    blocks: int | None
    step_size: float | None
    iterations: int | None
    fine_tune: bool
    fine_tune_iterations: int | None
    baselines: bool
    report: bool
    target: str | None
    threads: int | None
    quiet: bool

    @property
    def mixed(self) -> bool:
        """Whether columns are taken as they are, and not all as numbers, as some of the options ask for."""
        numbers = self.columns is None or self.integer or self.bounds is not None
        if numbers and self.columns:
            raise ValueError("--column goes with none of --numbers, --integer and --bounds, which speak of all columns")
        return not numbers and find_spec("pandas") is not None

    @property
    def wishes(self) -> dict[str, str]:
        """What --column says, by name."""
        pairs = [said.rpartition("=") for said in self.columns or ()]
        if any(not name or kind not in KINDS for name, _, kind in pairs):
            given = " ".join(self.columns or ())
            raise ValueError(f"--column takes NAME=KIND, with a kind of {', '.join(KINDS)}; got {given}")
        return {name: kind for name, _, kind in pairs}

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
    """The rows of a table, arrays or data frames: to train on, to stop by, and to report on."""

    train: Any
    validation: Any
    test: Any


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
    table, learned = _read(options)
    reading = time.perf_counter() - start
    _check_target(options, table.columns if learned is None else list(map(str, learned.names)))
    rows = _split(table, options.data, options.held_out, options.seed)
    constant = _constant_columns(rows.train, table, options, learned)
    size = f"{counted(sum(map(len, rows)), 'row')} of {counted(len(table.columns), 'column')}"
    say(f"{options.data}: {size}; training on {len(rows.train):,}", quiet)
    if learned is not None:
        say(str(learned), quiet)
    elif constant:
        say(f"left out, for they do not vary in the training rows: {listed(constant)}", quiet)

    flow, failed = _train(rows, options, learned)
    if flow.selection_ is not None:
        say(f"chosen: {flow.selection_}", quiet)
    if table.named and learned is None:
        flow.feature_names_in_ = np.array(table.columns, dtype=object)
    metrics = _metrics_of(flow, rows, table, constant, options)
    metrics["data"]["seconds"] = reading
    finished = not (failed or flow.interrupted_)
    report = _write(flow, rows, metrics, folder, options, finished)
    if options.baselines and finished:
        for baseline in _baselines(rows, options, flow):
            result = model_result(baseline.name, baseline.setting, baseline.nll, flow.preprocessing_.dim)
            metrics["held_out"].append(result | {"seconds": baseline.seconds})
    metrics["seconds"] = time.perf_counter() - start
    folder.replace(METRICS, metrics_text(metrics))
    if report is not None:
        folder.replace(REPORT, report.page())
    if not quiet:
        show(results_table(metrics["held_out"], len(rows.test)))
    _say_where(flow, folder, failed)
    place = folder.place
    say(f"wrote {place} in {metrics['seconds']:.0f} s; next: wprox sample {place} -n 1000 --out samples.csv", quiet)


def _read(options: FitOptions) -> tuple[Table | MixedTable, TableColumns | None]:
    """The table, and how its columns are taken, where not all as numbers: what they are is learned of all rows."""
    if options.mixed:
        table = read_mixed(options.data)
        learned = TableColumns.learn(table.rows, options.wishes)
        if not learned.is_plain or learned.dropped:
            return table, learned
        numbers = Table(np.asarray(table.rows, dtype=np.float64), table.columns, table.named)
    else:
        numbers = read_table(options.data)
    _check_entries(numbers, options.data, options.integer, options.bounds)
    return numbers, None


def _write(
    flow: JKOFlow, rows: Rows, metrics: dict[str, Any], folder: FitFolder, options: FitOptions, finished: bool
) -> Report | None:
    """Write the flow, metrics.json, pictures and the report; the flow also where the others cannot be made."""
    pictures: dict[str, Figure] = {}
    report: Report | None = None

    def write(new: Path) -> None:
        flow.save(new)
        if report is not None:
            (new / REPORT).write_text(report.page(), encoding="utf-8")
        (new / METRICS).write_text(metrics_text(metrics), encoding="utf-8")
        for name, figure in pictures.items():
            figure.savefig(new / name)

    setting = "start, " * (flow.start_ is not None) + counted(len(flow.blocks_), "block")
    setting += f", data smoothed by {flow.smoothing:g}" if flow.smoothing else ""
    try:
        nll = -flow.score(rows.test)
        metrics["held_out"].append(model_result("JKO flow", setting, nll, flow.preprocessing_.dim))
        pictures |= _pictures(flow, rows.test, metrics["data"]["columns"])
        if options.report:
            report = _report(flow, rows, metrics, options)
            metrics["generated"] = report.numbers()
    finally:
        folder.write(write, finished)
    return report


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


def _metrics_of(
    flow: JKOFlow, rows: Rows, table: Table | MixedTable, constant: list[str], options: FitOptions
) -> dict[str, Any]:
    """What metrics.json says of a flow, before it is compared with others."""
    taken = {"taken": flow.columns_.described()} if hasattr(flow, "columns_") else {}
    return {
        "wprox": __version__,
        "data": {
            "file": str(options.data),
            "rows": sum(map(len, rows)),
            "training_rows": len(rows.train),
            "validation_rows": len(rows.validation),
            "held_out_rows": len(rows.test),
            "columns": table.columns,
            "constant_columns": constant,
            **taken,
        },
        "seed": options.seed,
        "interrupted": flow.interrupted_,
        "selection": None if flow.selection_ is None else flow.selection_.to_json(),
        "held_out": [],
        "blocks": flow.history_,
    }


def _check_target(options: FitOptions, columns: list[str]) -> None:
    """The column that the report predicts, checked before there is a training to lose."""
    if options.target is not None and not options.report:
        raise ValueError("--target says which column the report predicts; add --report")
    if options.target is not None and options.target not in columns:
        raise ValueError(f"--target: {options.data} has no column {options.target!r}; it has {listed(columns)}")


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


def _split(table: Table | MixedTable, data: Path, fraction: float, seed: int) -> Rows:
    """Training, validation and held-out rows, drawn at random."""
    if not 0 < fraction < 1:
        raise ValueError(f"--held-out must lie between 0 and 1, got {fraction:g}")
    if seed < 0:
        raise ValueError(f"--seed must not be negative, got {seed}")
    rows = table.rows if isinstance(table, MixedTable) else table.values
    taken = getattr(rows, "iloc", rows)
    n = len(rows)
    held_out = max(1, round(fraction * n))
    validation = max(1, round(VALIDATION_FRACTION * (n - held_out)))
    if n - held_out - validation < 2:
        raise ValueError(
            f"{data} has {counted(n, 'row')}; with {held_out} held out and {validation} for validation, too "
            "few are left to train on. Give more rows (hundreds, for a useful model), or lower --held-out"
        )
    order = np.random.default_rng(seed).permutation(n)
    return Rows(
        taken[order[held_out + validation :]],
        taken[order[held_out : held_out + validation]],
        taken[order[:held_out]],
    )


def _constant_columns(
    train: Any, table: Table | MixedTable, options: FitOptions, learned: TableColumns | None
) -> list[str]:
    if learned is not None:
        return [str(column.name) for column in learned.columns if column.kind == "constant"]
    data, drop = options.data, options.drop_constant
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


def _train(rows: Rows, options: FitOptions, learned: TableColumns | None) -> tuple[JKOFlow, bool]:
    """The trained flow, and whether its training failed after some blocks."""
    if options.threads is not None:
        torch.set_num_threads(options.threads)
        import_module("threadpoolctl").threadpool_limits(options.threads)  # numpy's; it comes with scikit-learn
    flow = JKOFlow(columns=learned, **options.of_the_flow)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="interrupted", category=RuntimeWarning)  # said at the end
            return flow.fit(_joined(rows.train, rows.validation)), False
    except StepFailedError as error:
        typer.echo(f"wprox: {error}", err=True)
        if not (getattr(flow, "blocks_", None) or getattr(flow, "start_", None)):
            raise typer.Exit(FAILED) from None
        return flow, True


def _joined(first: Any, second: Any) -> Any:
    """The rows of two parts of a table: a tensor of numbers, or what else the parts are."""
    if isinstance(first, np.ndarray):
        both = np.concatenate([first, second])
        return both if both.dtype == object else torch.as_tensor(both)
    return import_module("pandas").concat([first, second])


def _baselines(rows: Rows, options: FitOptions, flow: JKOFlow) -> list[Baseline]:
    with interruptions.held():
        from wprox.app.baselines import fit_baselines

    learned = getattr(flow, "columns_", None)
    return fit_baselines(
        *(rows if learned is None else map(learned.read, rows)),
        columns=learned,
        integer=options.integer,
        bounds=options.bounds,
        seed=options.seed,
        report=lambda name: say(f"for comparison: {name}", options.quiet),
    )


def _pictures(flow: JKOFlow, rows: Any, columns: Sequence[str]) -> dict[str, Figure]:
    with interruptions.held():
        from wprox.plot import plot_flow, plot_samples

    generated = flow.sample(DRAWN_SAMPLES, seed=0)
    trajectory = plot_flow(flow, rows)
    if (learned := getattr(flow, "columns_", None)) is not None:
        rows, generated = drawable(rows, learned), drawable(generated, learned)
        columns = [str(name) for name in learned.names]
    return {SAMPLES: plot_samples(rows, generated, columns), TRAJECTORY: trajectory}


def _report(flow: JKOFlow, rows: Rows, metrics: dict[str, Any], options: FitOptions) -> Report:
    """The report, of as many generated rows as there are real ones."""
    with interruptions.held():
        from wprox.app.html.facts import Tables, gather
        from wprox.app.html.report import MOST_GENERATED, MOST_LATENTS, Report

    start, data = time.perf_counter(), metrics["data"]
    say("comparing generated rows with real ones", options.quiet)
    generated = flow.sample(min(MOST_GENERATED, sum(map(len, rows))), seed=options.seed)
    latents = np.asarray(flow.latents(rows.test[:MOST_LATENTS], options.seed)[-1])
    tables, names = [_joined(rows.train, rows.validation), rows.test, generated], data["columns"]
    taken = dict.fromkeys(names, _taken(options)) | dict.fromkeys(data["constant_columns"], "constant")
    if (learned := getattr(flow, "columns_", None)) is not None:
        tables, names = [typed(table, learned) for table in tables], [str(name) for name in learned.names]
        taken = {name: "; ".join(filter(None, said)) for name, *said in learned.described()}
    fitted, held_out, drawn = tables
    facts = gather(Tables(fitted, held_out, drawn, names), latents, options.target, options.seed)
    return Report(facts, metrics, taken, time.perf_counter() - start)


def _taken(options: FitOptions) -> str:
    """How the options say that columns are taken."""
    kind = "whole number, dequantised" if options.integer else "number"
    return kind if options.bounds is None else f"{kind} between {options.bounds[0]:g} and {options.bounds[1]:g}"
