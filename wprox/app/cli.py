"""The command line: wprox fit, sample, score and info."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from wprox._interruptions import SENTENCE, interruptions
from wprox.app.fitting import FitOptions, fit_table
from wprox.app.frames import MixedTable, read_mixed, rows_for, write_rows
from wprox.app.report import bits, columns_of, counted, listed, names_of, read_metrics, results_table, show
from wprox.app.tables import Table, check_output, read_table, write_table
from wprox.maps import InverseError
from wprox.models.flow.jko_flow import JKOFlow

BAD_INPUT = 2

app = typer.Typer(
    help="Proximal optimisation in Wasserstein space: fit a JKO flow to a table, sample it, score rows.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Data = Annotated[Path, typer.Argument(metavar="DATA", help="A table: .csv with a header, .npy, or .parquet.")]
Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="A folder that wprox fit wrote.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]
Integer = Annotated[bool, typer.Option("--integer", help="The data are integers: dequantise them.")]
Bounds = Annotated[
    tuple[float, float] | None,
    typer.Option(metavar="LOW HIGH", help="All entries lie between these: model them on the line."),
]
DropConstant = Annotated[
    bool, typer.Option("--drop-constant", help="Leave out columns that do not vary; samples have them again.")
]
Columns = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=KIND",
        help="How a column is taken, if not as it seems: category, integer, number, date, boolean or drop.",
    ),
]
OnlyNumbers = Annotated[
    bool, typer.Option("--numbers", help="Take all columns as numbers with a density, whatever they look like.")
]
Smoothing = Annotated[
    float, typer.Option(metavar="DELTA", help="For data without a density: model e^-δ x + √(1 - e^-2δ) noise.")
]
FineTune = Annotated[bool, typer.Option("--fine-tune/--no-fine-tune", help="Train all blocks together at the end.")]
FineTuneIterations = Annotated[
    int | None, typer.Option(help="Gradient steps of the fine-tuning, at most.", show_default="2000")
]
Baselines = Annotated[
    bool, typer.Option("--baselines/--no-baselines", help="Fit a Gaussian, mixtures and kernel densities too.")
]
Report = Annotated[bool, typer.Option("--report", help="Write report.html: generated beside real rows, on one page.")]
Target = Annotated[
    str | None, typer.Option(metavar="COLUMN", help="What the report predicts after training on generated rows.")
]


def main() -> None:
    """The entry point of `wprox`."""
    interruptions.listen()
    app(prog_name="wprox")


@app.command()
def fit(
    data: Data,
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Where the model and its pictures go.")],
    overwrite: Overwrite = False,
    integer: Integer = False,
    bounds: Bounds = None,
    drop_constant: DropConstant = False,
    column: Columns = None,
    numbers: OnlyNumbers = False,
    smoothing: Smoothing = 0.0,
    held_out: Annotated[float, typer.Option(metavar="FRACTION", help="Rows kept apart to report on.")] = 0.15,
    seed: Annotated[int, typer.Option(help="Of the split and the training: same seed, same model.")] = 0,
    blocks: Annotated[int | None, typer.Option(help="Blocks (JKO steps) at most.", show_default="8")] = None,
    step_size: Annotated[float | None, typer.Option(help="The step size γ of a block.", show_default="1")] = None,
    iterations: Annotated[int | None, typer.Option(help="Gradient steps a block, at most.", show_default="300")] = None,
    fine_tune: FineTune = True,
    fine_tune_iterations: FineTuneIterations = None,
    baselines: Baselines = True,
    report: Report = False,
    target: Target = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Processor cores to use.", show_default="all")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")] = False,
) -> None:
    """Fit a JKO flow to DATA and report its likelihood on rows it has not seen.

    Writes the model (model.safetensors, config.json), metrics.json, samples.png and trajectory.png to FOLDER, with
    --report also report.html. Ctrl-C ends the training early and keeps the blocks trained so far.
    """
    options = FitOptions(
        data=data,
        out=out,
        overwrite=overwrite,
        integer=integer,
        bounds=bounds,
        drop_constant=drop_constant,
        columns=None if numbers else tuple(column or ()),
        smoothing=smoothing,
        held_out=held_out,
        seed=seed,
        blocks=blocks,
        step_size=step_size,
        iterations=iterations,
        fine_tune=fine_tune,
        fine_tune_iterations=fine_tune_iterations,
        baselines=baselines,
        report=report,
        target=target,
        threads=threads,
        quiet=quiet,
    )
    with _plain_errors():
        fit_table(options)


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
        write_rows(out, flow.sample(n, seed), columns_of(flow, folder), overwrite)


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
        read = read_mixed if hasattr(flow, "columns_") else read_table
        log_prob = np.asarray(flow.log_prob(_matched(read(data), data, flow, folder)))
        if out is not None:
            write_table(out, log_prob[:, None], ["log_prob"], overwrite)
        why = "with entries of no kind that was seen" if hasattr(flow, "columns_") else "outside the bounds"
        typer.echo(_likelihood(log_prob, flow.preprocessing_.dim, why))


@app.command()
def info(folder: Folder) -> None:
    """Say what the model in FOLDER is: its data, blocks and held-out likelihood."""
    with _plain_errors():
        from rich.markup import escape
        from rich.table import Table as RichTable

        flow = JKOFlow.load(folder)
        metrics = read_metrics(folder)
        fitted = metrics.get("data", {})
        columns = columns_of(flow, folder)
        size = f"{counted(len(flow.blocks_), 'block')}, {counted(flow.preprocessing_.dim, 'dimension')}"
        typer.echo(f"JKO flow in {folder}: {size}")
        typer.echo(f"columns: {listed(columns)}")
        if hasattr(flow, "columns_"):
            typer.echo(str(flow.columns_))
        if fitted:
            typer.echo(f"fitted to {fitted['training_rows']:,} of the {fitted['rows']:,} rows of {fitted['file']}")
            if fitted["constant_columns"]:
                typer.echo(f"left out as constant: {listed(fitted['constant_columns'])}")
        if flow.interrupted_:
            typer.echo("the training was interrupted")
        table = RichTable("block", "step size", "validation NLL (nats)", "transport cost", "iterations", "seconds")
        for entry in flow.history_:
            table.add_row(
                escape(str(entry["block"])),
                f"{entry['step_size']:g}" if "step_size" in entry else "",
                f"{entry['held_out_nll']:.4f}",
                f"{entry['transport_cost']:.4g}" if "transport_cost" in entry else "",
                str(entry["iterations"]),
                f"{entry['seconds']:.1f}",
            )
        show(table)
        if metrics.get("held_out"):
            show(results_table(metrics["held_out"], fitted["held_out_rows"]))


def _likelihood(log_prob: np.ndarray, dim: int, why: str) -> str:
    """The NLL of rows in words, with that of the rows that have a density where others have none."""
    nll = -float(log_prob.mean())
    said = f"{len(log_prob):,} rows: NLL {nll:.4f} nats, {bits(nll, dim):.4f} bits/dim"
    possible = log_prob > -np.inf
    if possible.all():
        return said
    first = int(possible.argmin()) + 1
    said += (
        f"; {counted(int((~possible).sum()), 'row')} with density 0 ({why}, or too far out), the first is row {first}"
    )
    if not possible.any():
        return said
    nll = -float(log_prob[possible].mean())
    return said + f"; the others: NLL {nll:.4f} nats, {bits(nll, dim):.4f} bits/dim"


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Bad input ends the program with one sentence on stderr and exit code 2, Ctrl-C with exit code 130."""
    try:
        with interruptions.raised(), _plain_warnings():
            yield
    except (ValueError, TypeError, ImportError, OSError, MemoryError, InverseError, FloatingPointError) as error:
        interrupted = interruptions.received is not None  # an import that was says so in its own way
        typer.echo(SENTENCE if interrupted else f"wprox: {error}", err=True)
        raise typer.Exit(interruptions.exit_code if interrupted else BAD_INPUT) from None
    except KeyboardInterrupt:
        typer.echo(SENTENCE, err=True)
        raise typer.Exit(interruptions.exit_code) from None


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """What the library warns of is a sentence on stderr as well, without the line of code."""
    with warnings.catch_warnings():
        show = warnings.showwarning

        def say(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
            if category is UserWarning:
                typer.echo(f"wprox: {message}", err=True)
            else:
                show(message, category, *place, **more)

        warnings.showwarning = say
        yield


def _matched(table: Table | MixedTable, data: Path, flow: JKOFlow, folder: Path) -> Any:
    """The table's rows in the order of the flow's columns: by name where both have names, else as they stand."""
    columns, names = columns_of(flow, folder), names_of(flow, folder)
    dropped = len(set(flow.columns_.dropped) & set(table.columns)) if hasattr(flow, "columns_") else 0
    if len(table.columns) - dropped != len(columns):
        raise ValueError(
            f"{data} has {len(table.columns)} columns, the model was fitted to {len(columns)}: {listed(columns)}"
        )
    missing = [name for name in names if name not in table.columns] if names is not None and table.named else []
    if missing:
        raise ValueError(f"{data} has no column {listed(missing)}, which the model was fitted to")
    if isinstance(table, MixedTable):
        return rows_for(table, flow.columns_)
    if names is None or not table.named or table.columns == names:
        return table.values
    return table.values[:, [table.columns.index(name) for name in names]]
