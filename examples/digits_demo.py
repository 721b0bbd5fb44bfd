"""Handwritten digits through the command line, as a user would run it: fit, compare, generate (`make demo`).

scikit-learn's 1,797 digits are 8 × 8 pixels with whole numbers from 0 to 16. The script writes them to a table, runs
`wprox fit` and `wprox sample` on it, and draws a sheet of generated digits beside real ones.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from sklearn.datasets import load_digits

from wprox.app.tables import read_table, write_table

FOLDER = Path("demo")
ABOUT_THE_DATA = ["--integer", "--bounds", "0", "16", "--drop-constant"]
TRAINING = ["--threads", "1"]  # the operations are too small for more to pay
ACROSS, DOWN = 12, 8


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    digits = load_digits().data
    names = [f"pixel_{row}_{column}" for row in range(8) for column in range(8)]
    table, model, generated = FOLDER / "digits.csv", FOLDER / "model", FOLDER / "generated.csv"
    write_table(table, digits, names, overwrite=True)

    wprox("fit", str(table), "--out", str(model), "--overwrite", *ABOUT_THE_DATA, *TRAINING)
    count = ACROSS * DOWN
    wprox("sample", str(model), "-n", str(count), "--out", str(generated), "--seed", "0", "--overwrite")

    real = digits[np.random.default_rng(0).choice(len(digits), count, replace=False)]
    sheet = FOLDER / "digits.png"
    draw(real, read_table(generated).values, sheet)
    print(f"\nLook at {sheet} (generated digits beside real ones),")
    print(f"{model}/samples.png, {model}/trajectory.png and {model}/metrics.json")


def wprox(*arguments: str) -> None:
    """Run the command line that is installed beside this Python."""
    print("\n$ wprox " + shlex.join(arguments), flush=True)
    result = subprocess.run([Path(sys.executable).with_name("wprox"), *arguments])
    if result.returncode:
        raise SystemExit(result.returncode)


def draw(real: np.ndarray, generated: np.ndarray, file: Path) -> None:
    """Two sheets of digits, side by side."""
    figure = Figure(figsize=(2 * ACROSS * 0.45 + 0.6, DOWN * 0.45 + 0.6), layout="constrained", dpi=120)
    for k, (title, images) in enumerate((("real digits", real), ("generated digits", generated))):
        ax = figure.add_subplot(1, 2, k + 1)
        rows = np.pad(images.reshape(DOWN, ACROSS, 8, 8), ((0, 0), (0, 0), (1, 1), (1, 1)))
        ax.imshow(rows.transpose(0, 2, 1, 3).reshape(DOWN * 10, ACROSS * 10), cmap="gray_r", vmin=0, vmax=16)
        ax.set_title(title)
        ax.set_axis_off()
    figure.get_layout_engine().set(wspace=0.05)
    figure.savefig(file)


if __name__ == "__main__":
    main()
