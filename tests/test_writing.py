"""Folders that are claimed, written in one moment or elsewhere; signals; and files that ask for too much."""

import json
import os
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from mutations import READ, REFUSED, outcome_of
from typer.testing import CliRunner

import wprox
from wprox import JKOFlow, _writing
from wprox._writing import Claim, claimed, current
from wprox.app import report
from wprox.app.cli import app
from wprox.app.output import FitFolder
from wprox.app.tables import write_table
from wprox.models import folders
from wprox.models.folders import checksum

REPOSITORY = Path(wprox.__file__).parents[1]
QUICK = ["--blocks", "1", "--iterations", "5", "--no-fine-tune", "--no-baselines"]
FILES = {"model.safetensors", "config.json", "metrics.json", "samples.png", "trajectory.png"}


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    file = tmp_path_factory.mktemp("data") / "table.csv"
    write_table(file, np.random.default_rng(0).normal(size=(120, 2)), ["east", "north"])
    return file


def fit(table, out, *options):
    return CliRunner().invoke(app, [str(argument) for argument in ("fit", table, "--out", out, *QUICK, *options)])


@pytest.fixture(scope="module")
def flow():
    options = {"hidden": [4], "transforms": 1}
    return JKOFlow(n_blocks=1, iterations=2, fine_tune=False, map_options=options).fit(torch.randn(50, 2).double())


def mkdir_with(**files):
    def write(folder):
        folder.mkdir()
        for name, text in files.items():
            (folder / name).write_text(text)

    return write


def texts(folder):
    return {path.name: path.read_text() for path in folder.iterdir()}


# claims


def test_a_folder_that_is_being_written_is_refused_before_the_training(table, tmp_path):
    with claimed(tmp_path / "deep" / "model"):
        result = fit(table, tmp_path / "deep" / "model")
        assert result.exit_code == 2
        assert result.stderr.endswith(
            "model is being written by another process; wait until it has ended, or choose another name\n"
        )
        assert "training" not in result.stderr
    assert os.listdir(tmp_path) == []  # nor are folders that were made for nothing


def test_what_a_killed_process_left_is_removed_by_the_next_claim(tmp_path):
    child = os.fork()
    if child == 0:
        claim = Claim(tmp_path / "model")
        (claim.work / "half").mkdir()
        os._exit(0)
    os.waitpid(child, 0)
    assert os.listdir(tmp_path) == [".model.wprox"]
    with claimed(tmp_path / "model") as claim:
        assert os.listdir(claim.work) == []
    assert os.listdir(tmp_path) == []


def test_a_link_in_the_place_of_the_work_folder_is_not_followed(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    (tmp_path / ".model.wprox").symlink_to(tmp_path / "mine")
    with pytest.raises(ValueError, match="cannot be made"):
        Claim(tmp_path / "model")
    assert texts(tmp_path / "mine") == {"notes.txt": "mine"}


@pytest.mark.parametrize("exchanges", [True, False])
@pytest.mark.parametrize("beside", [True, False])
def test_a_folder_is_replaced_whole_and_others_files_stay(exchanges, beside, tmp_path, monkeypatch):
    """With and without the system's exchange, and where the folder above cannot be written to."""
    folder, lock = tmp_path / "model", _writing._lock
    folder.mkdir()

    def only_inside(path):
        if path.parent == tmp_path:
            raise PermissionError(1, "read-only")
        return lock(path)

    def cannot(first, second):
        raise OSError("no such thing")

    if not beside:
        monkeypatch.setattr(_writing, "_lock", only_inside)
    if not exchanges:
        monkeypatch.setattr(_writing, "_exchange", cannot)
    for text in ("old", "new"):
        with claimed(folder) as claim:
            claim.write_folder(mkdir_with(a=text, b=text), own=("a", "b", "c"), overwrite=True)
        assert texts(folder) == {"a": text, "b": text}
    (folder / "notes.txt").write_text("mine")
    (folder / "c").write_text("old")
    with claimed(folder) as claim:
        with pytest.raises(FileExistsError):
            claim.write_folder(mkdir_with(a="newest"))
        claim.write_folder(mkdir_with(a="newest", b="newest"), own=("a", "b", "c"), overwrite=True)
        claim.replace("b", b"replaced")
    assert texts(folder) == {"a": "newest", "b": "replaced", "notes.txt": "mine"}
    assert os.listdir(tmp_path) == ["model"]


def test_a_folder_is_what_was_saved_inside_it_until_all_is_in_place(flow, tmp_path):
    """As a kill leaves it, in a place that cannot be exchanged."""
    flow.save(tmp_path / "model")
    wprox.JKOFlow(n_blocks=1, iterations=1, fine_tune=False, seed=5).fit(torch.randn(40, 2)).save(tmp_path / "new")
    (tmp_path / "new").rename(tmp_path / "model" / ".wprox-saved")
    (tmp_path / "model" / "config.json").write_bytes((tmp_path / "model" / ".wprox-saved" / "config.json").read_bytes())
    assert current(tmp_path / "model").name == ".wprox-saved"
    assert JKOFlow.load(tmp_path / "model").seed == 5
    _writing.settle(tmp_path / "model")
    assert JKOFlow.load(tmp_path / "model").seed == 5
    assert set(os.listdir(tmp_path / "model")) == {"config.json", "model.safetensors"}


def saved_inside(folder, **files):
    """A folder with other files in it, in the moment before what was saved inside takes its place."""
    (folder / ".wprox-saved").mkdir()
    for file in folder.iterdir():
        if file.is_file():
            (folder / ".wprox-saved" / file.name).write_bytes(file.read_bytes())
    for name, text in files.items():
        (folder / ".wprox-saved" / f"{name}.json").write_text(text)


@pytest.mark.parametrize("reader", ["model", "metrics"])
def test_what_takes_its_place_while_it_is_read_is_not_damaged(reader, flow, tmp_path, monkeypatch):
    flow.save(tmp_path / "model")
    saved_inside(tmp_path / "model", metrics='{"held_out": [], "seconds": 3}')
    module = folders if reader == "model" else report
    read_json, calls = module.read_json, []

    def read_late(file, advice):
        calls.append(file.parent.name)
        _writing.settle(tmp_path / "model")
        return read_json(file, advice)

    monkeypatch.setattr(module, "read_json", read_late)
    if reader == "model":
        assert JKOFlow.load(tmp_path / "model").n_features_in_ == 2
    else:
        assert report.read_metrics(tmp_path / "model")["seconds"] == 3
    assert calls == [".wprox-saved", "model"]


def test_files_of_two_saves_are_read_until_they_are_of_one(flow, tmp_path, monkeypatch):
    folder = tmp_path / "model"
    flow.save(folder)
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace('"jitter"', '"other"'))
    with pytest.raises(ValueError, match="damaged"):
        JKOFlow.load(folder)
    read_json = folders.read_json

    def read_early(file, advice):
        said = read_json(file, advice)
        file.write_text(config)
        return said

    monkeypatch.setattr(folders, "read_json", read_early)
    assert JKOFlow.load(folder).n_features_in_ == 2


def test_a_symbolic_link_to_a_folder_stays_one(flow, tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    for _ in range(2):
        flow.save(tmp_path / "link", overwrite=True)
    assert (tmp_path / "link").is_symlink()
    assert set(os.listdir(tmp_path / "real")) == {"config.json", "model.safetensors"}


# a fit that cannot write at the end, or is not finished


def test_a_model_that_cannot_be_written_is_saved_elsewhere(table, tmp_path, monkeypatch):
    write_folder = Claim.write_folder

    def full(self, *arguments, **options):
        if self.path.name == "model":
            raise OSError(28, "No space left on device")
        write_folder(self, *arguments, **options)

    monkeypatch.setattr(Claim, "write_folder", full)
    result = fit(table, tmp_path / "model")
    assert result.exit_code == 1
    place = tmp_path.resolve() / "model.saved"
    said = f"{tmp_path}/model could not be written (No space left on device); the model is in {place}\n"
    assert result.stderr.endswith(said)
    assert set(os.listdir(place)) == FILES
    assert os.listdir(tmp_path) == ["model.saved"]


def test_a_model_whose_pictures_fail_is_saved(table, tmp_path, monkeypatch):
    def fail(*arguments):
        raise OSError("no fonts")

    monkeypatch.setattr("wprox.app.fitting._pictures", fail)
    result = fit(table, tmp_path / "model")
    assert (result.exit_code, result.stderr.splitlines()[-1]) == (2, "wprox: no fonts")
    assert set(os.listdir(tmp_path / "model")) == FILES - {"samples.png", "trajectory.png"}
    assert JKOFlow.load(tmp_path / "model").feature_names_in_.tolist() == ["east", "north"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_keep_what_is_trained_and_a_model_that_is_there(number, table, tmp_path, monkeypatch, flow):
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a run in the background inherits it as ignored
    step, count = torch.optim.AdamW.step, 0

    def interrupted(*arguments, **options):
        nonlocal count
        count += 1
        if count in (3, 6):
            os.kill(os.getpid(), number)
        return step(*arguments, **options)

    monkeypatch.setattr("wprox.app.fitting._pictures", lambda *_: {})
    before = {other: signal.getsignal(other) for other in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    monkeypatch.setattr(torch.optim.AdamW, "step", interrupted)
    result = fit(table, tmp_path / "model")
    assert result.exit_code == 128 + number
    said = f"wprox: interrupted; {tmp_path}/model has what was trained so far, 1 block"
    assert result.stderr.splitlines()[-1] == said
    assert JKOFlow.load(tmp_path / "model").interrupted_
    flow.save(tmp_path / "finished")
    result = fit(table, tmp_path / "finished", "--overwrite")
    assert result.exit_code == 128 + number
    assert result.stderr.splitlines()[-1] == (
        f"wprox: interrupted; {tmp_path.resolve()}/finished.interrupted has what was trained so far, 1 block; "
        f"{tmp_path}/finished keeps the model that it had"
    )
    assert not JKOFlow.load(tmp_path / "finished").interrupted_
    assert JKOFlow.load(tmp_path / "finished.interrupted").interrupted_
    assert {other: signal.getsignal(other) for other in before} == before


SENDS = "import os, signal, time; os.kill(os.getpid(), signal.{}); time.sleep(60)"


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
@pytest.mark.parametrize("module", [True, False])
def test_signals_during_the_first_imports(name, code, module, tmp_path):
    """A torch that sends the signal while it is imported, as the first package that wprox imports."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text(SENDS.format(name))
    script = Path(sysconfig.get_path("scripts")) / "wprox"
    done = subprocess.run(
        [sys.executable, *(["-m", "wprox"] if module else [str(script)]), "info", "x"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{REPOSITORY}"},
        preexec_fn=lambda: [signal.signal(number, signal.SIG_DFL) for number in (signal.SIGINT, signal.SIGTERM)],
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (code, "wprox: interrupted\n")


# files that ask for too much, or say what cannot be


def reseal(folder, change):
    """Change what config.json says and the tensors, with a checksum that fits."""
    config = json.loads((folder / "config.json").read_text())
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    change(config, tensors)
    packed = safetensors.torch.save(tensors)
    config["sha256"] = checksum(config, packed)
    (folder / "model.safetensors").write_bytes(packed)
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("options", [
    {"transforms": 10**9}, {"hidden": [10**6] * 300}, {"bins": 10**9}, {"frequencies": 10**9}, {"dim": 10**6},
    {"dim": 10**30}, {"coupling": False, "hidden": [10**6] * 9, "dim": 3},
])  # fmt: skip
def test_a_description_that_asks_for_gigabytes_is_refused_at_once(options, flow, tmp_path):
    flow.save(tmp_path / "model")
    reseal(tmp_path / "model", lambda config, tensors: config["blocks"][0]["config"].update(options))
    start = time.process_time()
    with pytest.raises(ValueError, match=r"model is damaged: its files do not fit together \(.*\); save it again"):
        JKOFlow.load(tmp_path / "model")
    assert time.process_time() - start < 5


def _set(name, value):
    def change(config, tensors):
        tensors[name].view(-1)[0] = value

    return change


def _drop(name):
    return lambda config, tensors: tensors.pop(name)


def _reshape(name, *shape):
    return lambda config, tensors: tensors.update({name: tensors[name].reshape(-1)[:1].expand(shape).contiguous()})


def _say(tensors, config, more):
    tensors.update(more)
    config["preprocessing"] = sorted(name[14:] for name in tensors if name.startswith("preprocessing."))


@pytest.fixture(scope="module")
def bounded_flow():
    x = torch.rand(60, 2, generator=torch.Generator().manual_seed(0)).double()
    return JKOFlow(n_blocks=1, iterations=1, fine_tune=False, bounds=(0, 1), map_options={"hidden": [4]}).fit(x)


@pytest.mark.parametrize("entry", [-0.5, 7.0])
def test_tails_are_those_that_are_chosen_from(entry, tmp_path):
    x = torch.randn(200, 2, generator=torch.Generator().manual_seed(0)).double().tan()
    flow = JKOFlow(n_blocks=1, iterations=1, fine_tune=False, map_options={"hidden": [4]}).fit(x)
    flow.save(tmp_path / "model")
    for change in (_set("preprocessing.tails", entry), _drop("preprocessing.tails")):
        flow.save(tmp_path / "model", overwrite=True)
        reseal(tmp_path / "model", change)
        with pytest.raises(ValueError, match="preprocessing"):
            JKOFlow.load(tmp_path / "model")


def test_the_box_of_splines_has_a_size_to_compute_with():
    with pytest.raises(ValueError, match="bound must be at most 1e"):
        wprox.SplineMap(2, bound=1e200)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_set("blocks.0.layers.0.shift", float("nan")), "shift has NaN or infinite entries"),
        (_set("blocks.0.layers.1.network.0.bias", float("inf")), "bias has NaN or infinite entries"),
        (_set("blocks.0.layers.1.axes.order", 7), "order is not as the map is made"),
        (_set("preprocessing.std", float("nan")), "preprocessing.std has NaN"),
        (_set("preprocessing.std", -1.0), "preprocessing.std has numbers beyond"),
        (_set("preprocessing.edges", 1.0), "preprocessing.edges has numbers beyond 0 and 1"),
        (_drop("preprocessing.edges"), "its preprocessing is not what it says"),
        (_reshape("preprocessing.low", 1, 2), r"preprocessing.low has type torch.float64 and shape \(1, 2\)"),
        (_reshape("preprocessing.edges", 1, 2, 2), "preprocessing.edges has type"),
        (lambda config, tensors: config.update(jitter=float("nan")), "jitter is no number"),
        (lambda config, tensors: config.update(jitter=-1), "jitter is no number"),
        (lambda config, tensors: config["blocks"][0]["config"].update(bound=1e308), r"a setting of 1e\+308"),
        (_set("preprocessing.kept", 5), "which columns are kept"),
        (lambda config, tensors: tensors.update({"preprocessing.fit": torch.zeros(2)}), "not what it says"),
        (lambda config, tensors: _say(tensors, config, {"preprocessing.fit": torch.zeros(2)}), "fit .*unknown"),
        (lambda config, tensors: tensors.update({"preprocessing.mean": torch.zeros(3).double()}), "preprocessing.mean"),
        (lambda config, tensors: config.update(columns=["a"]), "names 1 columns, and has 2"),
        (lambda config, tensors: config.update(columns=["a", "\ud800"]), "columns have no names"),
        (lambda config, tensors: config["history"][0].update(held_out_nll="x"), "history is incomplete"),
        (lambda config, tensors: config.update(step_sizes=["x"]), "no step sizes"),
        (lambda config, tensors: config["parameters"].update(integer="no"), "true or false"),
        (lambda config, tensors: config["parameters"].update(memory_budget=0), "memory_budget is no whole number"),
        (lambda config, tensors: config["parameters"].update(memory_budget={}), "memory_budget is no whole number"),
        (lambda config, tensors: config["parameters"].update(seed=-1), "seed is no whole number"),
    ],
)  # fmt: skip
def test_numbers_names_and_shapes_are_checked(change, said, bounded_flow, tmp_path):
    bounded_flow.save(tmp_path / "model")
    reseal(tmp_path / "model", change)
    with pytest.raises(ValueError, match=rf"{tmp_path}/model is damaged.*{said}"):
        JKOFlow.load(tmp_path / "model")


def test_every_bit_of_the_configuration_counts(flow, tmp_path):
    """A flipped bit of config.json is refused, or is in what JSON does not read."""
    flow.save(tmp_path / "model")
    file, generator = tmp_path / "model" / "config.json", np.random.default_rng(0)
    text, same = file.read_bytes(), 0
    for bit in generator.choice(8 * len(text), size=300, replace=False):
        changed = bytearray(text)
        changed[bit // 8] ^= 1 << (bit % 8)
        file.write_bytes(changed)
        code, said = outcome_of(JKOFlow.load, tmp_path / "model")
        assert code in (READ, REFUSED), said
        if code == READ:
            assert json.loads(changed) == json.loads(text)
            same += 1
    assert same < 5


def test_column_names_are_part_of_the_model(table, tmp_path, monkeypatch):
    monkeypatch.setattr("wprox.app.fitting._pictures", lambda *_: {})
    assert fit(table, tmp_path / "model").exit_code == 0
    (tmp_path / "model" / "metrics.json").unlink()
    for command in (["info"], ["sample", "-n", "2", "--out", tmp_path / "new.csv"]):
        name, *rest = command
        result = CliRunner().invoke(app, [name, str(tmp_path / "model"), *map(str, rest)])
        assert result.exit_code == 0, result.output
    assert (tmp_path / "new.csv").read_text().startswith("east,north\n")


# names and places


def test_a_circle_of_links_a_file_above_and_long_names(table, tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    result = fit(table, tmp_path / "loop")
    assert (result.exit_code, "leads back to itself" in result.stderr) == (2, True)
    result = fit(table, table / "model")
    assert (result.exit_code, f"{table} is a file" in result.stderr) == (2, True)
    for name in ("n" * 250, "é" * 125):
        with claimed(tmp_path / name) as claim:
            claim.write_folder(mkdir_with(a="new"))
            with pytest.raises(ValueError, match="written by another process"):
                Claim(tmp_path / name)
        assert texts(tmp_path / name) == {"a": "new"}
    assert len(os.listdir(tmp_path)) == 3


def test_a_long_name_is_shortened_for_what_is_written_beside(flow, tmp_path):
    out = tmp_path / ("é" * 125)
    flow.save(out)
    with FitFolder(out, True, FILES) as folder:
        folder.write(mkdir_with(a="partly"), finished=False)
        assert folder.place.name.endswith("éé.interrupted")
    assert JKOFlow.load(out).n_features_in_ == 2


def test_what_a_killed_process_left_of_a_model_elsewhere_is_removed(tmp_path):
    for name in (".m.interrupted.wprox", ".m.saved-2.wprox", ".other.wprox"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "new").write_text("half")
    with FitFolder(tmp_path / "m", False, FILES):
        assert set(os.listdir(tmp_path)) == {".m.wprox", ".other.wprox"}


def test_files_that_a_new_model_has_not_stay_until_it_is_whole(tmp_path, monkeypatch):
    """A kill before the rename leaves the old folder as it was."""
    folder = tmp_path / "model"
    mkdir_with(a="old", picture="old", notes="mine")(folder)

    def killed(source, target):
        raise KeyboardInterrupt

    with claimed(folder) as claim, monkeypatch.context() as patch:
        patch.setattr(os, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            claim.write_folder(mkdir_with(a="new"), own={"picture"}, overwrite=True)
    assert {"a", "picture", "notes"} <= set(os.listdir(folder))
    with claimed(folder) as claim:
        claim.write_folder(mkdir_with(a="new"), own={"picture"}, overwrite=True)
    assert texts(folder) == {"a": "new", "notes": "mine"}
