"""Ctrl-C and its kin in the command line, from its first import on: a sentence and an exit code, never a traceback.

`wprox` imports this module first. In a process that is the command line, signals are listened to from there: until a
command runs, and after it, they end the process at once; while it runs they are raised as `KeyboardInterrupt`.
"""

from __future__ import annotations

import os
import signal
import sys
import sysconfig
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
SENTENCE = "wprox: interrupted"


class Interruptions:
    """What this process does when it is told to end.

    Attributes:
        received: the last signal, `None` where there was none.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._raising, self._held, self._waiting = False, 0, False

    def listen(self) -> None:
        """Take the signals, but for those that the process was started to ignore."""
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self._raising:
            os.write(2, f"{SENTENCE}\n".encode())
            os._exit(128 + number)
        self.received = number
        if self._held:
            self._waiting = True
        else:
            raise KeyboardInterrupt

    @property
    def exit_code(self) -> int:
        """Of a process that was interrupted, as shells have it: 130 for Ctrl-C, 143 for SIGTERM."""
        return 128 + (self.received or signal.SIGINT)

    @contextmanager
    def raised(self) -> Iterator[None]:
        """Inside, signals raise `KeyboardInterrupt`."""
        handlers = {number: signal.getsignal(number) for number in SIGNALS}
        self.received, self._waiting, self._raising = None, False, True
        self.listen()
        try:
            yield
        finally:
            self._raising = False
            if threading.current_thread() is threading.main_thread():
                for number, handler in handlers.items():
                    if handler is not None:  # None is one that Python did not set
                        signal.signal(number, handler)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Inside, signals wait for the end of the block: where half of what it does would be worse than none."""
        self._held += 1
        try:
            yield
        finally:
            self._held -= 1
        if self._waiting and not self._held:
            self._waiting = False
            raise KeyboardInterrupt


def is_command_line() -> bool:
    """Whether this process was started as `wprox` or `python -m wprox`, as far as can be told in its first import."""
    started = sys.argv[0] if getattr(sys, "argv", None) else ""
    if started == "-m":  # while Python looks for the module, whose name comes just before its arguments
        return sys.orig_argv[-len(sys.argv)] in ("wprox", "-mwprox")
    folder, name = os.path.split(os.path.realpath(started))
    return name in ("wprox", "wprox.exe") and folder in _script_folders()


def _script_folders() -> list[str]:
    """Where `pip install` puts the scripts of this Python: its own folder, and that of the user."""
    schemes = sysconfig.get_default_scheme(), sysconfig.get_preferred_scheme("user")
    return [os.path.realpath(sysconfig.get_path("scripts", scheme)) for scheme in schemes]


interruptions = Interruptions()
if is_command_line():
    interruptions.listen()
