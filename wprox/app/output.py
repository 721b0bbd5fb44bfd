"""The folder that a fit writes: taken before the training, written once after it, elsewhere where it has to be."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Collection
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from wprox._interruptions import interruptions
from wprox._writing import LONGEST_NAME, Claim, clean_beside, contents, current
from wprox.models.folders import CONFIG

INTERRUPTED, ELSEWHERE = ".interrupted", ".saved"  # endings of what is not written where it was meant to be


class FitFolder:
    """A folder for a model, which no other fit can take meanwhile. Signals wait while it is written.

    Arguments:
        out: the folder.
        overwrite: whether it may hold something.
        own: the names of the files that a fit writes.

    Attributes:
        place: where the model was written, `None` before.
        trouble: why that is not `out`, where it could not be written; else empty.

    Raises:
        ValueError: (on entering) for a folder that cannot be used, which is found out by writing into it.
    """

    def __init__(self, out: Path, overwrite: bool, own: Collection[str]) -> None:
        self.out, self.overwrite, self.own = out, overwrite, own
        self.place: Path | None = None
        self.trouble = ""
        self._claims: list[Claim] = []

    def __enter__(self) -> FitFolder:
        with ExitStack() as stack:
            stack.callback(self._release)
            with interruptions.held():
                self._check()
                self._claims.append(Claim(self.out))
                for ending in (INTERRUPTED, ELSEWHERE):
                    clean_beside(self._claims[0].path, ending)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stack.close()

    def _release(self) -> None:
        with interruptions.held():
            for claim in self._claims:
                claim.release()

    def _check(self) -> None:
        if self.out.exists() and not self.out.is_dir():
            raise ValueError(f"{self.out} is a file, not a folder; choose another name")
        if self.out.is_dir() and contents(self.out) and not self.overwrite:
            raise ValueError(f"{self.out} exists already and is not empty; choose another folder or add --overwrite")

    @property
    def has_model(self) -> bool:
        """Whether a model is there."""
        return (current(self.out) / CONFIG).is_file()

    def write(self, write: Callable[[Path], None], finished: bool) -> None:
        """Write the model, in one moment; beside a model that is there, where this one is not finished.

        Arguments:
            write: makes a folder of the name that it is given, with the files in it.
            finished: whether the training was neither interrupted nor failed.

        Raises:
            OSError: where nothing can be written anywhere.
        """
        with interruptions.held():
            if not finished and self.has_model:
                self._write_elsewhere(write, INTERRUPTED)
                return
            try:
                self._claims[0].write_folder(write, self.own, self.overwrite)
                self.place = self.out
            except OSError as error:
                self.trouble = error.strerror or str(error)
                self._write_elsewhere(write, ELSEWHERE)

    def _write_elsewhere(self, write: Callable[[Path], None], ending: str) -> None:
        trouble: Exception | None = None
        kept = LONGEST_NAME - len(ending) - 4  # and a number
        name = os.fsencode(self._claims[0].path.name)[:kept].decode(errors="ignore")
        for parent in (lambda: self._claims[0].path.parent, Path.cwd, lambda: Path(tempfile.gettempdir())):
            try:
                claim = Claim(_free(parent() / f"{name}{ending}"))
                self._claims.append(claim)
                claim.write_folder(write, self.own)
                self.place = claim.path
                return
            except (OSError, ValueError) as error:
                trouble = error
        raise OSError(f"the model could not be written anywhere: {trouble}")

    def replace(self, name: str, text: str) -> None:
        """Replace one file of what was written."""
        with interruptions.held():
            self._claims[-1].replace(name, text.encode())


def _free(path: Path) -> Path:
    """The path, or the first of path-2, path-3, … that is not there."""
    candidate, k = path, 2
    while candidate.exists():
        candidate, k = path.with_name(f"{path.name}-{k}"), k + 1
    return candidate
