"""Kill `wprox fit` before every change that it makes to the file system, and look at what is left.

    python tests/kill_points.py            every point, signal and scenario, with a training that is made up
    python tests/kill_points.py --real     with a true training and true pictures (minutes)

Each run is a fork of one warm process. An audit hook (PEP 578) sees each change under a temporary folder before it is
made; at the k-th, the process sends itself a signal. Then the folder must hold the old model whole, or the new one
whole, or (a new folder) nothing; Ctrl-C must end in its exit code and sentence; after the next run nothing is beside.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from wprox import JKOFlow
from wprox.app import cli, fitting
from wprox.app.tables import write_table

CHANGES = {"os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.link", "os.symlink", "os.truncate", "os.chmod"}
SCENARIOS = ("new", "overwrite", "in place")  # a folder with a file of the user's is written in place
FILES = {"model.safetensors", "config.json", "metrics.json", "samples.png", "trajectory.png", "report.html"}
NOTES = "notes.txt"
QUICK = [
    "--blocks",
    "1",
    "--iterations",
    "1",
    "--no-fine-tune",
    "--no-baselines",
    "--quiet",
    "--threads",
    "1",
    "--report",
]


def changes(event: str, arguments: tuple[object, ...], folder: str) -> bool:
    """Whether an audit event announces a change of the file system below a folder."""
    if event == "open":
        flags = arguments[2]
        if not isinstance(flags, int) or not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            return False
    elif event not in CHANGES:
        return False
    return any(str(argument).startswith(folder) for argument in arguments[:2])


class Runs:
    """Runs of `wprox fit` in forks of this process, in a folder of their own."""

    def __init__(self, folder: Path, real: bool = False) -> None:
        self.folder, self.real = folder, real
        self.data, self.model, self.stderr = folder / "run" / "data.csv", folder / "run" / "model", folder / "stderr"
        self.flows: dict[int, JKOFlow] = {}
        values = np.random.default_rng(0).normal(size=(60, 2))
        if not real:
            for seed in (1, 2):
                flow = JKOFlow(n_blocks=1, iterations=1, fine_tune=False, map_options={"hidden": [4]}, seed=seed)
                self.flows[seed] = flow.fit(torch.as_tensor(values))
        write_table(folder / "data.csv", values, ["east", "north"])

    def prepare(self, scenario: str) -> None:
        """The folder as a scenario finds it; the old model has seed 1."""
        old = self.folder / "old"
        shutil.rmtree(self.folder / "run", ignore_errors=True)
        self.data.parent.mkdir()
        shutil.copy(self.folder / "data.csv", self.data)
        if scenario == "new":
            return
        if not old.exists():
            assert self.fit(1) == 0, self.said
            shutil.copytree(self.model, old)
        else:
            shutil.copytree(old, self.model)
        if scenario == "in place":
            (self.model / NOTES).write_text("mine")

    @property
    def said(self) -> str:
        """What the last run wrote to stderr."""
        return self.stderr.read_text()

    def fit(self, seed: int, at: int | None = None, number: int = signal.SIGKILL, count: bool = False) -> int:
        """Fit with a seed; its exit code, or minus the signal that killed it, or the number of changes it made.

        Arguments:
            at: the change before which the process sends itself the signal `number`.
            count: return the number of changes.
        """
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.dup2(os.open(self.stderr, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
            sys.stderr = os.fdopen(2, "w")  # pytest has another one
            self._child(seed, at, number, writer)
        os.close(writer)
        with os.fdopen(reader) as pipe:
            seen = pipe.read()
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if not count:
            return code
        assert code == 0, self.said
        return int(seen)

    def _child(self, seed: int, at: int | None, number: int, writer: int) -> None:
        seen, folder, pid = 0, str(self.folder / "run"), os.getpid()

        def hook(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal seen
            if os.getpid() == pid and changes(event, arguments, folder):
                seen += 1
                if seen == at:
                    os.kill(pid, number)

        if not self.real:
            self._make_up(seed)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a test run in the background inherits it as ignored
        overwrite = ["--overwrite"] if self.model.exists() else []
        sys.argv = ["wprox", "fit", str(self.data), "--out", str(self.model), "--seed", str(seed), *QUICK, *overwrite]
        sys.addaudithook(hook)
        code = 70
        try:
            cli.main()
        except SystemExit as end:
            code = int(end.code or 0) if isinstance(end.code, int | None) else 70
        finally:
            os.write(writer, str(seen).encode())
            sys.stderr.flush()
            os._exit(code)

    def _make_up(self, seed: int) -> None:
        """A flow that is trained already, and pictures that hold its seed."""
        trained = self.flows[seed]

        class Picture:
            def savefig(self, file: Path) -> None:
                file.write_text(str(seed))

        class Report:
            def page(self) -> str:
                return str(seed)

            def numbers(self) -> dict[str, int]:
                return {}

        def fit(self: JKOFlow, X: torch.Tensor, validation: torch.Tensor | None = None) -> JKOFlow:
            vars(self).update({name: value for name, value in vars(trained).items() if name.endswith("_")})
            self._dtype = trained._dtype
            return self

        JKOFlow.fit = fit  # type: ignore[assignment]
        fitting._pictures = lambda *_: {name: Picture() for name in ("samples.png", "trajectory.png")}  # type: ignore
        fitting._report = lambda *_: Report()  # type: ignore


def held(runs: Runs) -> int | None:
    """The seed of the model that the folder holds whole, `None` where there is no folder.

    Raises:
        AssertionError: where it holds anything else.
    """
    model = runs.model
    if not model.exists():
        return None
    seed = JKOFlow.load(model).seed
    place = model / ".wprox-saved" if (model / ".wprox-saved").exists() else model
    assert set(os.listdir(place)) - {".wprox-saving", NOTES} == FILES, os.listdir(place)
    assert json.loads((place / "metrics.json").read_text())["seed"] == seed
    if not runs.real:
        assert {(place / name).read_text() for name in ("samples.png", "trajectory.png", "report.html")} == {str(seed)}
    return int(seed)


def check_point(runs: Runs, scenario: str, at: int, number: int) -> None:
    """Send a signal before one change, look at what is left, and run again.

    Raises:
        AssertionError: for anything that must not be.
    """
    runs.prepare(scenario)
    code, before = runs.fit(2, at, number), {"new": None}.get(scenario, 1)
    assert held(runs) in (before, 2)
    if number == signal.SIGKILL:
        assert code == -signal.SIGKILL, (code, runs.said)
    else:
        assert code == 128 + number, (code, runs.said)
        assert runs.said.splitlines()[-1].startswith("wprox: interrupted"), runs.said
        assert "Traceback" not in runs.said
        assert set(os.listdir(runs.data.parent)) <= {"data.csv", "model"}  # nothing waits for a next run
    assert runs.fit(2) == 0, runs.said
    assert held(runs) == 2
    assert sorted(os.listdir(runs.data.parent)) == ["data.csv", "model"]
    assert set(os.listdir(runs.model)) == FILES | ({NOTES} if scenario == "in place" else set())


def points(runs: Runs, scenario: str) -> int:
    """How many changes a run makes."""
    runs.prepare(scenario)
    return runs.fit(2, count=True)


def check_all(
    runs: Runs, every: int = 1, report: Callable[[str], None] = lambda line: None
) -> Iterator[tuple[str, int, str]]:
    """Every `every`-th point of every scenario, with Ctrl-C and with the end that nothing can be done about.

    Yields:
        The scenario, the point and what was wrong, where something was.
    """
    for scenario in SCENARIOS:
        n = points(runs, scenario)
        report(f"{scenario}: {n} changes of the file system")
        for number in (signal.SIGKILL, signal.SIGINT):
            for at in range(1, n + 1, every):
                try:
                    check_point(runs, scenario, at, number)
                except AssertionError as error:
                    yield scenario, at, f"{signal.Signals(number).name}: {error!r}"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--real", action="store_true", help="train and draw truly")
    parser.add_argument("--every", type=int, default=1, metavar="K", help="every K-th point only")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        wrong = 0
        for scenario, at, what in check_all(Runs(Path(folder), options.real), options.every, print):
            wrong += 1
            print(f"WRONG, {scenario}, before change {at}: {what}")
    print(f"{wrong} points were wrong")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
