"""Damage files by a seeded generator, and read them: a sentence that names the file, or numbers that can be used.

    python tests/mutations.py                       2,000 of each kind
    python tests/mutations.py --kind .npy --number 500

Each file is read in a fork of one warm process, whose peak memory and time are taken. Of model folders, bytes of both
files are changed, and values of config.json and tensors, these with a checksum that fits; "columns" are those of a
table of mixed columns.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.torch
import torch

from wprox import JKOFlow
from wprox.app.tables import read_table, write_table
from wprox.models.folders import checksum

KINDS = ("model", "columns", ".npy", ".parquet", ".csv")
MEMORY, SECONDS = 1e9, 20.0
READ, REFUSED, UNNAMED, RAISED = range(4)
ODD = [
    None, True, False, 0, -1, 1, 2, 3, 7, 10**6, 10**9, 10**18, 10**30, 10**4000, 0.5, -0.0, 1e308, float("nan"),
    float("inf"), float("-inf"), "", "x", "\ud800", "[/x]", "SplineMap", "float32", [], [1], {}, {"dim": 1},
    [10**6] * 50,
]  # fmt: skip


class Outcome(NamedTuple):
    """What came of reading one damaged file."""

    code: int  # READ, REFUSED, UNNAMED (refused without the name of the file), RAISED, or minus a signal
    said: str
    memory: float  # bytes that the fork had at most
    seconds: float

    @property
    def right(self) -> bool:
        return self.code in (READ, REFUSED) and self.memory < MEMORY and self.seconds < SECONDS


def damaged(content: bytes, random: random.Random) -> bytes:
    """Bits flipped, bytes replaced, left out, put in or repeated, and ends cut off."""
    result = bytearray(content)
    for _ in range(random.choice([1, 1, 1, 2, 5])):
        at, length = random.randrange(len(result) + 1), random.randrange(1, 20)
        kind = random.choice(["flip", "flip", "byte", "delete", "insert", "repeat", "cut"])
        if kind == "flip" and at < len(result):
            result[at] ^= 1 << random.randrange(8)
        elif kind == "byte" and at < len(result):
            result[at] = random.randrange(256)
        elif kind == "delete":
            del result[at : at + length]
        elif kind == "insert":
            result[at:at] = random.randbytes(length)
        elif kind == "repeat":
            result[at:at] = result[at : at + length]
        elif kind == "cut":
            del result[max(at, 1) :]
    return bytes(result)


def _paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The places in a JSON value."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path] * bool(path) + [place for key, entry in entries for place in _paths(entry, (*path, key))]


def _change_config(config: dict[str, Any], random: random.Random) -> None:
    *way, last = random.choice(_paths(config))
    parent: Any = config
    for key in way:
        parent = parent[key]
    kind = random.choice(["odd", "odd", "odd", "near", "delete", "twice"])
    if kind == "delete":
        del parent[last]
    elif kind == "twice" and isinstance(parent, list):
        parent.append(parent[last])
    elif kind == "near" and type(parent[last]) in (int, float):
        parent[last] = random.choice([parent[last] + 1, -parent[last], 10 * parent[last], parent[last] - 1])
    else:
        parent[last] = random.choice(ODD)


def _change_tensors(tensors: dict[str, torch.Tensor], random: random.Random) -> None:
    name = random.choice(sorted(tensors))
    tensor = tensors[name]
    kind = random.choice(["odd", "odd", "delete", "shape", "type", "name", "empty"])
    if kind == "odd" and tensor.numel():
        values = [float("nan"), float("inf"), -1.0, 0.0, 1e30] if tensor.is_floating_point() else [-1, 0, 1, 7, 2**60]
        tensors[name] = tensor.clone()
        tensors[name].view(-1)[random.randrange(tensor.numel())] = random.choice(values)
    elif kind == "shape":
        tensors[name] = torch.cat([tensor.reshape(-1), tensor.reshape(-1)[:1]])
    elif kind == "type":
        tensors[name] = tensor.to(random.choice([torch.int64, torch.bool, torch.float16, torch.complex64]))
    elif kind == "empty":
        tensors[name] = tensor.reshape(-1)[:0]
    else:
        tensor = tensors.pop(name)
        if kind == "name":
            tensors[name + "x"] = tensor


def damage_model(folder: Path, random: random.Random) -> None:
    """Change a model folder: bytes of a file, or what the files say, with a checksum that fits."""
    config_file, tensors_file = folder / "config.json", folder / "model.safetensors"
    kind = random.choice(["bytes", "config", "config", "tensors", "nested"])
    if kind == "bytes":
        file = random.choice([config_file, tensors_file])
        file.write_bytes(damaged(file.read_bytes(), random))
        return
    if kind == "nested":
        file, depth = config_file, random.choice([10, 1000, 100_000])
        opening = random.choice(["[", '{"a":'])
        text = opening * depth + "1" + {"[": "]"}.get(opening, "}") * depth
        text = random.choice([text, file.read_text().replace("null", text, 1), "9" * 5000])
        file.write_text(text)
        return
    config, tensors = json.loads(config_file.read_text()), safetensors.torch.load_file(tensors_file)
    for _ in range(random.choice([1, 1, 2])):
        if kind == "config":
            _change_config(config, random)
        else:
            _change_tensors(tensors, random)
    packed = safetensors.torch.save(tensors)
    if isinstance(config.get("format"), int):
        config["sha256"] = checksum(config, packed)
    tensors_file.write_bytes(packed)
    config_file.write_text(json.dumps(config))


def use_model(folder: Path) -> None:
    """Load a flow and use it: what was read right can be used."""
    flow = JKOFlow.load(folder)
    mixed = hasattr(flow, "columns_")
    rows = flow.sample(3, seed=0) if mixed else torch.full((3, flow.n_features_in_), 0.25, dtype=torch.float64)
    try:
        assert flow.log_prob(rows).shape == (3,)
        flow.transform(rows)
    except ValueError as error:
        # which other bounds, and frequencies that leave a level no room, may say rightly
        if "outside their bounds" not in str(error) and "density is 0" not in str(error):
            raise


def outcome_of(read: Callable[[Path], Any], path: Path) -> tuple[int, str]:
    """How reading a path ends, and what was said."""
    try:
        read(path)
    except ValueError as error:
        return (REFUSED if str(path) in str(error) else UNNAMED), str(error)
    except Exception as error:
        return RAISED, f"{type(error).__name__}: {error}"
    return READ, ""


def read_in_a_fork(read: Callable[[Path], Any], path: Path) -> Outcome:
    """What comes of reading a path, and what it takes."""
    reader, writer = os.pipe()
    start, child = time.perf_counter(), os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_CPU, (int(SECONDS) + 10,) * 2)
        code, said = outcome_of(read, path)
        os.write(writer, said.encode(errors="replace")[:1000])
        os._exit(code)
    os.close(writer)
    with os.fdopen(reader, errors="replace") as pipe:
        said = pipe.read()
    _, status, used = os.wait4(child, 0)
    return Outcome(os.waitstatus_to_exitcode(status), said, 1024.0 * used.ru_maxrss, time.perf_counter() - start)


def mixed_rows(values: np.ndarray) -> Any:
    """A data frame with columns of all kinds that depend on numbers, (60, 2)."""
    from pandas import DataFrame

    x, y = values.T
    gap = y > 1
    columns = {"x": x, "gapped": np.where(gap, np.nan, y), "whole": np.round(20 * x), "cents": np.round(x, 1)}
    columns |= {"town": np.where(x > 0, "a", "b"), "code": np.where(x > 0, 3, 7), "always": "k", "again": x}
    columns |= {
        "paid": np.where(gap, np.nan, np.exp(x)),
        "day": np.datetime64("2020-01-01", "s") + np.arange(60) * 86_400,
    }
    return DataFrame(columns)


class Mutations:
    """Damaged copies of files of one kind, in a folder.

    Arguments:
        kind: "model", or the ending of a table.
    """

    def __init__(self, kind: str, folder: Path, seed: int = 0) -> None:
        self.kind, self.random = kind, random.Random(f"{kind} {seed}")
        self.good, self.path = folder / f"good{kind}", folder / f"damaged{kind}"
        values = np.random.default_rng(0).standard_normal((60, 2))
        if kind in ("model", "columns"):
            options: dict[str, Any] = {"map_options": {"hidden": [4], "transforms": 1}}
            options |= {"columns": "auto"} if kind == "columns" else {"bounds": (-9.0, 9.0)}
            rows = mixed_rows(values) if kind == "columns" else values
            JKOFlow(n_blocks=2, iterations=1, fine_tune_iterations=1, **options).fit(rows).save(self.good)
        else:
            write_table(self.good, values, ["east", "north"])

    def make_next(self) -> Callable[[Path], Any]:
        """Write the next one to `path`; returns what reads it."""
        if self.kind[0] == ".":
            self.path.write_bytes(damaged(self.good.read_bytes(), self.random))
            return read_table
        shutil.rmtree(self.path, ignore_errors=True)
        shutil.copytree(self.good, self.path)
        damage_model(self.path, self.random)
        return use_model


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kind", choices=KINDS, action="append", help="of file; all by default")
    parser.add_argument("--number", type=int, default=2000, help="of damaged files of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="where what was read wrongly is kept")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    wrong = 0
    for kind in options.kind or KINDS:
        with tempfile.TemporaryDirectory() as folder:
            mutations, outcomes = Mutations(kind, Path(folder), options.seed), []
            for k in range(options.number):
                outcomes.append(outcome := read_in_a_fork(mutations.make_next(), mutations.path))
                if not outcome.right:
                    wrong += 1
                    print(f"WRONG, {kind} {k}: {outcome}")
                    if options.keep:
                        copy = shutil.copytree if kind == "model" else shutil.copy
                        copy(mutations.path, options.keep / f"{k}{kind}")
        counts = Counter(outcome.code for outcome in outcomes)
        bad = sum(not outcome.right for outcome in outcomes)
        print(
            f"{kind}: {counts[REFUSED]} refused, {counts[READ]} read, {bad} wrong; at most "
            f"{max(o.memory for o in outcomes) / 1e6:.0f} MB and {max(o.seconds for o in outcomes):.1f} s"
        )
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
