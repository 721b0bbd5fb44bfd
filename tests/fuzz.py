"""Calls of the public interface with one wrong argument each: every one ends in a sentence, or in a right result.

    python tests/fuzz.py --seconds 600 --seed 1

`calls()` holds, for each public function and class, a call that works; `HOSTILE` what is put in the place of one of
its arguments; `judge` says what came of it. The short run of the tests is in test_fuzz.py.
"""

from __future__ import annotations

import argparse
import collections
import random
import resource
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from fuzz_calls import Call, functional_calls, kernel_calls, measure_calls, solver_calls
from fuzz_hostile import HOSTILE
from fuzz_models import dataset_calls, law_calls, map_calls, metric_calls, model_calls, theory_calls
from fuzz_verdict import Outcome, judge


@dataclass
class Tally:
    """Counts of verdicts, and the calls that are at fault."""

    counts: collections.Counter = field(default_factory=collections.Counter)
    faults: list[tuple[str, str, str, Outcome]] = field(default_factory=list)

    def add(self, call: str, argument: str, hostile: str, outcome: Outcome) -> None:
        self.counts[outcome.verdict] += 1
        if outcome.verdict not in ("refused", "works"):
            self.faults.append((call, argument, hostile, outcome))


def cases(slow: bool = True) -> list[tuple[str, str, str]]:
    """All triples of a call, one of its arguments and something hostile."""
    return [
        (name, argument, hostile)
        for name, call in calls().items()
        if slow or not call.is_slow
        for argument in call.arguments
        if argument not in call.free
        for hostile in HOSTILE
    ]


@lru_cache(maxsize=1)
def calls() -> dict[str, Call]:
    """All calls, by name."""
    tables = (
        measure_calls,
        functional_calls,
        kernel_calls,
        solver_calls,
        map_calls,
        metric_calls,
        theory_calls,
        dataset_calls,
        law_calls,
        model_calls,
    )
    return {name: call for table in tables for name, call in table().items()}


def run(seconds: float, seed: int, only: str = "", slow: bool = True, limit: float = 5.0) -> Tally:
    """Judge cases in random order, for so many seconds or until there are no more."""
    todo = [case for case in cases(slow) if only in case[0]]
    random.Random(seed).shuffle(todo)
    tally, start = Tally(), time.perf_counter()
    for name, argument, hostile in _until(todo, start + seconds):
        torch.manual_seed(0)
        tally.add(name, argument, hostile, judge(calls()[name], argument, hostile, limit))
    return tally


def _until(todo: list[tuple[str, str, str]], end: float) -> Iterator[tuple[str, str, str]]:
    for case in todo:
        if time.perf_counter() > end:
            return
        yield case


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="calls whose name holds this")
    parser.add_argument("--quick", action="store_true", help="leave slow calls out")
    parser.add_argument("--limit", type=float, default=5.0, help="seconds a call")
    parser.add_argument("--memory", type=float, default=8.0, help="GiB of address space")
    options = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (int(options.memory * 2**30), resource.RLIM_INFINITY))
    torch.set_num_threads(1)
    tally = run(options.seconds, options.seed, options.only, not options.quick, options.limit)
    for name, argument, hostile, outcome in sorted(tally.faults, key=lambda fault: (fault[3].verdict, fault[0])):
        print(f"{outcome.verdict}: {name}, {argument} = {hostile}: {outcome.note.splitlines()[0][:150]}")
    print(f"{tally.counts.total()} of {len(cases())} calls:", dict(tally.counts))
    raise SystemExit(1 if tally.faults else 0)


if __name__ == "__main__":
    main()
