"""Tables of mixed columns: read and written exactly, with a law whose masses and densities sum to 1."""

import json
import math
import random
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wprox import JKOFlow
from wprox.models.flow.table.columns import TableColumns
from wprox.models.flow.table.files import table_from_json, table_to_json
from wprox.models.flow.table.grids import Grid, find_grid
from wprox.models.flow.table.half_line import HalfLine, wants_half_line
from wprox.models.flow.table.laws import Category, Copy, Intervals, Number
from wprox.models.flow.table.order import canonical_orders
from wprox.models.flow.table.preprocessing import TablePreprocessing

pd = pytest.importorskip("pandas")

SMALL = {"n_blocks": 1, "iterations": 40, "fine_tune": False, "map_options": {"hidden": [16], "transforms": 1}}
ROWS = 400


def table(n=ROWS, seed=0):
    """A table with columns of all kinds and with dependence between them."""
    rng = np.random.default_rng(seed)
    town = rng.choice(["Bonn", "Köln", "Ulm"], n, p=[0.5, 0.3, 0.2])
    height = rng.standard_normal(n) + 2 * (town == "Ulm")
    day = np.datetime64("2021-03-01", "s") + (rng.integers(0, 500, n) * 86_400).astype("timedelta64[s]")
    gap = rng.random(n) < 0.3
    return pd.DataFrame(
        {
            "town": town,
            "code": np.where(town == "Bonn", 7, np.where(town == "Köln", 3, 9)).astype(np.int16),
            "height": height,
            "age": rng.integers(18, 80, n),
            "paid": np.where(rng.random(n) < 0.4, 0.0, np.round(np.exp(height + rng.standard_normal(n)), 2)),
            "day": day,
            "happy": height + rng.standard_normal(n) > 0,
            "first": np.where(gap, np.nan, height + rng.standard_normal(n)),
            "second": np.where(gap, np.nan, rng.integers(0, 60, n)),
            "same": "yes",
            "age again": 0,
        }
    ).assign(**{"age again": lambda frame: frame["age"]})


@pytest.fixture(scope="module")
def rows():
    return table()


@pytest.fixture(scope="module")
def flow(rows):
    return JKOFlow(columns="auto", **SMALL).fit(rows)


def coded(frame, seed=0, wishes="auto"):
    """A frame's columns, learned, its numbers and its coordinates."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of categories that come once
        columns = TableColumns.learn(frame, wishes)
    numbers = columns.read(frame)
    columns = columns.fit(numbers)
    u = torch.rand(len(frame), columns.dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return columns, numbers, columns.encode(numbers, u)[0]


def check_round_trip(frame, wishes="auto"):
    """Rows, encoded at random, decode to what they were; so they do after a way through JSON."""
    columns, numbers, z = coded(frame, 0, wishes)
    assert bool(columns.holds(numbers).all())
    assert bool(z.isfinite().all())
    pd.testing.assert_frame_equal(columns.write(columns.decode(z)), frame)
    again = table_from_json(json.loads(json.dumps(table_to_json(columns), allow_nan=False)))
    pd.testing.assert_frame_equal(again.write(again.decode(z)), frame)


# round trips


def test_every_kind_goes_and_comes_back(rows):
    check_round_trip(rows)


N = 30
COLUMNS = {
    "int8": pd.Series(np.arange(N) * 4 - 60, dtype="int8"),
    "uint16": pd.Series(np.arange(N) ** 2, dtype="uint16"),
    "Int64": pd.Series([*range(N - 3), None, None, 7], dtype="Int64"),
    "Float32": pd.Series([*(np.arange(N - 1) / 8), None], dtype="Float32"),
    "float32 decimals": pd.Series(np.round(np.arange(N) * 0.7, 1), dtype="float32"),
    "float32": pd.Series(np.random.default_rng(0).standard_normal(N), dtype="float32"),
    "decimals": pd.Series(np.round(np.arange(N) * 1.37 - 9, 2)),
    "fifties": pd.Series(np.arange(N) * 50 + 7),
    "infinite": pd.Series([*np.random.default_rng(0).standard_normal(N - 2), np.inf, -np.inf]),
    "bool": pd.Series([True, False, False] * 10),
    "boolean": pd.Series([True, False, None] * 10, dtype="boolean"),
    "ordered": pd.Series(pd.Categorical(["lo", "hi", None] * 10, ["lo", "mid", "hi"], ordered=True)),
    "numbered": pd.Series(pd.Categorical([3, 1, 1] * 10)),
    "str": pd.Series(["a", "b,c", None] * 10, dtype="str"),
    "objects": pd.Series(["a", "b", None] * 10, dtype=object),
    "whole objects": pd.Series([1, 2, 30] * 10, dtype=object),
    "ns": pd.Series(pd.date_range("2020-01-31 10:00:00.000000001", periods=N, freq="17h").as_unit("ns")),
    "zone": pd.Series(pd.date_range("2020-03-25", periods=N, freq="h", tz="Europe/Berlin")),
    "days with gaps": pd.Series([*pd.date_range("2020-01-31", periods=N - 1), None]),
    "ISO": pd.Series(pd.date_range("2020-01-31", periods=N).strftime("%Y-%m-%d")),
    "ISO minutes": pd.Series(
        [*pd.date_range("1999-12-31", periods=N - 1, freq="90min").strftime("%Y-%m-%dT%H:%M"), None]
    ),
    "dates": pd.Series(list(pd.date_range("2020-01-31", periods=N).date), dtype=object),
}


@pytest.mark.parametrize("name", COLUMNS)
def test_round_trip_of_dtype(name):
    check_round_trip(pd.DataFrame({name: COLUMNS[name], "x": np.random.default_rng(1).standard_normal(N)}))


FLOATS = st.floats(-1e6, 1e6, allow_nan=False).map(lambda x: x + 0.0)
ENTRIES = {
    "text": st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=4),
    "whole": st.integers(-(2**40), 2**40),
    "number": FLOATS,
    "gapped": st.one_of(st.just(math.nan), FLOATS),
    "few": st.sampled_from([0.1, 0.2, 1 / 3]),
    "truth": st.booleans(),
    "cents": st.integers(-(10**6), 10**6).map(lambda k: k / 100),
    "atom": st.one_of(st.just(0.0), FLOATS),
}


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.data())
def test_round_trip_of_any_table(data):
    n = data.draw(st.integers(2, 25))
    kinds = data.draw(st.lists(st.sampled_from(sorted(ENTRIES)), min_size=1, max_size=4))
    frame = pd.DataFrame(
        {f"{k} {kind}": data.draw(st.lists(ENTRIES[kind], min_size=n, max_size=n)) for k, kind in enumerate(kinds)}
    )
    if any(bool(frame[name].isna().all()) for name in frame) or (frame.nunique(dropna=False) == 1).all():
        return  # which is refused
    check_round_trip(frame, {name: "category" for name in frame if "text" in name})


@pytest.mark.parametrize("kind", [np.float64, object])
def test_arrays_come_back_as_arrays(kind):
    rng = np.random.default_rng(0)
    array = np.stack([rng.standard_normal(50), rng.integers(0, 3, 50)], 1).astype(kind)
    if kind is object:
        array[:, 1] = [["x", "y", None][int(k)] for k in array[:, 1]]
    columns, _, z = coded(array)
    back = columns.write(columns.decode(z))
    assert back.dtype == array.dtype
    assert np.array_equal(pd.isna(back), pd.isna(array))
    assert np.array_equal(back[:, 0].astype(float), array[:, 0].astype(float))


def test_tensors_come_back_as_tensors():
    x = torch.rand(60, 2, generator=torch.Generator().manual_seed(0))
    x[::3, 0] = 0.0
    columns, _, z = coded(x)
    assert torch.equal(columns.write(columns.decode(z)), x)
    assert columns.write(columns.decode(z)).dtype == torch.float32


def test_what_the_training_rows_lack_has_a_law_all_the_same():
    """Kinds that are learned of a larger table: numbers, levels and half-lines of which the rows have one, or none."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "amount": np.where(np.arange(300) < 250, 0.0, np.round(rng.exponential(size=300), 3)),
            "gap": np.where(np.arange(300) < 250, np.nan, rng.standard_normal(300)),
            "town": np.where(np.arange(300) < 250, "a", "b"),
            "x": rng.standard_normal(300),
        }
    )
    columns = TableColumns.learn(frame)
    for count in (250, 251):
        fitted = columns.fit(columns.read(frame[:count]))
        z, log_q = fitted.encode(columns.read(frame))
        assert bool(z.isfinite().all() and log_q.isfinite().all())
        pd.testing.assert_frame_equal(fitted.write(fitted.decode(z)), frame)


def test_names_may_be_numbers():
    frame = pd.DataFrame(np.random.default_rng(0).standard_normal((40, 2)).round(1))
    check_round_trip(frame)


def test_samples_are_a_frame_like_the_data(flow, rows):
    made = flow.sample(200, seed=0)
    assert list(made.columns) == list(rows.columns)
    assert list(made.dtypes) == list(rows.dtypes)
    assert set(made["town"]) <= set(rows["town"])
    assert (made["age again"] == made["age"]).all()
    codes = dict(zip(rows["town"], rows["code"], strict=True))
    assert [codes[town] for town in made["town"]] == made["code"].tolist()
    assert set(made["same"]) == {"yes"}
    assert (made["first"].isna() == made["second"].isna()).all()
    assert (made["paid"] == made["paid"].round(2)).all()
    assert (made["paid"] >= 0).all()
    assert made["day"].equals(made["day"].dt.normalize())


def test_gaps_atoms_and_categories_come_as_often(rows):
    """Twelve shares of 4,000 drawn rows within five standard deviations of a share of 400: < 1e-5 by chance."""
    flow = JKOFlow(columns="auto", **(SMALL | {"iterations": 150})).fit(rows)
    made = flow.sample(4000, seed=1)
    shares = [
        ((frame["first"].isna().mean(), (frame["paid"] == 0).mean(), frame["happy"].mean()),
         tuple((frame["town"] == town).mean() for town in ("Bonn", "Köln", "Ulm")))
        for frame in (rows, made)
    ]  # fmt: skip
    for real, generated in zip(np.concatenate(shares[0]), np.concatenate(shares[1]), strict=True):
        assert abs(real - generated) < 5 * math.sqrt(real * (1 - real) / ROWS)


# the law


def densities(law, x, points=4001):
    """u, z and −log q of one number, with u along a line."""
    u = torch.linspace(0.05, 0.95, points, dtype=torch.float64)
    z, log_q = law.encode(torch.full((points,), x, dtype=torch.float64), u[:, None].expand(-1, law.dims))
    return u, z, log_q


@pytest.mark.parametrize(
    ("law", "x", "place"),
    [
        (Category((0.0, 1.0, math.nan), Intervals(torch.tensor([0.2, 0.3, 0.5]).double())), 1.0, 0),
        (Category((0.0, 1.0, math.nan), Intervals(torch.tensor([0.2, 0.3, 0.5]).double())), math.nan, 0),
        (Number(Grid(0, 1, 2), mean=3.0, std=2.0), 1.25, 0),
        (Number(Grid(), positive=True, half=HalfLine(3.0, 0.5), mean=0.0, std=1.0), 4.0, 0),
        (Number(None, (math.nan,), kinds=Intervals(torch.tensor([0.3, 0.7]).double()), mean=3.0, std=2.0), 1.0, 0),
    ],
)
def test_log_q_is_the_density_of_the_coordinates(law, x, place):
    """−log q(z | x) is the logarithm of dz/du (divided by the cell's width, for numbers on a grid), by differences."""
    u, z, log_q = densities(law, x)
    slope = (z[2:, place] - z[:-2, place]) / (u[2:] - u[:-2])
    width = law.grid.width if isinstance(law, Number) and law.grid is not None else 1.0
    expected = slope.log() - math.log(width)
    assert torch.allclose(log_q[1:-1], expected, atol=2e-3)


def test_an_atom_has_two_densities():
    """The kind's coordinate and the drawn number are independent: the sum of both −log q, by differences."""
    law = Number(None, (math.nan,), kinds=Intervals(torch.tensor([0.3, 0.7]).double()), mean=3.0, std=2.0)
    u, z, log_q = densities(law, math.nan)
    slopes = (z[2:] - z[:-2]) / (u[2:] - u[:-2])[:, None]
    assert torch.allclose(log_q[1:-1], slopes.log().sum(1), atol=2e-3)


def cells(frame):
    """All rows that a table of labels can have, as often as they can."""
    return pd.MultiIndex.from_product([frame[name].unique() for name in frame], names=frame.columns).to_frame(
        index=False
    )


def discrete(n=500, seed=0):
    rng = np.random.default_rng(seed)
    first = rng.choice(["a", "b", "c"], n, p=[0.6, 0.3, 0.1])
    second = np.where(rng.random(n) < np.where(first == "a", 0.8, 0.2), "yes", None)
    return pd.DataFrame({"first": first, "second": second, "third": rng.random(n) < 0.5})


def test_masses_of_independent_categories_sum_to_one():
    """Where coordinates are N(0, I) the bound is the probability itself: the product of the (smoothed) frequencies."""
    frame = discrete()
    columns, _, _ = coded(frame)
    preprocessing = TablePreprocessing(columns, standardize=False).fit(columns.read(frame))
    draws = preprocessing.scored(columns.read(cells(frame)))
    log_prob = torch.stack([log_det - (z.square() / 2 + math.log(2 * math.pi) / 2).sum(1) for z, log_det in draws])
    assert torch.allclose(log_prob.exp().sum(1), torch.ones(8, dtype=torch.float64), atol=1e-4)
    assert float(log_prob.std(0).max()) < 1e-4


def test_masses_of_a_trained_flow_sum_to_one():
    """The bound sums to less than 1, and not to much less; exp of it, averaged over many draws, sums to 1.

    4,096 points of a lattice a row: an error of a few thousandths.
    """
    frame = discrete()
    flow = JKOFlow(columns="auto", **SMALL).fit(frame)
    possible = cells(frame)
    total = float(np.exp(flow.log_prob(possible)).sum())
    assert 0.9 < total < 1.02  # 8 draws
    preprocessing, numbers = flow.preprocessing_, flow.columns_.read(possible)
    noise = preprocessing.row_noise(numbers, 4096).flatten(0, 1)
    z, log_det = preprocessing.forward(numbers.repeat(4096, 1), noise=noise)
    with torch.no_grad():
        y, flow_log_det = flow._density.map(torch.float64)(z)
    terms = log_det + flow_log_det - (y.square() / 2 + math.log(2 * math.pi) / 2).sum(1)
    terms = terms.view(4096, -1)
    mass = terms.exp().mean(0)
    assert abs(float(mass.sum()) - 1) < 0.01
    assert bool((terms.mean(0) < mass.log()).all())
    assert np.abs(flow.log_prob(possible) - terms.mean(0).numpy()).max() < 0.2


def test_density_and_masses_of_a_mixed_column_sum_to_one():
    """∑ of the atoms' masses + ∫ of the density elsewhere, by 4,096 draws a point, on a grid of 400 points."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"x": np.where(rng.random(400) < 0.3, np.nan, rng.gamma(3, size=400))})
    frame.loc[rng.random(400) < 0.2, "x"] = 0.0
    flow = JKOFlow(columns="auto", **SMALL).fit(frame)
    assert flow.columns_.laws[0].atoms[0] == 0.0
    points = np.linspace(-3, 16, 401)[1:]
    asked = pd.DataFrame({"x": np.concatenate(([np.nan, 0.0], points))})
    log_prob = flow.log_prob(asked)
    widths = np.concatenate(([1, 1], np.full(400, 19 / 400)))
    assert 0.9 < float((np.exp(log_prob) * widths).sum()) < 1.03
    assert abs(np.exp(log_prob[1]) - (frame["x"] == 0).mean()) < 0.06


def test_gaps_are_integrated_out():
    """log p of a row with a gap is that of the other column and the gap, whatever was drawn in its place."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal(600)
    frame = pd.DataFrame({"x": x, "y": np.where(rng.random(600) < 0.5, np.nan, x + 0.5 * rng.standard_normal(600))})
    flow = JKOFlow(columns="auto", **(SMALL | {"iterations": 150})).fit(frame)
    log_prob = flow.log_prob(pd.DataFrame({"x": [0.0, 1.0], "y": [np.nan, np.nan]}))
    expected = math.log(0.5) - 0.5 * math.log(2 * math.pi) - np.array([0.0, 0.5])
    assert np.abs(log_prob - expected).max() < 0.25


def test_rows_score_the_same_in_any_company_and_order_of_columns(flow, rows):
    log_prob = flow.log_prob(rows)
    assert np.isfinite(log_prob).all()
    assert np.allclose(flow.log_prob(rows.iloc[7:12][rows.columns[::-1]]), log_prob[7:12], rtol=1e-12)


def test_latent_points_lead_back_to_the_rows(flow, rows):
    pd.testing.assert_frame_equal(flow.inverse_transform(flow.transform(rows)), rows, rtol=1e-9)


CHANGES = {
    "town": "Rom", "code": 4, "same": "no", "age again": -5, "age": 20.5, "paid": 0.005, "height": np.nan,
    "first": np.nan, "day": pd.Timestamp("2021-03-01 12:00"),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_what_no_row_had_has_density_zero(flow, rows, name):
    row = int((rows["first"].notna() & (rows["town"] == "Bonn")).argmax())
    changed = rows.iloc[[row, row + 1]].copy()
    changed[name] = changed[name].astype(object)
    changed.iloc[0, list(rows.columns).index(name)] = CHANGES[name]
    if name in ("height", "first", "age", "paid"):
        changed[name] = changed[name].astype(float)
    if name == "age":
        changed["age again"] = changed["age"]
    log_prob = flow.log_prob(changed)
    assert log_prob[0] == -np.inf
    assert np.isfinite(log_prob[1])
    with pytest.raises(ValueError, match="density is 0"):
        flow.transform(changed)


# how columns are taken


def kinds(frame, wishes="auto"):
    return {str(column.name): column.kind for column in TableColumns.learn(frame, wishes).columns}


def test_columns_are_found(rows):
    found = kinds(rows)
    assert found == {
        "town": "category", "code": "category", "height": "number", "age": "integer", "paid": "decimal", "day": "date",
        "happy": "category", "first": "number", "second": "integer", "same": "constant", "age again": "integer",
    }  # fmt: skip
    columns = TableColumns.learn(rows)
    laws = dict(zip(map(str, columns.names), columns.laws, strict=True))
    assert laws["paid"].atoms == (0.0,)
    assert laws["paid"].positive
    assert isinstance(laws["code"], Copy)
    assert isinstance(laws["age again"], Copy)
    assert laws["second"].source == list(rows.columns).index("first")
    assert not laws["second"].atoms
    said = str(columns)
    for words in (
        "says the same as town",
        "a copy of age",
        "always 'yes'",
        "missing where first is",
        "dates by the day",
    ):
        assert words in said


def test_peaks_of_a_grid_are_atoms():
    rng = np.random.default_rng(0)
    hours = np.where(rng.random(2000) < 0.4, 40, rng.integers(10, 70, 2000))
    frame = pd.DataFrame({"hours": hours, "age": rng.integers(18, 80, 2000)})
    laws = TableColumns.learn(frame).laws
    assert laws[0].atoms == (40.0,)
    assert laws[1].atoms == ()


def test_wishes_are_heard(rows):
    wishes = {"town": "drop", "code": "number", "age": "category", "age again": "drop", "height": "number"}
    found = kinds(rows.assign(grade=["S", "L"] * (ROWS // 2)), wishes | {"grade": ["S", "M", "L"]})
    assert "town" not in found
    assert found["age"] == "category"
    columns = TableColumns.learn(rows, wishes)
    assert columns.dropped == ["town", "age again"]
    assert "dropped" in str(columns)
    assert columns.read(rows).shape == (ROWS, len(rows.columns) - 2)
    assert np.array_equal(columns.read(rows.drop(columns="town")), columns.read(rows), equal_nan=True)


@pytest.mark.parametrize(
    ("digits", "rounding", "expected"),
    [
        (np.arange(40.0), "float64", Grid(0, 1, 0)),
        (np.arange(40.0) * 50 + 7, "float64", Grid(7, 50, 0)),
        (np.arange(1, 40) / 8, "float64", Grid(0, 125, 3)),
        (np.arange(10) / 100, "float64", Grid(0, 1, 2)),
        (np.float32(np.arange(30) * 0.1).astype(float), "float32", Grid(0, 1, 1, "float32")),
        (np.random.default_rng(0).standard_normal(40), "float64", None),
        (np.float32(np.random.default_rng(0).standard_normal(40)).astype(float), "float32", None),
        (np.arange(1, 40) / 3, "float64", None),
    ],
)
def test_grids(digits, rounding, expected):
    assert find_grid(np.unique(digits), rounding) == expected


def test_half_lines_are_found_and_inverted():
    generator = torch.Generator().manual_seed(0)
    exponential = -torch.rand(1000, generator=generator, dtype=torch.float64).log()
    half = HalfLine.fit(exponential, 0.5)
    z, log_slope = half.forward(exponential * 40)
    assert torch.allclose(half.inverse(z), exponential * 40, rtol=1e-9)
    step = 1e-6
    slope = (half.forward(exponential + step)[0] - half.forward(exponential - step)[0]) / (2 * step)
    assert torch.allclose(half.forward(exponential)[1], slope.log(), atol=1e-5)
    assert bool(log_slope.isfinite().all())
    assert wants_half_line(exponential, 0.0)
    assert not wants_half_line(torch.rand(1000, generator=generator, dtype=torch.float64), 0.0)
    assert not wants_half_line(exponential - 1, 0.0)
    assert not wants_half_line(torch.randn(1000, generator=generator, dtype=torch.float64) + 9, 0.0)


def test_levels_are_ordered_by_what_is_alike():
    """Five labels with means that are apart by two standard deviations: their order, or its reverse, is found."""
    rng = np.random.default_rng(0)
    level = rng.integers(0, 5, 1000)
    names = np.array([2.0, 0.0, 4.0, 1.0, 3.0])
    columns = [torch.as_tensor(names[level]), torch.as_tensor(2 * level + rng.standard_normal(1000))]
    (order,) = canonical_orders(columns, [(0.0, 1.0, 2.0, 3.0, 4.0), None], [0])
    assert order.tolist() in ([2, 0, 4, 1, 3], [3, 1, 4, 0, 2])


# bad input


def numbered(texts):
    return [str(k) for k in range(100 - len(texts))] + texts


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"gone": [None] * 100}, ["'gone'", "all missing", "drop"]),
        ({"name": [f"n{k}" for k in range(100)]}, ["'name'", "100 categories in 100 rows", "identifier", "drop"]),
        ({"age": numbered(["abc", "?"])}, ["'age'", "nearly all numbers", "98 ('abc'), 99 ('?')", "category"]),
        ({"day": ["2020-01-01"] * 99 + ["2020-02-30"]}, ["'day'", "99 ('2020-02-30')", "no date"]),
        ({"what": [1, "a"] * 50}, ["'what'", "mixes kinds", "row"]),
        ({"huge": np.arange(100) + 2**60}, ["'huge'", "2^53"]),
        ({"z": np.ones(100) * 1j}, ["'z'", "complex"]),
        ({"one": ["k"] * 100}, ["all columns are constant"]),
    ],
)
def test_bad_tables(columns, words):
    with pytest.raises(ValueError, match="column") as caught:
        TableColumns.learn(pd.DataFrame(columns))
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("wishes", "words"),
    [
        ("all", ["columns must be", "'all'"]),
        ({"there": "category"}, ["'there'", "which the table has not", "town"]),
        ({"town": "text"}, ["'town'", "category, boolean", "'text'"]),
        ({"height": "integer"}, ["'height'", "integer", "not whole"]),
        ({"height": "positive"}, ["'height'", "below 0"]),
        ({"age": "date"}, ["'age'", "date", "int64"]),
        ({"town": ["Bonn"]}, ["'town'", "does not list", "list all"]),
    ],
)
def test_bad_wishes(rows, wishes, words):
    with pytest.raises((ValueError, TypeError)) as caught:
        TableColumns.learn(rows, wishes)
    for word in words:
        assert word in str(caught.value)


def test_categories_that_come_once_are_warned_of():
    frame = pd.DataFrame({"town": ["a"] * 50 + ["b"] * 49 + ["c"], "x": np.random.default_rng(0).standard_normal(100)})
    with pytest.warns(UserWarning, match=r"come once.* in town"):
        columns = TableColumns.learn(frame)
    assert "1 category comes once ('c')" in str(columns)


def test_other_rows_are_refused_in_words(flow, rows):
    with pytest.raises(ValueError, match=r"missing \['town'\], new \['city'\]"):
        flow.log_prob(rows.rename(columns={"town": "city"}))
    with pytest.raises(ValueError, match="'age' holds numbers, but not in row 3"):
        flow.log_prob(rows.assign(age=["x" if k == 3 else str(k) for k in range(ROWS)]))
    with pytest.raises(ValueError, match="columns of each column"):
        JKOFlow(columns="auto", integer=True).fit(rows)


# files


def test_a_flow_is_saved_and_loaded(flow, rows, tmp_path):
    flow.save(tmp_path / "model")
    again = JKOFlow.load(tmp_path / "model")
    assert str(again.columns_) == str(flow.columns_)
    assert np.array_equal(again.log_prob(rows), flow.log_prob(rows))
    pd.testing.assert_frame_equal(again.sample(20, seed=3), flow.sample(20, seed=3))


def test_damaged_columns_are_refused_or_can_be_used(flow, rows, tmp_path):
    """Values of config.json's table are changed at random, with a checksum that fits."""
    mutations = pytest.importorskip("mutations")
    flow.save(tmp_path / "model")
    shuffled = random.Random(0)
    good = json.loads((tmp_path / "model" / "config.json").read_text())
    packed = (tmp_path / "model" / "model.safetensors").read_bytes()
    refused = 0
    for _ in range(150):
        config = json.loads(json.dumps(good))
        mutations._change_config(config["table"], shuffled)
        config["sha256"] = mutations.checksum(config, packed)
        (tmp_path / "model" / "config.json").write_text(json.dumps(config))
        code, said = mutations.outcome_of(lambda folder: JKOFlow.load(folder).sample(5, seed=0), tmp_path / "model")
        assert code in (mutations.READ, mutations.REFUSED), said
        refused += code == mutations.REFUSED
    assert refused > 30


def test_older_folders_have_no_columns(tmp_path):
    JKOFlow(**SMALL).fit(np.random.default_rng(0).standard_normal((100, 2))).save(tmp_path / "model")
    file = tmp_path / "model" / "config.json"
    config = json.loads(file.read_text())
    mutations = pytest.importorskip("mutations")
    del config["table"], config["parameters"]["columns"]
    config["sha256"] = mutations.checksum(config, (tmp_path / "model" / "model.safetensors").read_bytes())
    file.write_text(json.dumps(config))
    assert not hasattr(JKOFlow.load(tmp_path / "model"), "columns_")


# the command line


def run(*arguments):
    from typer.testing import CliRunner

    from wprox.app.cli import app

    return CliRunner().invoke(app, [str(argument) for argument in arguments])


QUICK = ["--blocks", "1", "--iterations", "5", "--no-fine-tune"]


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_the_command_line_takes_what_it_gives(rows, tmp_path, ending):
    """fit, sample and score of a table with text, gaps and dates; all three lines say how columns were taken."""
    file, made, model = tmp_path / f"rows{ending}", tmp_path / f"new{ending}", tmp_path / "model"
    rows = rows.head(160)
    frame = rows.assign(born=rows["day"].dt.strftime("%Y-%m-%d"), zip=["01", None, "9x", "03"] * 40)
    write = frame.to_csv if ending == ".csv" else frame.to_parquet
    write(file, index=False)
    fitted = run("fit", file, "--out", model, *QUICK, *([] if ending == ".csv" else ["--no-baselines"]))
    assert fitted.exit_code == 0, fitted.output
    for words in ("says the same as town", "missing where first is", "dates by the day", "3 levels: 'Bonn'"):
        assert words in fitted.output
    nll = {result["model"]: result["nll"] for result in json.loads((model / "metrics.json").read_text())["held_out"]}
    assert all(map(math.isfinite, nll.values()))
    assert len(nll) == (4 if ending == ".csv" else 1)
    assert run("sample", model, "-n", 50, "--out", made, "--seed", 1).exit_code == 0
    read = pd.read_csv if ending == ".csv" else pd.read_parquet
    options = {"dtype": {"zip": str}} if ending == ".csv" else {}
    frame, generated = read(file, **options), read(made, **options)
    assert list(generated.dtypes) == list(frame.dtypes)
    assert set(generated["zip"].dropna()) <= {"01", "9x", "03"}
    scored = run("score", model, made)
    assert scored.exit_code == 0, scored.output
    assert "50 rows: NLL" in scored.output
    assert "density 0" not in scored.output
    assert "says the same as town" in run("info", model).output
    refused = run("sample", model, "-n", 5, "--out", tmp_path / "new.npy")
    assert "town" in refused.stderr
    assert "are not numbers, as .npy files hold" in refused.stderr


def test_columns_are_said_in_the_command_line(tmp_path):
    file = tmp_path / "rows.csv"
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {"name": [f"n{k}" for k in range(60)], "x": rng.standard_normal(60), "y": rng.integers(0, 9, 60)}
    )
    frame.to_csv(file, index=False)
    said = run("fit", file, "--out", tmp_path / "model", *QUICK)
    assert said.exit_code == 2
    assert "identifier" in said.stderr
    options = ["--column", "name=drop", "--column", "y=number", "--no-baselines"]
    assert run("fit", file, "--out", tmp_path / "model", *QUICK, *options).exit_code == 0
    assert run("score", tmp_path / "model", file).exit_code == 0
    assert run("sample", tmp_path / "model", "-n", 5, "--out", tmp_path / "new.csv").exit_code == 0
    assert list(pd.read_csv(tmp_path / "new.csv").columns) == ["x", "y"]
    for wrong, words in (
        (["--column", "x"], "NAME=KIND"),
        (["--column", "x=text"], "a kind of auto, category"),
        (["--column", "z=drop"], "'z'"),
        (["--column", "x=number", "--integer"], "--column goes with none"),
    ):
        said = run("fit", file, "--out", tmp_path / "other", *QUICK, *wrong)
        assert said.exit_code == 2
        assert words in said.stderr


def test_tables_of_numbers_alone_are_modelled_as_before(tmp_path):
    values = np.random.default_rng(0).standard_normal((80, 2))
    pd.DataFrame(values, columns=["a", "b"]).to_csv(tmp_path / "rows.csv", index=False)
    for name, options in (("model", []), ("numbers", ["--numbers"])):
        assert (
            run("fit", tmp_path / "rows.csv", "--out", tmp_path / name, *QUICK, "--no-baselines", *options).exit_code
            == 0
        )
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("model", "numbers")]
    assert files[0] == files[1]
