"""What numbers come in: by position, masks and sparse arrays refused, the caller's arrays left alone."""

import warnings

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch

import wprox
from wprox import datasets
from wprox._checks import as_floating
from wprox.app.tables import write_table
from wprox.plot.figure import as_array

FRAME = pd.DataFrame({"a": [1.0, 2.0, 3.0], "b": [4.0, 5.0, 6.0]}, index=[7, 5, 6])
MASKED = np.ma.masked_values([[1.0, 2.0], [3.0, -9.0], [-9.0, 4.0]], -9.0)


def read_only(values):
    array = np.array(values)
    array.flags.writeable = False
    return array


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (FRAME, [[1, 4], [2, 5], [3, 6]]),
        (FRAME["b"], [4, 5, 6]),
        (FRAME["a"].astype("Int64"), [1, 2, 3]),
        (FRAME.assign(b=[True, False, True]), [[1, 1], [2, 0], [3, 1]]),
        (FRAME.index, [7, 5, 6]),
        ([FRAME["a"], FRAME["b"]], [[1, 2, 3], [4, 5, 6]]),
        (list(FRAME.to_numpy()), [[1, 4], [2, 5], [3, 6]]),
        (FRAME.to_numpy(), [[1, 4], [2, 5], [3, 6]]),
        (read_only([[1.0, 2.0]]), [[1, 2]]),
        (np.broadcast_to(2.0, (3,)), [2, 2, 2]),
        (np.ma.array([1.0, 2.0]), [1, 2]),
        ((1, torch.tensor(2.0)), [1, 2]),
    ],
)
def test_numbers_count_by_position_and_without_a_warning(given, expected):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch's, of read-only arrays and of lists of arrays
        assert as_floating(given, "x").tolist() == expected


JOBS = {
    "points": wprox.Particles,
    "weights": lambda x: wprox.Particles(torch.zeros(3, 2), x),
    "a flow": lambda x: wprox.JKOFlow().fit(x),
    "its validation": lambda x: wprox.JKOFlow().fit(torch.randn(9, 2), validation=x),
    "a target": wprox.MMD,
    "importance weights": wprox.metrics.ess,
    "their logarithms": lambda x: wprox.metrics.ess(x, log=True),
    "a mask": lambda x: wprox.Grid(torch.ones(3, 2), [(0, 1), (0, 1)], x),
    "an image": datasets.ImageDensity,
    "a list of rows": lambda x: wprox.Particles([x, x]),
    "a picture": as_array,
    "a file": lambda x: write_table("not_written.csv", x),
}


@pytest.mark.parametrize("job", JOBS.values(), ids=JOBS)
def test_masks_and_sparse_arrays_are_refused(job):
    with pytest.raises(ValueError, match=r"has 2 masked entries, the first at row 1, column 1; remove or impute"):
        job(MASKED)
    for sparse in (scipy.sparse.csr_matrix(FRAME.to_numpy()), scipy.sparse.coo_array(FRAME.to_numpy())):
        with pytest.raises(TypeError, match=r"sparse matrix \((csr_matrix|coo_array)\).*toarray\(\)"):
            job(sparse)
    with pytest.raises(TypeError, match=r"sparse tensor \(sparse_coo\).*to_dense\(\)"):
        job(torch.eye(2).to_sparse())


@pytest.mark.parametrize("column", [None, np.nan])
def test_a_frame_names_every_column(column):
    frame = FRAME.set_axis(["a", column], axis=1)
    with pytest.raises(ValueError, match=r"no name for column 1 \(counted from 0\)"):
        wprox.JKOFlow().fit(frame)


KEEPERS = {
    "Particles": (wprox.Particles, lambda rho: rho.points, np.ones((3, 2))),
    "weights": (lambda w: wprox.Particles(torch.ones(2, 1), w), lambda rho: rho.weights, np.array([0.5, 0.5])),
    "loc": (lambda m: wprox.Gaussian(m, torch.eye(2)), lambda rho: rho.loc, np.ones(2)),
    "covariance_matrix": (lambda c: wprox.Gaussian([0, 0], c), lambda rho: rho.covariance_matrix, np.eye(2)),
    "nodes": (wprox.Quantiles, lambda rho: rho.nodes, np.arange(3.0)),
    "mass": (lambda m: wprox.Grid(m, [(0, 1)]), lambda rho: rho.mass, np.ones(3)),
    "mask": (lambda m: wprox.Grid([1.0, 0.0], [(0, 1)], m), lambda rho: rho.mask, np.array([False, True])),
    "matrix": (wprox.AffineMap.from_matrix, lambda map: map(torch.ones(1, 2).double())[0], np.eye(2)),
    "source": (lambda x: wprox.MonotoneMap(x, [0.0, 1.0]), lambda map: map.source, np.array([0.0, 1.0])),
    "target": (wprox.MMD, lambda F: F(wprox.Particles(torch.ones(1, 2).double())), np.eye(2)),
}


@pytest.mark.parametrize(("build", "value", "array"), KEEPERS.values(), ids=KEEPERS)
def test_what_is_kept_of_an_array_does_not_change_with_it(build, value, array):
    array = array.copy()
    kept = build(array)
    before = torch.as_tensor(value(kept)).detach().clone()
    array[...] = ~array if array.dtype == bool else 2 * array + 1
    assert torch.equal(value(kept), before)
