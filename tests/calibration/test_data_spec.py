"""Data descriptions: bare files, YAML, parts that never overlap, and refusals."""

import json

import numpy as np
import pytest
from PIL import Image
from word_tokenizer import word_tokenizer

from edgesmith_calibration.errors import DataError
from edgesmith_calibration.preprocessing import ImagePreprocessing, TextPreprocessing
from edgesmith_calibration.spec import DataSpec, NpzSpec, PythonSpec, TextSpec, load_data_spec, open_data, open_source

TEXT = TextPreprocessing(max_length=6)
IMAGE = ImagePreprocessing(resize=8, crop=(8, 8))
ASSETS = {"tokenizer.json": word_tokenizer()}


def write_npz(path, samples=20, start=0):
    values = np.arange(start, start + samples, dtype=np.float32)
    np.savez(path, x=values[:, np.newaxis], labels=np.arange(samples) % 2)
    return path


def values(source):
    return {float(value) for batch in source.batches(8) for value in batch.inputs["x"].ravel()}


def python_samples():
    """Yield samples, as a user's function would."""
    for index in range(12):
        yield {"x": np.float32([index]), "label": index % 2}


NOT_A_FUNCTION = 3


def test_a_bare_npz_file_is_cut_in_two(tmp_path):
    spec = load_data_spec(write_npz(tmp_path / "data.npz"))
    calibration, evaluation = open_data(spec, base=tmp_path)
    assert (len(calibration), len(evaluation)) == (4, 16)
    assert values(calibration) | values(evaluation) == set(range(20))
    assert np.bincount(calibration.labels()).tolist() == [2, 2]


def test_duplicates_do_not_straddle_the_parts_of_a_bare_file(tmp_path):
    np.savez(tmp_path / "data.npz", x=np.repeat(np.arange(10.0), 3)[:, np.newaxis])
    calibration, evaluation = open_data(load_data_spec(tmp_path / "data.npz"), base=tmp_path)
    assert len(calibration) + len(evaluation) == 30
    assert not values(calibration) & values(evaluation)


def test_a_bare_folder_of_images(tmp_path):
    for index in range(10):
        path = tmp_path / "photos" / f"{index % 2}" / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9), (index, 0, 0)).save(path)
    spec = load_data_spec(tmp_path / "photos")
    calibration, evaluation = open_data(spec, preprocessing=IMAGE, base=tmp_path)
    assert (len(calibration), len(evaluation)) == (2, 8)
    assert sorted(calibration.labels().tolist()) == [0, 1]


@pytest.mark.parametrize("suffix", [".csv", ".txt"])
def test_a_bare_text_file(tmp_path, suffix):
    header = "text,label\n" if suffix == ".csv" else ""
    lines = [f"good film {index}{',' + str(index % 2) if header else ''}\n" for index in range(10)]
    (tmp_path / f"data{suffix}").write_text(header + "".join(lines))
    spec = load_data_spec(str(tmp_path / f"data{suffix}"))
    calibration, evaluation = open_data(spec, preprocessing=TEXT, assets=ASSETS, base=tmp_path)
    assert (len(calibration), len(evaluation)) == (2, 8)
    assert evaluation.has_labels == bool(header)


def test_text_for_a_language_model_becomes_windows(tmp_path):
    (tmp_path / "book.txt").write_text("good bad film\n" * 40)
    language_model = TEXT.model_copy(update={"next_token": True, "inputs": ("input_ids",)})
    spec = TextSpec(path="book.txt")
    source = open_source(spec, preprocessing=language_model, assets=ASSETS, base=tmp_path)
    assert source.labels().shape == (19, 6)
    lines = open_source(spec.model_copy(update={"windows": False}), preprocessing=TEXT, assets=ASSETS, base=tmp_path)
    assert len(lines) == 40


@pytest.mark.parametrize("suffix", [".yaml", ".json"])
def test_a_described_pair_of_files(tmp_path, suffix):
    write_npz(tmp_path / "a.npz", 10)
    write_npz(tmp_path / "b.npz", 10, start=100)
    content = {
        "calibration": {"kind": "npz", "path": "a.npz", "limit": 4},
        "evaluation": {"kind": "npz", "path": "b.npz"},
    }
    (tmp_path / f"data{suffix}").write_text(json.dumps(content))
    calibration, evaluation = open_data(load_data_spec(tmp_path / f"data{suffix}"), base=tmp_path)
    assert (len(calibration), len(evaluation)) == (4, 10)
    assert np.bincount(calibration.labels()).tolist() == [2, 2]
    assert evaluation.has_labels


def test_only_one_of_the_two(tmp_path):
    write_npz(tmp_path / "a.npz")
    (tmp_path / "data.yaml").write_text("evaluation: {kind: npz, path: a.npz}\n")
    calibration, evaluation = open_data(load_data_spec(tmp_path / "data.yaml"), base=tmp_path)
    assert calibration is None
    assert len(evaluation) == 20


@pytest.mark.parametrize(("first", "second"), [("a.npz", "a.npz"), ("./a.npz", "a.npz")])
def test_the_same_file_twice_is_made_disjoint(tmp_path, first, second):
    write_npz(tmp_path / "a.npz")
    spec = DataSpec(calibration=NpzSpec(path=first, seed=5), evaluation=NpzSpec(path=second))
    assert spec == DataSpec.model_validate(spec.model_dump())
    calibration, evaluation = (open_source(one, base=tmp_path) for one in (spec.calibration, spec.evaluation))
    assert values(calibration) | values(evaluation) == set(range(20))
    assert not values(calibration) & values(evaluation)


def test_a_copy_of_the_evaluation_data_is_taken_out_of_calibration(tmp_path):
    write_npz(tmp_path / "a.npz", 20)
    write_npz(tmp_path / "b.npz", 12)
    spec = DataSpec(calibration=NpzSpec(path="a.npz"), evaluation=NpzSpec(path="b.npz"))
    calibration, _ = open_data(spec, base=tmp_path)
    assert values(calibration) == set(range(12, 20))
    same = DataSpec(calibration=NpzSpec(path="b.npz"), evaluation=NpzSpec(path="x/../b.npz"))
    (tmp_path / "x").mkdir()
    with pytest.raises(DataError, match="is also in"):
        open_data(same, base=tmp_path)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"part": "calibration"}, {}),
        ({}, {"part": "evaluation"}),
        ({"part": "evaluation"}, {"part": "evaluation"}),
        ({"part": "calibration", "seed": 1}, {"part": "evaluation"}),
    ],
)
def test_overlapping_parts_are_refused(tmp_path, first, second):
    path = write_npz(tmp_path / "a.npz")
    content = {
        "calibration": {"kind": "npz", "path": str(path)} | first,
        "evaluation": {"kind": "npz", "path": str(path)} | second,
    }
    (tmp_path / "data.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="parts that overlap"):
        load_data_spec(tmp_path / "data.json")


def test_a_python_function():
    spec = PythonSpec(function=f"{__name__}:python_samples")
    source = open_source(spec)
    assert len(source) == 12
    assert source.labels().tolist() == [0, 1] * 6


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("no_such_module:samples", "cannot be imported"),
        (f"{__name__}:no_such_function", "cannot be imported"),
        (f"{__name__}:NOT_A_FUNCTION", "is a int"),
    ],
)
def test_functions_that_cannot_be_called_are_refused(function, message):
    with pytest.raises(DataError, match=message):
        open_source(PythonSpec(function=function))


def test_a_module_that_fails_to_import_is_named_with_the_line(tmp_path, monkeypatch):
    (tmp_path / "broken_samples.py").write_text("ready = True\nraise RuntimeError('no licence')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(DataError) as caught:
        open_source(PythonSpec(function="broken_samples:samples"))
    assert caught.value.what.startswith("the data function 'broken_samples:samples' cannot be imported")
    assert f"RuntimeError: no licence (line 2 of {tmp_path / 'broken_samples.py'})" in caught.value.what


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("d.yaml", "calibration: {kind: npz}", "calibration.npz.path: Field required"),
        ("d.yaml", "calibration: {kind: video, path: a}", "calibration: .*'video'"),
        ("d.yaml", "train: {kind: npz, path: a.npz}", "train: Extra inputs"),
        ("d.yaml", "calibration: {kind: npz, path: a.npz, limit: 0}", "calibration.npz.limit"),
        ("d.yaml", "calibration: {kind: python, function: 'os.system(1)'}", "calibration.python.function"),
        ("d.yaml", "calibration: [", "while parsing"),
        ("d.yaml", "a: &a [x]\ncalibration: {kind: *a, path: *a}", "aliases"),
        ("d.yaml", f"calibration: {{kind: [{'a, ' * 9000}], path: a}}", "calibration"),
        ("d.yaml", "- a\n- b\n", "the whole"),
        ("d.yaml", "", "the whole"),
        ("d.yaml", "[" * 50_000, "recursion"),
        ("d.yaml", "calibration: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
        ("d.json", b"\xff\xfe", "not a valid data description"),
        ("d.yaml", "#" * (1 << 20) + "##", "larger than"),
        ("d.bin", "x", "is of an unknown kind"),
    ],
)
def test_descriptions_that_are_not_valid_are_refused_with_all_four_parts(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=message) as error:
        load_data_spec(tmp_path / name)
    assert all((error.value.expected, error.value.why, error.value.fix))


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        load_data_spec(tmp_path / "none.yaml")
    with pytest.raises(DataError, match="does not exist"):
        open_source(NpzSpec(path="none.npz"), base=tmp_path)


@pytest.mark.parametrize(
    ("kind", "preprocessing"), [("images", None), ("images", TEXT), ("text", None), ("text", IMAGE)]
)
def test_raw_data_needs_the_models_preprocessing(tmp_path, kind, preprocessing):
    spec = DataSpec.model_validate({"evaluation": {"kind": kind, "path": "data"}}).evaluation
    with pytest.raises(DataError, match=r"(?s)the model does not say how.*`preprocessing:`"):
        open_source(spec, preprocessing=preprocessing, assets=ASSETS, base=tmp_path)


def test_one_sample_cannot_serve_both(tmp_path):
    write_npz(tmp_path / "a.npz", 1)
    with pytest.raises(DataError, match="cannot be split"):
        open_data(load_data_spec(tmp_path / "a.npz"), base=tmp_path)
