"""`import wprox`: what it does not import, what it leaves as it was, and the names that come later."""

import pickle
import subprocess
import sys
import sysconfig

import numpy as np
import pytest

import wprox
import wprox.models
from wprox._interruptions import is_command_line

LATER = {"wprox.app", "wprox.cli", "wprox.datasets", "wprox.models", "wprox.plot"}

STATE = """
import copy, os, signal, sys, threading, warnings
import numpy as np
import torch

def state():
    return {
        "validation": torch.distributions.Distribution._validate_args,
        "constraints": torch.distributions.Distribution.__dict__["arg_constraints"],
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "gradients": (torch.is_grad_enabled(), torch.is_anomaly_enabled()),
        "determinism": torch.are_deterministic_algorithms_enabled(),
        "matrix products": torch.get_float32_matmul_precision(),
        "torch's random state": torch.get_rng_state().tolist(),
        "numpy's random state": repr(np.random.get_state()),
        "floating-point errors": np.geterr(),
        "printing": (repr(np.get_printoptions()), vars(torch._tensor_str.PRINT_OPTS).copy()),
        "warnings": list(warnings.filters),
        "showwarning": warnings.showwarning,
        "environment": dict(os.environ),
        "path": list(sys.path),
        "hooks": (sys.excepthook, sys.displayhook, sys.getrecursionlimit(), threading.excepthook),
        "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
        "running threads": threading.active_count(),
    }

def check(before, after, *excepted):
    changed = [key for key in before if before[key] != after[key] and key not in excepted]
    assert not changed, [(key, before[key], after[key]) for key in changed]

before = state()
"""


def run(code, *options):
    done = subprocess.run([sys.executable, *options, "-c", code], capture_output=True, text=True)
    assert not done.returncode, done.stderr
    return done.stdout


def test_import_loads_little_and_changes_nothing():
    loaded = run(
        f"""{STATE}
modules = set(sys.modules)
import wprox
check(before, state())
print(*set(sys.modules) - modules)
""",
        "-Werror",
    ).split()
    assert "wprox.jko" in loaded
    packages = {module.split(".")[0] for module in loaded} - sys.stdlib_module_names
    assert packages <= {"wprox", "torch", "numpy", "tqdm"}  # no scipy, scikit-learn, pandas, POT, matplotlib, typer
    assert not LATER & set(loaded)


SCRIPTS = sysconfig.get_path("scripts")


@pytest.mark.parametrize(
    ("argv", "orig_argv", "is_ours"),
    [
        (["-m", "fit"], ["python", "-m", "wprox", "fit"], True),
        (["-m"], ["python", "-I", "-mwprox"], True),
        (["-m", "--method", "wprox"], ["python", "-m", "foo.run", "--method", "wprox"], False),
        (["-m", "-m", "wprox"], ["python", "-m", "foo.run", "-m", "wprox"], False),
        ([f"{SCRIPTS}/wprox", "fit"], ["python", f"{SCRIPTS}/wprox", "fit"], True),
        (["/home/me/wprox"], ["python", "/home/me/wprox"], False),
        ([f"{SCRIPTS}/wprox.py"], ["python", f"{SCRIPTS}/wprox.py"], False),
        (["-c", "wprox"], ["python", "-c", "import wprox", "wprox"], False),
        ([""], ["python"], False),
    ],
)
def test_signals_are_taken_by_the_command_line_alone(monkeypatch, argv, orig_argv, is_ours):
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setattr(sys, "orig_argv", orig_argv)
    assert is_command_line() is is_ours


def test_maps_steps_and_pictures_change_nothing():
    """But for torch's random state, from which the parameters of a network are drawn as in torch.nn."""
    run(
        f"""{STATE}
import io, matplotlib, wprox
options = dict(dict.items(matplotlib.rcParams))
before = state()
wprox.SplineMap(1), wprox.SplineMap(2), wprox.SplineMap(3, coupling=False)
assert "zuko" not in sys.modules
check(before, state(), "torch's random state")
before = state()
line = wprox.Quantiles.from_icdf(lambda u: u, 50)
wprox.QuantileProx().step(wprox.Entropy(), line, 0.1)
grid = wprox.Grid(torch.ones(8, 8), [(0.0, 1.0)] * 2)
wprox.Trajectory([grid, grid], [torch.tensor(1.0)] * 2).plot()[0].figure.savefig(io.BytesIO(), format="png")
grid.plot(), line.plot()
check(before, state())
assert "matplotlib.pyplot" not in sys.modules
assert dict(dict.items(matplotlib.rcParams)) == options
"""
    )


def test_public_names():
    assert wprox.__all__ == sorted(set(wprox.__all__))
    assert all(getattr(wprox, name) is not None for name in wprox.__all__)
    assert set(wprox.models.__all__) <= set(wprox.__all__) <= set(dir(wprox))
    everything = {}
    exec("from wprox import *", everything)
    assert set(wprox.__all__) <= set(everything)
    assert everything["JKOFlow"] is wprox.models.JKOFlow
    assert callable(everything["jko"])  # the function, not the module of the same name


def test_names_come_when_they_are_asked_for():
    run(
        """
import sys
import wprox.theory.certificate
assert callable(wprox.jko)  # the function, not the module
wprox.metrics.w2, wprox.kernels.Gaussian, wprox.theory.w2_bound, wprox.stein.stein_residual
assert {"JKOFlow", "JKOSampler", "jko", "theory"} <= set(dir(wprox))
assert not {"sklearn", "wprox.models", "wprox.datasets", "wprox.plot"} & set(sys.modules)
wprox.datasets.planar, wprox.plot.plot_samples
assert "sklearn" not in sys.modules
from wprox import JKOFlow
assert JKOFlow.__module__.startswith("wprox.models.")
assert "sklearn" in sys.modules
from wprox import *
assert JKOSampler is wprox.JKOSampler is wprox.models.JKOSampler
"""
    )


def test_a_name_that_is_not_there():
    with pytest.raises(AttributeError, match="module 'wprox' has no attribute 'JKOFlows'"):
        wprox.JKOFlows  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'JKOFlows' from 'wprox'"):
        from wprox import JKOFlows  # noqa: F401
    assert not hasattr(wprox, "__wrapped__")
    assert not hasattr(wprox, "_no_such_module")


def test_an_error_inside_a_module_is_not_a_missing_name(tmp_path, monkeypatch):
    (tmp_path / "broken.py").write_text("import no_such_package\n")
    monkeypatch.setattr(wprox, "__path__", [*wprox.__path__, str(tmp_path)])
    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        wprox.broken  # noqa: B018


def test_a_fitted_flow_is_pickled_into_a_process_that_has_not_imported_it(tmp_path):
    x = np.random.default_rng(0).normal(size=(100, 2))
    flow = wprox.JKOFlow(n_blocks=1, iterations=3, fine_tune_iterations=1, batch_size=32).fit(x)
    file = tmp_path / "flow.pickle"
    file.write_bytes(pickle.dumps(flow))
    code = f"import pickle, wprox; print(pickle.load(open({str(file)!r}, 'rb')).score([[0.1, 0.2]]))"
    assert float(run(code)) == pytest.approx(float(flow.score([[0.1, 0.2]])), abs=1e-6)
