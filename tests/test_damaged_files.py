"""Damaged files, made by hypothesis: one line or a right result, and nothing is written.

Every file of a run is opened by the functions by which the commands read it. The full number
(500 a format): `pytest -m slow tests/test_damaged_files.py`.
"""

import functools
import io
import json
import shutil
import struct
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from mnist_ray import load_model, open_run
from mnist_ray.errors import MnistRayError
from mnist_ray.export import read as onnx_file
from mnist_ray.export.write import rebuild
from mnist_ray.finetune_job import job
from mnist_ray.finetune_job.chain import begin
from mnist_ray.finetune_job.recipe import read_stages
from mnist_ray.report.model_part import load_tested
from mnist_ray.report.read import read_run
from mnist_ray.run.about import About
from mnist_ray.run.checkpoint import unpack
from mnist_ray.search_job.plan import prepare
from mnist_ray.settings import FinetuneSettings, SearchSettings, parse
from mnist_ray.spaces import DataShape, find
from mnist_ray.storage import RunStorage
from mnist_ray.study.points import read_points
from tests.support import ROOT

KEPT = ROOT / "tests" / "kept_runs" / "finished"
FEW, MANY = 12, 500

Change = Callable[[st.DataObject, bytes], bytes]
Read = Callable[[Path], Any]

# ---- what the commands do with a run


def report(folder: Path) -> None:
    run = read_run(RunStorage(str(folder)))
    assert run.spans is not None
    if run.manifest is not None:
        load_tested(run, None, None)


def look(folder: Path) -> None:
    run = open_run(folder)
    for read in (
        lambda: (run.name, run.state, run.settings),
        lambda: run.best,
        lambda: (run.trials, run.history),
        lambda: run.study.trials,
    ):
        one_line(read)


def resume(folder: Path) -> None:
    prepare(SearchSettings.of(storage=str(folder.parent), name=folder.name, resume=True, trials=9))


def warm_start(folder: Path) -> None:
    prepare(
        SearchSettings.of(
            storage=str(folder.parent / "new"),
            warm_start=str(folder),
            **{key: json.loads((KEPT / "run.json").read_text())["settings"][key] for key in SAME},
        )
    )


SAME = ("dataset", "space", "space_args", "train_images", "val_images", "metric", "max_epochs")


def finetune(folder: Path) -> None:
    about = About.read(RunStorage(str(folder)), "--run")
    task, *_ = job._prepare(FinetuneSettings(run=str(folder), stages="small"), about)
    begin(task, about.storage)


def predict(folder: Path) -> None:
    model = load_model(folder)
    assert isinstance(model.classes, tuple)
    model.predict(np.full((8, 8), 200, np.uint8))
    one_line(lambda: model.images(data_dir=str(folder)))


def predict_file(folder: Path) -> None:
    """As a person has it: without the model.json beside it."""
    alone = folder.parent / "alone"
    alone.mkdir(exist_ok=True)
    shutil.copy(folder / "model.onnx", alone / "model.onnx")
    predict(alone / "model.onnx")


def rebuilt(folder: Path) -> None:
    data = (folder / "model.onnx").read_bytes()
    onnx_file.load_verified(data, "model.onnx")
    rebuild(data, "model.onnx")


# ---- damage


def one_line(read: Callable[[], Any]) -> str:
    """Empty, or the line of the error."""
    try:
        read()
    except MnistRayError as error:
        assert "\n" not in str(error), str(error)
        return str(error) or type(error).__name__
    return ""


def damaged(draw: st.DataObject, content: bytes) -> bytes:
    """Cut, flipped, filled, doubled, or something else."""
    kind = draw.draw(st.sampled_from(["cut", "flip", "zeros", "insert", "drop", "double", "other"]))
    at = draw.draw(st.integers(0, max(0, len(content) - 1)))
    size = draw.draw(st.integers(1, 64))
    if kind == "cut":
        return content[:at]
    if kind == "flip":
        bit = 1 << draw.draw(st.integers(0, 7))
        return content[:at] + bytes([content[at] ^ bit]) + content[at + 1 :]
    if kind == "other":
        return draw.draw(st.binary(max_size=200))
    new = {
        "zeros": bytes(min(size, len(content) - at)),
        "insert": draw.draw(st.binary(min_size=1, max_size=8)) + content[at : at + size],
        "drop": b"",
        "double": content[at : at + size] * 2,
    }[kind]
    return content[:at] + new + content[at + size :]


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=8),
    st.sampled_from(["../x", "\x1b[2J", "a\nb", "${HOME}", "os:system", "1e999", "NaN"]),
    st.lists(st.integers(), max_size=3), st.dictionaries(st.text(max_size=3), st.integers()),
    st.just([[[]]]), st.just({"a": {"b": None}}),
)  # fmt: skip


def changed(draw: st.DataObject, value: Any, depth: int = 0) -> Any:
    """A JSON value with one of its parts missing, doubled, or replaced by anything."""
    inner = isinstance(value, dict | list) and value
    if not inner or (depth and draw.draw(st.integers(0, 4)) == 0):
        return draw.draw(VALUES)
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key = draw.draw(st.sampled_from(keys))
    copy = value.copy()
    if draw.draw(st.integers(0, 4)) == 0:
        del copy[key]
    else:
        copy[key] = changed(draw, value[key], depth + 1)
    return copy


def json_file(draw: st.DataObject, content: bytes) -> bytes:
    if draw.draw(st.integers(0, 3)) == 0:
        return damaged(draw, content)
    return json.dumps(changed(draw, json.loads(content))).encode()


def journal(draw: st.DataObject, content: bytes) -> bytes:
    if draw.draw(st.integers(0, 3)) == 0:
        return damaged(draw, content)
    lines = content.splitlines()
    at = draw.draw(st.integers(0, len(lines) - 1))
    kind = draw.draw(st.sampled_from(["change", "drop", "double", "garbage", "swap"]))
    new = {
        "change": [json.dumps(changed(draw, json.loads(lines[at]))).encode()],
        "drop": [],
        "double": [lines[at]] * 2,
        "garbage": [lines[at], draw.draw(st.binary(max_size=20))],
        "swap": [*lines[at + 1 : at + 2], lines[at]],
    }[kind]
    return b"\n".join([*lines[:at], *new, *lines[at + 1 :]]) + b"\n"


def table(draw: st.DataObject, content: bytes) -> bytes:
    if draw.draw(st.integers(0, 3)) == 0:
        return damaged(draw, content)
    found = pq.read_table(io.BytesIO(content))
    name = draw.draw(st.sampled_from(found.column_names))
    place = found.column_names.index(name)
    kind = draw.draw(st.sampled_from(["drop", "type", "value", "null", "double", "rows"]))
    if kind == "drop":
        found = found.drop_columns([name])
    elif kind == "double":
        found = found.append_column(name, found[name])
    elif kind == "rows":
        found = found.slice(0, draw.draw(st.integers(0, 2)))
    else:
        values = found[name].to_pylist()
        if kind == "type":
            values = [draw.draw(VALUES)] * len(values)
        else:
            at = draw.draw(st.integers(0, len(values) - 1))
            numbers = st.sampled_from([-1, 0, 2**62, -(2**62), float("nan"), float("inf"), -5.5])
            values[at] = None if kind == "null" else draw.draw(numbers)
        try:
            found = found.set_column(place, name, pa.array(values))
        except (pa.ArrowException, OverflowError, TypeError):
            found = found.drop_columns([name])
    sink = io.BytesIO()
    try:
        pq.write_table(found, sink)
    except pa.ArrowException:
        return damaged(draw, content)
    return sink.getvalue()


def checkpoint(draw: st.DataObject, content: bytes) -> bytes:
    """Also with a right digest: as somebody writes one who knows the format."""
    if draw.draw(st.integers(0, 2)) == 0:
        return damaged(draw, content)
    from mnist_ray.run.checkpoint import pack

    tensors, metadata = unpack(content, "checkpoint")
    if draw.draw(st.booleans()):
        return pack(tensors, changed(draw, metadata))
    if draw.draw(st.booleans()):
        del tensors[draw.draw(st.sampled_from(sorted(tensors)))]
        return pack(tensors, metadata)
    length = struct.unpack("<Q", content[:8])[0]
    header = json.dumps(changed(draw, json.loads(content[8 : 8 + length]))).encode()
    return struct.pack("<Q", len(header)) + header + content[8 + length :]


def model(draw: st.DataObject, content: bytes) -> bytes:
    """Also without digests: as another program writes a file."""
    if draw.draw(st.integers(0, 2)) == 0:
        return damaged(draw, content)
    proto = onnx.load_model_from_string(content)
    proto.producer_name = "another"
    facts = {pair.key: pair.value for pair in proto.metadata_props}
    for key in ("sha256", "weights_sha256"):
        facts.pop(key, None)
    key = draw.draw(st.sampled_from(sorted(facts)))
    try:
        facts[key] = json.dumps(changed(draw, json.loads(facts[key])))
    except ValueError:
        facts[key] = draw.draw(st.text(max_size=20))
    del proto.metadata_props[:]
    if draw.draw(st.integers(0, 3)):
        onnx.helper.set_model_props(proto, facts)
    kind = draw.draw(st.sampled_from(["none", "weight", "node", "input", "output", "name"]))
    graph = proto.graph
    if kind == "weight":
        del graph.initializer[draw.draw(st.integers(0, len(graph.initializer) - 1))]
    elif kind == "node":
        del graph.node[draw.draw(st.integers(0, len(graph.node) - 1))]
    elif kind == "name":
        graph.node[draw.draw(st.integers(0, len(graph.node) - 1))].op_type = "Nothing"
    elif kind in ("input", "output"):
        shape = (graph.input if kind == "input" else graph.output)[0].type.tensor_type.shape
        at = draw.draw(st.integers(0, len(shape.dim) - 1))
        shape.dim[at].dim_value = draw.draw(st.sampled_from([-1, 0, 1, 3, 2**40]))
    return proto.SerializeToString()


def yaml_file(draw: st.DataObject, content: bytes) -> bytes:
    if draw.draw(st.booleans()):
        return damaged(draw, content)
    lines = content.splitlines()
    at = draw.draw(st.integers(0, len(lines) - 1))
    key = lines[at].partition(b":")[0]
    value = draw.draw(
        st.sampled_from(
            [b"", b"[1, 2]", b"{a: 1}", b"!!python/object:os.system 1", b"*a", b"&a [*a]", b"1e999",
             b"2026-02-30", b"0x_", b"'", b"\xff", b"\0", b"- -", b"? a", b"~", b".nan", b"-1"]
        )
    )  # fmt: skip
    return b"\n".join([*lines[:at], key + b": " + value, *lines[at + 1 :]]) + b"\n"


FORMATS: dict[str, tuple[Change, list[Read]]] = {
    "run.json": (json_file, [report, look, resume, warm_start, finetune, predict]),
    "model.json": (json_file, [report, look, predict]),
    "trials.parquet": (table, [report, look, resume]),
    "history.parquet": (table, [report, look, resume]),
    "predictions.parquet": (table, [report]),
    "study.journal": (journal, [report, look, resume, warm_start]),
    "best/model.safetensors": (checkpoint, [finetune]),
    "model.onnx": (model, [report, predict, predict_file, rebuilt]),
}


# A fifth of a second and more each: in the normal tests they read every sixth file.
COSTLY = (resume, warm_start, predict, predict_file)


def content_of(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Path]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield Path(shutil.copytree(KEPT, tmp_path / "runs" / "finished"))


def attack(examples: int, test: Callable[[st.DataObject], None]) -> None:
    configured = settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
        report_multiple_bugs=False,
    )
    configured(given(st.data())(test))()


NUMBERS = [FEW, pytest.param(MANY, marks=pytest.mark.slow)]


@pytest.mark.parametrize("examples", NUMBERS)
@pytest.mark.parametrize("name", FORMATS)
def test_a_damaged_file_of_a_run_is_one_line_or_harmless(
    run: Path, name: str, examples: int
) -> None:
    change, readers = FORMATS[name]
    few = examples == FEW
    whole, ends = (run / name).read_bytes(), Counter[str]()
    unpacked = content_of(run)
    for read in readers:  # a right file is read
        assert one_line(functools.partial(read, run)) == "", read.__name__

    def test(draw: st.DataObject) -> None:
        content = change(draw, whole)
        (run / name).write_bytes(content)
        for read in readers:
            if read in COSTLY and few and ends["files"] % 6:
                continue
            line = one_line(functools.partial(read, run))
            ends["refused" if line else "read"] += 1
        assert content_of(run) == {**unpacked, name: content}
        ends["files"] += 1

    attack(examples, test)
    print(f"{name}: {dict(ends)}")
    assert ends["files"] >= examples * 0.9
    assert ends["refused"] > examples * 0.2


def points(path: Path) -> None:
    shape = DataShape(1, (8, 8), 10, (0.1,), (0.3,))
    read_points(str(path), lambda trial: find("optunanet")(trial, shape))


YAMLS: dict[str, Read] = {
    "mnist_ray/recipes/stages-default.yaml": lambda path: read_stages(str(path)),
    "mnist_ray/recipes/points/s3-optunanet.yaml": points,
    "config": lambda path: parse(SearchSettings, ["--config", str(path)]),
}
CONFIG = (
    b"dataset: digits\ntrials: 4\nmax_epochs: 3\nspace_args:\n  max_width: 16\nfinetune: false\n"
)


@pytest.mark.parametrize("examples", NUMBERS)
@pytest.mark.parametrize("name", YAMLS)
def test_a_damaged_yaml_file_is_one_line_or_harmless(
    tmp_path: Path, name: str, examples: int
) -> None:
    whole = CONFIG if name == "config" else (ROOT / name).read_bytes()
    path, ends = tmp_path / "file.yaml", Counter[str]()

    def test(draw: st.DataObject) -> None:
        path.write_bytes(yaml_file(draw, whole))
        ends["refused" if one_line(lambda: YAMLS[name](path)) else "read"] += 1

    attack(examples, test)
    print(f"{name}: {dict(ends)}")
    assert ends["refused"] > examples * 0.2
