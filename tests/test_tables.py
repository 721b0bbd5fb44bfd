"""Tables in files: reading, writing, and one clear sentence for everything that can be wrong with them."""

import sys
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wprox.app.tables import check_output, read_table, write_table

VALUES = np.array([[1.5, 2.0], [-3.0, 4e-7], [0.1, 5.0]])


@pytest.mark.parametrize("ending", [".csv", ".npy", ".parquet"])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_what_is_written_is_read(tmp_path, ending, dtype):
    file = tmp_path / f"table{ending}"
    write_table(file, VALUES.astype(dtype), ["a", "b"])
    table = read_table(file)
    assert table.columns == (["x1", "x2"] if ending == ".npy" else ["a", "b"])
    assert table.values.dtype == np.float64
    np.testing.assert_array_equal(table.values.astype(dtype), VALUES.astype(dtype))
    assert [path.name for path in tmp_path.iterdir()] == [file.name]  # no temporary file is left


def test_csv_of_integers_is_written_without_decimal_points(tmp_path):
    write_table(tmp_path / "table.csv", np.array([[1.0, 16.0]]))
    assert (tmp_path / "table.csv").read_text() == "x1,x2\n1,16\n"


def test_csv_single_precision_is_written_in_its_own_digits(tmp_path):
    write_table(tmp_path / "table.csv", np.array([[0.1, 16.5]], dtype=np.float32))
    assert (tmp_path / "table.csv").read_text() == "x1,x2\n0.1,16.5\n"


def test_csv_with_byte_order_mark_quotes_blank_lines_and_windows_line_ends(tmp_path):
    file = tmp_path / "table.csv"
    file.write_bytes('\ufeff"height, m", weight\r\n1.8, 80\r\n\r\n"1.7",65\r\n'.encode())
    table = read_table(file)
    assert table.columns == ["height, m", "weight"]
    assert table.values.tolist() == [[1.8, 80.0], [1.7, 65.0]]


def test_csv_header_that_counts_the_columns_is_a_header(tmp_path):
    pd.DataFrame(VALUES).to_csv(tmp_path / "table.csv", index=False)
    with pytest.warns(UserWarning, match="named by numbers"):
        assert read_table(tmp_path / "table.csv").columns == ["0", "1"]


def test_csv_is_read_without_pandas(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    (tmp_path / "table.csv").write_text("a\n1\n2\n")
    assert read_table(tmp_path / "table.csv").values.shape == (2, 1)


def test_parquet_reads_integers_and_booleans(tmp_path):
    pd.DataFrame({"n": [1, 2], "yes": [True, False]}).to_parquet(tmp_path / "table.parquet")
    assert read_table(tmp_path / "table.parquet").values.tolist() == [[1, 1], [2, 0]]


def test_parquet_writes_names_that_repeat(tmp_path):
    write_table(tmp_path / "table.parquet", VALUES, ["a", "a"])
    assert read_table(tmp_path / "table.parquet").columns == ["a", "a_2"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("\n\n", "is empty; the first line must hold the names"),
        ("a,b\n", "has no numbers: 0 rows and 2 columns"),
        ("1.5,2\n3,4\n", "has no header"),
        ("a;b\n1;2\n", "separated by semicolons"),
        ("a\tb\n1\t2\n", "separated by tabs"),
        (",a\n0,1\n1,2\n", "no name for column 1.*index=False"),
        ("a,b\n1,2\n3\n", r"1 entries in row 2 \(line 3\), the header has 2"),
        ("a,b\n1,2\n3,4,5\n", "3 entries in row 2"),
        ('a,b\n1,2\n3,"4', "not a readable .csv file"),
        ("a,city,c\n1,Paris,2\n3,Rome,x\n", r"columns that are not numbers: 'city' \(row 1: 'Paris'\), 'c' \(row 2"),
        ("a,b\n1,1_000\n", r"not numbers: 'b' \(row 1: '1_000'\)"),
        ("a,b\n1,2\n3,\n,NaN\n", "3 NaN or infinite entries, the first at row 2, column 'b'"),
        ("a,b\n1,2\n-inf,4\n", "1 NaN or infinite entry, the first at row 2, column 'a'"),
        ("a\n1\n\n", "1 NaN or infinite entry, the first at row 2, column 'a'"),
        ("a,b\n1,2\n1.25,1234", "is cut off: its last line has no end"),
    ],
)
def test_bad_csv(tmp_path, text, message):
    file = tmp_path / "table.csv"
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_table(file)


@pytest.mark.parametrize("content", ["a,b\n1,Zürich\n".encode("latin-1"), b"a,b\n1,\x00\n"])
def test_csv_that_is_not_text(tmp_path, content):
    (tmp_path / "table.csv").write_bytes(content)
    with pytest.raises(ValueError, match=r"not text in UTF-8|not a readable \.csv|not numbers"):
        read_table(tmp_path / "table.csv")


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array([[1, "a"]], dtype=object), "holds Python objects"),
        (np.array([["a", "b"]]), "entries of type <U1"),
        (np.array([[1j]]), "entries of type complex128"),
        (np.zeros(2, dtype=[("a", float)]), "expected real numbers"),
        (np.zeros(3), r"must have shape \(n, d\), got \(3,\); reshape a single feature"),
        (np.zeros((2, 8, 8)), r"got \(2, 8, 8\); flatten"),
        (np.zeros((0, 2)), "has no numbers"),
        (np.array([[0.0, np.nan], [np.inf, 0.0]]), "2 NaN or infinite entries, the first at row 1, column 'x2'"),
    ],
)
def test_bad_npy(tmp_path, array, message):
    np.save(tmp_path / "table.npy", array, allow_pickle=array.dtype == object)
    with pytest.raises(ValueError, match=message):
        read_table(tmp_path / "table.npy")


@pytest.mark.parametrize("ending", [".npy", ".parquet"])
@pytest.mark.parametrize("keep", [5, 0.5, 0.9])
def test_truncated_binary_files(tmp_path, ending, keep):
    file = tmp_path / f"table{ending}"
    write_table(file, VALUES, ["a", "b"])
    content = file.read_bytes()
    file.write_bytes(content[: keep if isinstance(keep, int) else int(keep * len(content))])
    with pytest.raises(ValueError, match="not a readable"):
        read_table(file)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ("(1000000000000, 3)", "takes 24000000000000 bytes, there are 72"),
        ("(True, 9)", r"shape \(True, 9\)"),
        ("(3, 2)", "takes 48 bytes, there are 72"),
        ("(3, 3", "not a readable"),
    ],
)
def test_npy_whose_header_is_damaged(tmp_path, shape, message):
    file = tmp_path / "table.npy"
    header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    file.write_bytes(b"\x93NUMPY\x01\x00v\x00" + header.encode() + bytes(72))
    with pytest.raises(ValueError, match=message) as error:
        read_table(file)
    assert str(file) in str(error.value)


def test_npy_that_is_an_archive(tmp_path):
    np.savez(tmp_path / "table.npz", VALUES)
    (tmp_path / "table.npz").rename(tmp_path / "table.npy")
    with pytest.raises(ValueError, match="archive of several arrays"):
        read_table(tmp_path / "table.npy")


def test_bad_parquet(tmp_path):
    file = tmp_path / "table.parquet"
    pd.DataFrame({"a": [1.0, 2.0], "city": ["Paris", "Rome"], "day": pd.to_datetime(["2024", "2025"])}).to_parquet(file)
    with pytest.raises(ValueError, match=r"not numbers: 'city' \(.*\), 'day' \(datetime"):
        read_table(file)
    pd.DataFrame({"a": pd.array([1, None], dtype="Int64")}).to_parquet(file)
    with pytest.raises(ValueError, match="1 NaN or infinite entry, the first at row 2, column 'a'"):
        read_table(file)


@pytest.mark.parametrize("missing", ["pandas", "pyarrow"])
def test_parquet_without_its_extra(tmp_path, monkeypatch, missing):
    file = tmp_path / "table.parquet"
    write_table(file, VALUES)
    monkeypatch.setitem(sys.modules, missing, None)
    for action in (lambda: read_table(file), lambda: write_table(file, VALUES, overwrite=True)):
        with pytest.raises(ImportError, match=r'pip install "wprox\[parquet\]"'):
            action()


def test_files_that_are_none(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        read_table(tmp_path / "none.csv")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(ValueError, match="is not a file"):
        read_table(tmp_path / "folder.csv")
    with pytest.raises(ValueError, match=r"ends in '\.xlsx'; tables are read and written as \.csv"):
        read_table(tmp_path / "table.xlsx")


def test_output_that_cannot_be_written(tmp_path):
    write_table(tmp_path / "table.csv", VALUES)
    with pytest.raises(ValueError, match="exists already"):
        write_table(tmp_path / "table.csv", VALUES)
    write_table(tmp_path / "table.csv", VALUES[:1], overwrite=True)
    assert read_table(tmp_path / "table.csv").values.shape == (1, 2)
    with pytest.raises(ValueError, match="does not exist; make it first"):
        check_output(tmp_path / "none" / "table.csv", overwrite=False)
    (tmp_path / "folder.npy").mkdir()
    with pytest.raises(ValueError, match="is a folder"):
        check_output(tmp_path / "folder.npy", overwrite=True)
    with pytest.raises(ValueError, match="1 names for 2 columns"):
        write_table(tmp_path / "other.csv", VALUES, ["a"])
    with pytest.raises(ValueError, match=r"values must have shape \(n, d\)"):
        write_table(tmp_path / "other.csv", VALUES[0])


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    file = tmp_path / "table.npy"
    write_table(file, VALUES)

    def full_disk(*arguments, **options):
        raise OSError("no space left on device")

    monkeypatch.setattr(np, "save", full_disk)
    with pytest.raises(OSError, match="no space"):
        write_table(file, VALUES[:1], overwrite=True)
    assert read_table(file).values.shape == (3, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["table.npy"]


NAMES = st.lists(
    st.sampled_from(
        ["1.5", "0", "1", "nan", " a", "a ", "a", "a_2", 'say "x"', "x,y", "x;y", "x\ty", "é", "\ufeffb", "\r", "x\ny"]
    )
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1),
    min_size=1,
    max_size=4,
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(NAMES, st.sampled_from([np.bool_, np.int64, np.float32, np.float64]), st.integers(0, 2**32 - 1))
@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_what_is_written_is_read_whatever_the_names(ending, names, dtype, seed):
    values = (np.random.default_rng(seed).normal(size=(2, len(names))) * 10).astype(dtype)
    with TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of names that are numbers
        file = Path(folder) / f"table{ending}"
        if all(name.strip() for name in names):
            write_table(file, values, names)
            table = read_table(file)
            assert (table.columns if len(set(names)) == len(names) else names) == names
            np.testing.assert_array_equal(table.values.astype(dtype), values)
        else:
            with pytest.raises(ValueError, match="has no name for column"):
                write_table(file, values, names)


@pytest.mark.parametrize("header", ["0,1", "1,2", '"1.5","7"'])
def test_a_header_of_numbers_may_be_a_row(tmp_path, header):
    (tmp_path / "table.csv").write_text(f"{header}\n1,2\n")
    with pytest.warns(UserWarning, match="named by numbers .*: if this is the first row, put a line with the names"):
        assert read_table(tmp_path / "table.csv").values.tolist() == [[1, 2]]


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_names_that_repeat_are_refused_and_not_written(tmp_path, ending):
    file = tmp_path / f"table{ending}"
    write_table(file, VALUES, ["a", "a"])
    assert read_table(file).columns == ["a", "a_2"]
    (tmp_path / "twice.csv").write_text("a,b, a\n1,2,3\n")
    with pytest.raises(ValueError, match="several columns of one name: 'a'; rename them"):
        read_table(tmp_path / "twice.csv")


@pytest.mark.parametrize(
    ("values", "message"),
    [([["x"]], "real numbers, got entries of type <U1"), ([[1j]], "complex128"), (np.zeros((0, 2)), r"got \(0, 2\)")],
)
def test_what_could_not_be_read_is_not_written(tmp_path, values, message):
    with pytest.raises(ValueError, match=message):
        write_table(tmp_path / "table.csv", values)
    assert not list(tmp_path.iterdir())


def test_whether_columns_have_names(tmp_path):
    for ending, named in ((".csv", True), (".parquet", True), (".npy", False)):
        write_table(tmp_path / f"table{ending}", VALUES)
        table = read_table(tmp_path / f"table{ending}")
        assert (table.columns, table.named) == (["x1", "x2"], named)


@pytest.mark.parametrize("ending", [".csv", ".npy"])
def test_tensors_on_a_graph_and_in_half_precision_are_written(ending, tmp_path):
    x = torch.tensor([[0.5, 1.25], [3.0, -2.0]])
    kinds = (x.clone().requires_grad_(), x.bfloat16(), x.half(), x.half().numpy())
    for k, values in enumerate(kinds):
        file = tmp_path / f"{k}{ending}"
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            write_table(file, values)
        assert read_table(file).values.tolist() == x.tolist()


def test_names_that_are_years_are_put_in_quotes(tmp_path):
    file = tmp_path / "years.csv"
    file.write_text("2019,2020\n1,2\n")
    with pytest.raises(ValueError, match="or put the names in quotes"):
        read_table(file)
