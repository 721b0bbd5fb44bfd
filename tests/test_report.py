"""The report of a fit: what it compares, its charts, its page, a browser that shows it, and `wprox fit --report`."""

import html.parser
import json
import math
import re
import shutil
import subprocess

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from typer.testing import CliRunner

from wprox.app.cli import app
from wprox.app.html import charts, comparison
from wprox.app.html.facts import Tables, gather
from wprox.app.html.markup import Markup, escaped, table, tag
from wprox.app.html.page import SECTIONS, report_page
from wprox.app.html.report import Report
from wprox.app.tables import write_table
from wprox.metrics import generated
from wprox.metrics.columns import Column, as_columns

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
HOSTILE = "<script>alert('&\"')</script>"
DATA = {"file": f"folder/{HOSTILE}.csv", "rows": 130, "training_rows": 80, "validation_rows": 10, "held_out_rows": 40}
DATA |= {"columns": [], "constant_columns": [], "seconds": 0.1}
RESULTS = [
    {"model": "JKO flow", "setting": "2 blocks", "nll": 3.5, "bits_per_dim": 1.0},
    {"model": "Gaussian", "setting": HOSTILE, "nll": 3.25, "bits_per_dim": 0.9, "seconds": 1.0},
]
BLOCKS = [{"block": 1, "seconds": 2.0}, {"block": "fine-tuning", "seconds": 3.0}]


@pytest.fixture(autouse=True)
def few_trees(monkeypatch):
    monkeypatch.setattr(generated, "TREES", 5)


def numbers(n, seed=0):
    return np.random.default_rng(seed).normal(size=n)


def people(n, seed):
    """A table with every kind of column."""
    rng = np.random.default_rng(seed)
    height = rng.normal(size=n)
    frame = pd.DataFrame({"height": height, "weight": height + rng.normal(size=n)})
    frame[HOSTILE] = rng.choice(["Rome", "Paris", HOSTILE], n)
    frame["pets"] = rng.poisson(1.0, n)
    frame["born"] = pd.Timestamp("1990-01-01") + pd.to_timedelta(rng.integers(0, 4000, n), unit="D")
    frame.loc[rng.random(n) < 0.2, "weight"] = np.nan
    frame.loc[rng.random(n) < 0.2, HOSTILE] = None
    return frame.assign(always="the same")


def report_of(make, sizes=(90, 40, 130), target=None, dim=3):
    tables = [make(n, seed) for seed, n in enumerate(sizes)]
    names = list(getattr(tables[0], "columns", [f"x{k + 1}" for k in range(tables[0].shape[1])]))
    facts = gather(Tables(*tables, names), np.random.default_rng(9).normal(size=(sizes[1], dim)), target)
    metrics = {"data": DATA, "held_out": RESULTS, "blocks": BLOCKS}
    return Report(facts, metrics, dict.fromkeys(names, HOSTILE), 0.5)


@pytest.fixture(scope="module")
def report():
    return report_of(people, target="pets")


# what is compared


def test_marginals_are_as_far_apart_as_scipy_says():
    x, y = numbers(60), np.round(numbers(90, 1), 1)
    found = comparison.marginal_distance(Column("a", x), Column("a", np.append(y, np.nan)))
    assert found.value == pytest.approx(scipy.stats.ks_2samp(x, y).statistic)
    assert found.gaps == (0.0, pytest.approx(1 / 91))
    texts = as_columns((pd.DataFrame({"a": ["x"] * 3 + ["y"]}), pd.DataFrame({"a": ["x", "z"]})), ("a", "b"))
    assert comparison.marginal_distance(texts[0][0], texts[1][0]).value == pytest.approx(0.5)
    assert math.isnan(comparison.marginal_distance(Column("a", x), Column("a", np.full(3, np.nan))).value)


@pytest.mark.parametrize("kind", ["number", "text"])
def test_equal_laws_stay_below_the_chance_level(kind):
    """At most 5 of 100 pairs are above it on average; more than 13 with probability 4e-4 (binomial)."""
    levels = ("a", "b", "c", "d") if kind == "text" else ()
    draw = [np.random.default_rng(k).integers(0, 4, 150).astype(float) for k in range(200)]
    if kind == "number":
        draw = [numbers(150, k) for k in range(200)]
    pairs = zip(draw[::2], draw[1::2], strict=True)
    found = [comparison.marginal_distance(*(Column("a", x, kind, levels) for x in pair)) for pair in pairs]
    assert sum(distance.value > distance.chance for distance in found) <= 13


def test_associations_are_those_of_scipy():
    rng = np.random.default_rng(0)
    x, codes = np.round(numbers(80), 1), rng.integers(0, 3, 80).astype(float)
    y, other = x + rng.normal(size=80), (codes + rng.integers(0, 2, 80)) % 4
    y[3] = np.nan
    text = [Column(name, part, "text", tuple("abcd")) for name, part in (("c", codes), ("d", other))]
    found = comparison.associations([Column("x", x), Column("y", y), *text, Column("1", np.ones(80))])
    known = ~np.isnan(y)
    assert found[0, 1] == found[1, 0] == pytest.approx(scipy.stats.spearmanr(x[known], y[known]).statistic)
    counts = scipy.stats.contingency.crosstab(codes, other).count
    assert found[2, 3] == pytest.approx(scipy.stats.contingency.association(counts, "cramer"))
    ranks = scipy.stats.rankdata(x)
    between = sum((codes == k).sum() * (ranks[codes == k].mean() - ranks.mean()) ** 2 for k in range(3))
    assert found[0, 2] == found[2, 0] == pytest.approx(math.sqrt(between / (80 * ranks.var())))
    assert np.isnan(found[4]).all()
    assert np.allclose(np.diag(found)[:4], 1.0)


def test_copies_are_found_and_rows_of_the_same_law_are_none():
    train, held_out, fresh = (as_columns((people(300, seed),), ("a",))[0] for seed in range(3))
    tables = as_columns([people(300, seed) for seed in range(3)], ["train", "held out", "fresh"])
    train, held_out, fresh = tables
    found = comparison.nearest(train, held_out, fresh)
    assert found.copies == (0.0, 0.0)
    assert found.held_out_near == 0.05
    assert found.generated_near <= found.chance
    copied = comparison.nearest(train, held_out, train)
    assert copied.copies == (0.0, 1.0)
    assert copied.generated_near == 1.0
    noisy = comparison.Nearest(found.held_out, np.where(np.arange(300) % 5 == 0, 1e-6, found.generated))
    assert noisy.generated_near > noisy.chance


@pytest.mark.parametrize(("n", "m"), [(18, 100), (150, 150)])
def test_rows_of_the_same_law_look_copied_as_often_as_chance_has_it(n, m):
    """400 times at level 0.05: more than 36 are found with probability 3e-4 (binomial), the false alarm."""
    rng = np.random.default_rng(0)
    found = [comparison.Nearest(rng.exponential(size=n), rng.exponential(size=m)) for _ in range(400)]
    assert sum(nearest.generated_near > nearest.chance for nearest in found) <= 36
    equal = comparison.Nearest(np.zeros(n), np.zeros(m))
    assert equal.held_out_near == equal.generated_near == equal.chance == 1.0


def test_distances_are_in_standard_deviations_and_one_for_another_text():
    train = pd.DataFrame({"a": [0.0, 2.0, 4.0], "b": ["x", "x", "y"], "c": [7.0, 7.0, 7.0]})
    queries = [pd.DataFrame({"a": [2.0 + train["a"].std(ddof=0) / 2], "b": ["x"], "c": [7.0]})]
    queries += [pd.DataFrame({"a": [2.0], "b": ["new"], "c": [7.0]})]
    found = comparison.nearest(*as_columns((train, *queries), ("a", "b", "c")))
    assert found.held_out == pytest.approx([0.5])
    assert found.generated == pytest.approx([1.0])


def test_latent_points_are_held_against_the_normal_law():
    z = np.random.default_rng(0).normal(size=(200, 3))
    found = comparison.latent_fit(z)
    expected = [scipy.stats.kstest(z[:, k], "norm").statistic for k in range(3)]
    assert found.distances == pytest.approx(expected)
    assert found.distances.max() < found.chance
    assert abs(found.mean_square - 1) < 4 * found.mean_square_error
    wide = comparison.latent_fit(1.5 * z)
    assert wide.distances.max() > wide.chance
    assert wide.mean_square == pytest.approx(2.25 * found.mean_square)


# charts and markup


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0.0, 1.0, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (-4.98, 4.12, [-4.0, -2.0, 0.0, 2.0, 4.0]),
        (1e6, 1e6 + 3, [1e6, 1e6 + 1, 1e6 + 2, 1e6 + 3]),
        (2.0, 2.0, [2.0]),
        (-1e300, 1e300, [-1e300, -5e299, 0.0, 5e299, 1e300]),
    ],
)
def test_ticks_are_round(low, high, ticks):
    assert charts.ticks_between(low, high) == pytest.approx(ticks)


@pytest.mark.parametrize(
    ("value", "said"),
    [(0.0, "0"), (-1234.5, "−1.23e3"), (0.25, "0.25"), (123456.0, "1.2e5"), (1e-9, "1e-9"), (math.nan, "nan")],
)
def test_numbers_are_short(value, said):
    assert charts.number(value).replace("−", "-") == said.replace("−1.23e3", "-1.23e3")


def test_points_outside_lie_on_the_rim_and_dates_have_names():
    chart = charts.Chart((0.0, 1.0), (0.0, 1.0), "a", ("date", "number")).points(
        np.array([2.0]), np.array([-1.0]), "real"
    )
    x, y = map(float, re.search(r"M([\d.]+) ([\d.]+)h0", chart.parts[0]).groups())
    assert (x, y) == (charts.WIDTH - charts.RIGHT, charts.HEIGHT - charts.BOTTOM)
    assert "1970-01-01" in chart.svg()
    assert charts.date(1e12) == "beyond dates"


def test_text_is_escaped_and_markup_is_not():
    assert tag("p", "a < b", tag("b", "c"), kind='"') == '<p class="&quot;">a &lt; b<b>c</b></p>'
    assert "\ud800" not in tag("p", "\ud800")
    assert "<td" in table(["a"], [["x"]])
    assert isinstance(tag("p", Markup("<i>")), Markup)


# the page


class Balanced(html.parser.HTMLParser):
    """Reads a page, and complains of what does not close."""

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.links, self.words = [], [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, name, attributes):
        given = dict(attributes)
        self.ids += [given["id"]] if "id" in given else []
        self.links += [given[key] for key in ("href", "src", "action", "data") if key in given]
        assert not any(key.startswith("on") for key in given)
        assert name not in ("script", "link", "iframe", "object", "img")
        if name not in ("meta", "br"):
            self.open.append(name)

    def handle_startendtag(self, name, attributes):
        pass

    def handle_endtag(self, name):
        assert self.open.pop() == name

    def handle_data(self, data):
        self.words.append(data)


def checked(page):
    """The page, which needs nothing else and has every section once."""
    read = Balanced(page)
    assert read.ids == list(SECTIONS)
    assert read.links == [f"#{name}" for name in SECTIONS]
    assert not re.search(r"https?://|//\w|url\(|@import", page)
    assert not re.search(r">.?(nan|inf)<|[MLVH ](nan|inf) |\"-?(nan|inf)\"", page)
    return " ".join(read.words)


def test_the_page_has_all_sections_and_needs_nothing_else(report):
    said = checked(report.page())
    assert "<script" not in report.page()
    for words in (
        "The Gaussian is 0.250 nats a row better than the flow",
        "130 rows of 6 columns; 90 to fit to and 40 held out",
        "A classifier's AUC of",
        "predicts pets in 40 held-out rows, by the accuracy, after training on 90 rows",
        "no sign of copies",
        "training: fine-tuning",
        "for comparison: Gaussian",
        HOSTILE,
    ):
        assert words in said
    assert report.numbers()["train_on_synthetic"]["target"] == "pets"
    assert set(report.numbers()["two_sample"]) == set(generated.TwoSample._fields)
    json.dumps(report.numbers(), allow_nan=False)


@pytest.mark.parametrize(
    "make",
    [
        lambda n, seed: numbers(n, seed)[:, None],
        lambda n, seed: np.ones((n, 2)) * [1.0, 2.0],
        lambda n, seed: np.column_stack([numbers(n, seed), np.full(n, np.nan)]),
        lambda n, seed: 1e150 * numbers(2 * n, seed).reshape(n, 2),
        lambda n, seed: 1e9 + 1e-3 * numbers(2 * n, seed).reshape(n, 2),
        lambda n, seed: numbers(35 * n, seed).reshape(n, 35),
        lambda n, seed: np.random.default_rng(seed).integers(0, 2, (n, 3)),
    ],
    ids=["one column", "constants", "gaps alone", "large", "far", "many columns", "two values"],
)
def test_odd_tables_have_a_page(make):
    checked(report_of(make, sizes=(34, 8, 30)).page())
    checked(report_of(make, sizes=(34, 8, 30), target="x1", dim=1).page())


def test_the_flow_that_is_ahead_is_told_so(report, monkeypatch):
    ahead = [RESULTS[0] | {"nll": 3.0}, RESULTS[1]]
    said = checked(report_page(report.facts, DATA, {}, ahead, [("reading the table", 1.0)]))
    assert "The flow is 0.250 nats a row ahead of the best baseline, the Gaussian" in said
    selection = {
        "chosen": "start",
        "nll": {"start": 2.5},
        "rows": 90,
        "start": [("Gaussian", 1.0, 2.5)],
        "seconds": 1.0,
    }
    said = checked(report_page(report.facts, DATA, {}, RESULTS, [], selection))
    assert "The flow consists of start, chosen by 90 rows left out (nats a row: start 2.500)" in said
    alone = checked(report_page(report.facts, DATA, {}, RESULTS[:1], [("reading the table", 0.0)]))
    assert "the baselines were left out" in alone


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")
@pytest.mark.parametrize("width", [400, 1400])
def test_a_browser_shows_it_without_scrolling_sideways(report, tmp_path, width):
    measure = """
        const page = document.querySelector("iframe").contentDocument;
        const boxes = [...page.querySelectorAll("svg")].map(box => box.getBoundingClientRect());
        const letters = [...page.querySelectorAll("svg text")].map(box => box.getBoundingClientRect().height);
        document.title = [page.defaultView.innerWidth, page.documentElement.scrollWidth, boxes.length,
            Math.min(...boxes.map(box => box.width)), Math.max(...boxes.map(box => box.right)), Math.min(...letters)];
    """
    frame = f'<iframe style="width:{width}px;height:2000px;border:0" srcdoc="{escaped(report.page())}"></iframe>'
    around = f"<title></title>{frame}<script>onload = () => {{{measure}}}</script>"  # windows are 500 pixels or wider
    (tmp_path / "around.html").write_text(around, encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--window-size=1500,2100", "--hide-scrollbars"]
    options += [f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", f"file://{tmp_path}/around.html"]
    shown = subprocess.run([CHROMIUM, *options], capture_output=True, text=True, timeout=120, check=True).stdout
    title = re.search(r"<title>(.*?)</title>", shown).group(1)
    inner, scrolled, count, narrowest, right, smallest = map(float, title.split(","))
    assert inner == width
    assert scrolled <= width
    assert right <= width
    assert count >= 11  # six columns, a pair, three maps, distances and latent points
    assert narrowest >= 280
    assert smallest >= 10  # pixels of a line of letters


# the command line


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


QUICK = ["--blocks", 1, "--iterations", 2, "--no-fine-tune", "--no-baselines", "--threads", 1]


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.setattr("wprox.app.fitting._pictures", lambda *_: {})
    values = np.random.default_rng(0).normal(size=(160, 2)).round(2)
    values = np.column_stack([values, np.ones(160)])
    write_table(tmp_path / "data.csv", values, ["east", "north & south", "one"])
    return tmp_path / "data.csv"


def test_fit_writes_a_report_and_a_fit_without_one_removes_it(data, tmp_path):
    folder = tmp_path / "model"
    quick = [*QUICK, "--drop-constant"]
    result = run("fit", data, "--out", folder, *quick, "--report", "--target", "north & south")
    assert result.exit_code == 0, result.output
    assert "comparing generated rows with real ones" in result.stderr
    said = checked((folder / "report.html").read_text(encoding="utf-8"))
    assert "predicts north & south in 24 held-out rows, by the R²" in said
    assert "constant" in said
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["generated"]["two_sample"]["rows"] == 12
    assert metrics["generated"]["train_on_synthetic"]["target"] == "north & south"
    assert run("info", folder).exit_code == 0
    assert run("fit", data, "--out", folder, *quick, "--overwrite").exit_code == 0
    assert not (folder / "report.html").exists()
    assert "generated" not in json.loads((folder / "metrics.json").read_text())


def test_the_report_has_the_baselines(data, tmp_path):
    quick = [option for option in QUICK if option != "--no-baselines"]
    bounds = ["--bounds", -9, 9, "--drop-constant"]
    assert run("fit", data, "--out", tmp_path / "model", *quick, *bounds, "--report").exit_code == 0
    said = checked((tmp_path / "model" / "report.html").read_text(encoding="utf-8"))
    for words in (
        "kernel density",
        "for comparison: Gaussian mixture",
        "number between -9 and 9",
        "add --target COLUMN",
    ):
        assert words in said


def test_a_table_of_mixed_columns_has_a_report(tmp_path, monkeypatch):
    monkeypatch.setattr("wprox.app.fitting._pictures", lambda *_: {})
    rows = people(200, 0).assign(born=lambda table: table.born.dt.strftime("%Y-%m-%d"))
    rows.loc[:9, "height"] = np.inf  # an atom like others
    rows.to_csv(tmp_path / "people.csv", index=False)
    options = ["--report", "--target", HOSTILE, "--column", "pets=drop"]
    result = run("fit", tmp_path / "people.csv", "--out", tmp_path / "model", *QUICK, *options)
    assert result.exit_code == 0, result.output
    said = checked((tmp_path / "model" / "report.html").read_text(encoding="utf-8"))
    for words in ("constant; always 'the same'", "date; dates by the day", "1990-", f"predicts {HOSTILE} in", "mostly"):
        assert words in said
    assert "pets" not in said.split("Likelihood")[0].split("missing", 1)[1]
    refused = run("fit", tmp_path / "people.csv", "--out", tmp_path / "other", *QUICK, *options, "--target", "pets")
    assert "has no column 'pets'" in refused.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--target", "east"], "--target says which column the report predicts; add --report"),
        (["--report", "--target", "west"], "has no column 'west'; it has east, north & south, one"),
    ],
)
def test_refused_before_the_training(data, tmp_path, options, words):
    result = run("fit", data, "--out", tmp_path / "model", *options)
    assert result.exit_code == 2
    assert words in result.stderr
    assert not (tmp_path / "model").exists()


def test_a_model_whose_report_fails_is_saved(data, tmp_path, monkeypatch):
    def fail(*arguments):
        raise OSError("no memory")

    monkeypatch.setattr("wprox.app.fitting._report", fail)
    result = run("fit", data, "--out", tmp_path / "model", *QUICK, "--drop-constant", "--report")
    assert (result.exit_code, result.stderr.splitlines()[-1]) == (2, "wprox: no memory")
    assert (tmp_path / "model" / "config.json").exists()
    assert not (tmp_path / "model" / "report.html").exists()
