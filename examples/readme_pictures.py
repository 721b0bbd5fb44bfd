"""Run the three examples that the README and the docs show, and save their pictures in docs/images."""

import runpy
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).resolve().parent

if __name__ == "__main__":
    for name in ("proximal_step", "jko_flow", "swarm"):
        runpy.run_path(str(HERE / f"plot_{name}.py"))  # its plt.show() does nothing under Agg
        target = HERE.parent / "docs" / "images" / f"{name}.png"
        target.parent.mkdir(exist_ok=True)
        plt.gcf().savefig(target, dpi=110)
        plt.close("all")
        print(target)
