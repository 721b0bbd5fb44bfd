"""Files and folders that change in one moment: claimed by one process at a time, written beside, moved into place.

What stands where at any moment, for a folder `model` that a claim writes:

- new: all is written into `.model.wprox/`, beside it, and moved into place by one rename;
- in place of a folder that holds nothing else: the two folders change places in one moment (Linux: renameat2);
- else (other files in it, a mount point, a file system that cannot exchange, a working directory inside it): all is
  written into `model/.wprox-saving`, which becomes `model/.wprox-saved` by one rename, from where the files then take
  their places one by one. As long as there is a `.wprox-saved`, it is what the folder holds (`current`).

What a killed process left, in `.model.wprox` or inside, is finished or removed by the next claim.
"""

from __future__ import annotations

import ctypes
import errno
import glob
import hashlib
import os
import shutil
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

try:
    import fcntl
except ImportError:  # Windows, where two processes are not told apart
    fcntl = None  # type: ignore[assignment]

SAVING, SAVED, INSIDE = ".wprox-saving", ".wprox-saved", ".wprox"
LONGEST_NAME = 240  # bytes, of 255 that most file systems allow
TRIES = 50  # to read a folder that is replaced over and over
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of linux/fcntl.h and linux/fs.h


_Read = TypeVar("_Read")


class Claim:
    """The right to write a file or a folder, which one process has, and a folder for what is not ready.

    The system locks that folder for the process, however that ends: what a killed one left is found and removed.

    Arguments:
        path: the file or folder. The folders above it are made where they are missing.

    Attributes:
        path: the same, absolute, without symbolic links.
        work: an empty folder beside it; inside it, where its parent cannot be written to.

    Raises:
        ValueError: where another process holds it, and where nothing can be written there.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(os.path.realpath(path))
        self._name = path
        self._made = [folder for folder in self.path.parents if not folder.exists()]  # the innermost first
        self._handle: int | None = None
        self._taken = False
        self.work = self.path.parent / _work_name(self.path.name)
        if self.path.is_symlink():
            raise ValueError(f"{path} is a symbolic link that leads back to itself; remove it or choose another name")
        try:
            self._lock()
            self._check_writable()
        except BlockingIOError:
            raise ValueError(
                f"{path} is being written by another process; wait until it has ended, or choose another name"
            ) from None
        except OSError as error:
            self.release()
            nearest = next(folder for folder in (self.path, *self.path.parents) if folder.exists())
            if nearest.is_file():
                raise ValueError(f"{path} cannot be made: {nearest} is a file, not a folder; choose another") from None
            raise ValueError(
                f"{path} cannot be made: {nearest} is not a folder that you may write to ({error.strerror or error})"
            ) from None

    def _lock(self) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._handle = _lock(self.work)
        except BlockingIOError:
            raise
        except OSError:  # the folder above cannot be written to
            if not self.path.is_dir():
                raise
            self.work = self.path / INSIDE
            self._handle = _lock(self.work)
        self._taken = True
        _empty(self.work)

    def _check_writable(self) -> None:
        """Write something, which is the only way to know that it can be done."""
        for folder in (self.work, self.path) if self.path.is_dir() else (self.work,):
            probe = folder / SAVING
            shutil.rmtree(probe, ignore_errors=True)
            probe.mkdir()
            (probe / "probe").write_bytes(b"written")
            shutil.rmtree(probe)

    def release(self) -> None:
        """Give it up, and remove what is beside it."""
        if self._taken:
            shutil.rmtree(self.work, ignore_errors=True)
        if self._handle is not None:
            os.close(self._handle)
        if not self.path.exists():
            for folder in self._made:
                try:
                    folder.rmdir()
                except OSError:
                    return

    def write_folder(self, write: Callable[[Path], None], own: Collection[str] = (), overwrite: bool = False) -> None:
        """Make the folder, or replace files of it, in one moment.

        Arguments:
            write: makes a folder of the name that it is given, with the files in it.
            own: names of files that belong to what is written, and do not stay where it is written without them.
            overwrite: whether the folder may hold something.

        Raises:
            FileExistsError: where it holds something that it may not.
        """
        new = self.work / "new"
        shutil.rmtree(new, ignore_errors=True)
        self.work.mkdir(exist_ok=True)
        write(new)
        names = {file.name for file in new.iterdir()}
        for name in names:
            _flush(new / name)
        if not self.path.exists():
            os.rename(new, self.path)
            return
        if contents(self.path) and not overwrite:
            raise FileExistsError(errno.EEXIST, "it is there already", str(self._name))
        settle(self.path)
        if contents(self.path) <= names | set(own) and not _is_working_directory(self.path):
            try:
                shutil.copymode(self.path, new)
                _exchange(new, self.path)
                return
            except OSError:  # which says that this system or file system cannot
                pass
        self._write_inside(new, set(own) - names)

    def _write_inside(self, new: Path, outdated: Collection[str]) -> None:
        saving = self.path / SAVING
        shutil.copytree(new, saving, copy_function=_link)
        os.rename(saving, self.path / SAVED)
        for name in outdated:
            (self.path / name).unlink(missing_ok=True)
        settle(self.path)

    def replace(self, name: str, content: bytes) -> None:
        """Replace one file of the folder in one moment."""
        try:
            (self.work / name).write_bytes(content)
            os.replace(self.work / name, self.path / name)
        except OSError:  # the work folder is on another file system, as beside a mount point
            (self.path / SAVING).mkdir(exist_ok=True)
            (self.path / SAVING / name).write_bytes(content)
            os.replace(self.path / SAVING / name, self.path / name)
            (self.path / SAVING).rmdir()


def _work_name(name: str) -> str:
    """The name of the work folder of a file or folder: one that says whose it is, unless that were too long a name."""
    if len(os.fsencode(name)) > LONGEST_NAME:
        name = hashlib.sha256(os.fsencode(name)).hexdigest()[:32]
    return f".{name}.wprox"


def clean_beside(path: Path, ending: str) -> None:
    """Remove the work folders of files and folders `path` + ending, numbered or not, that killed processes left."""
    for work in path.parent.glob(glob.escape(f".{path.name}{ending}") + "*.wprox"):
        with suppress(OSError, ValueError):  # where it is another process's, or not ours to remove
            Claim(path.parent / work.name[1:].removesuffix(".wprox")).release()


@contextmanager
def claimed(path: str | Path) -> Iterator[Claim]:
    """A claim that is given up when the block ends, however it ends."""
    claim = Claim(path)
    try:
        yield claim
    finally:
        claim.release()


def contents(folder: Path) -> set[str]:
    """The names in a folder, without what a killed process left unfinished."""
    return set(os.listdir(folder)) - {SAVING, INSIDE}


def current(folder: Path) -> Path:
    """Where the files of a folder are: in it, or where a save inside it was killed before they all were in place."""
    return folder / SAVED if (folder / SAVED).is_dir() else folder


def read_whole(folder: Path, names: Collection[str], read: Callable[[Path], _Read]) -> _Read:
    """What `read` makes of the files of these names, given the folder where they are.

    Where it fails and they have been replaced meanwhile, it may have seen some of before and some of after, or none:
    then it reads again. So what it raises is about files that stay.
    """
    for k in range(TRIES):
        place = current(folder)
        before = _versions(place, names)
        try:
            return read(place)
        except (ValueError, OSError):
            if k == TRIES - 1 or (place == current(folder) and before == _versions(place, names)):
                raise
    raise AssertionError  # not reached


def _versions(folder: Path, names: Collection[str]) -> list[tuple[int, int, int] | None]:
    """What tells files of these names from others that take their places; `None` for those that are not there."""
    versions: list[tuple[int, int, int] | None] = []
    for name in names:
        try:
            found = os.stat(folder / name)
            versions.append((found.st_ino, found.st_mtime_ns, found.st_size))
        except OSError:
            versions.append(None)
    return versions


def settle(folder: Path) -> None:
    """Finish what a killed save has left inside a folder, or remove it where it was not whole."""
    saving, saved = folder / SAVING, folder / SAVED
    shutil.rmtree(saving, ignore_errors=True)
    if not saved.is_dir():
        return
    saving.mkdir()
    for file in sorted(saved.iterdir()):
        _link(file, saving / file.name)
        os.replace(saving / file.name, folder / file.name)
    shutil.rmtree(saving)  # with names that stay where both were of one file already, as rename(2) has it
    os.rename(saved, saving)  # so that half of it is never taken for all
    shutil.rmtree(saving)


def _link(source: str | Path, target: str | Path) -> None:
    """The same file under a second name, or a copy where the file system has no such thing."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _lock(folder: Path) -> int | None:
    """A lock on a folder, which is made where it is missing; the system gives it up with the process.

    Raises:
        BlockingIOError: where another process has it.
    """
    while True:
        folder.mkdir(exist_ok=True)
        if fcntl is None:
            return None
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            raise
        except OSError:  # a file system without locks
            return handle
        try:
            if os.path.samestat(os.fstat(handle), os.stat(folder)):
                return handle
        except FileNotFoundError:  # the process that had it has removed the folder meanwhile
            pass
        os.close(handle)


def _empty(folder: Path) -> None:
    for entry in os.scandir(folder):
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path)
        else:
            os.remove(entry.path)


def _flush(file: Path) -> None:
    """Have the system write a file out, so that a power failure after the rename does not find it empty."""
    handle = os.open(file, os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _is_working_directory(folder: Path) -> bool:
    """Whether this process, and likely the shell that started it, works in the folder or below it."""
    try:
        return Path.cwd().is_relative_to(folder)
    except OSError:  # a working directory that is gone
        return False


def _exchange(first: Path, second: Path) -> None:
    """Let two folders change places in one moment.

    Raises:
        OSError: where the system or the file system cannot.
    """
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError, TypeError):
        raise OSError(errno.ENOSYS, "this system cannot exchange folders") from None
    renameat2.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
    sys.audit("os.rename", str(first), str(second), -1, -1)  # as os.rename says it
    if renameat2(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(first), None, str(second))
