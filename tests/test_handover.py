"""A model handed on: its folders hold all that others need, and their code runs."""

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import load

from mnist_ray import data, handover, load_model, models
from mnist_ray.errors import CorruptFileError, SettingsError, WorkError
from mnist_ray.export.read import load_verified
from mnist_ray.export.write import export, logits_of
from mnist_ray.run import layout
from mnist_ray.run.publication import publish
from mnist_ray.storage import RunStorage
from tests.support.hostile import with_metadata
from tests.support.networks import HP, network
from tests.support.pages import example
from tests.support.published import published


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = published(tmp_path_factory.mktemp("run"))
    (folder / layout.CARD).write_text("# A card\n", encoding="utf-8")
    return folder


def test_weights_and_description_make_the_network_again(run: Path, tmp_path: Path) -> None:
    handover.export(str(run), "huggingface", str(tmp_path / "out"))
    out = tmp_path / "out"
    assert sorted(p.name for p in out.iterdir()) == [
        "README.md", "config.json", "model.json", "model.onnx", "model.safetensors",
        "picture.onnx",
    ]  # fmt: skip
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    made = models.build(config["hyperparameters"])
    lost = made.load_state_dict(load((out / "model.safetensors").read_bytes()), strict=False)
    assert set(lost.unexpected_keys) == {"0.mean", "0.scale"}  # the description has these too
    assert all(key.endswith("num_batches_tracked") for key in lost.missing_keys)
    images = data.load("digits", "test").images[:20]
    expected = load_model(out / "model.onnx").session.logits(images)
    assert np.abs(logits_of(made.eval(), images) - expected).max() < 1e-4
    assert config["classes"][5] == "five"
    assert load_model(out).predict(images[0, 0]) == load_model(run).predict(images[0, 0])


def test_a_committee_has_the_weights_of_all() -> None:
    committee = models.Committee([network(HP, seed=1), network(HP, seed=2)]).eval()
    proto = load_verified(export(committee, [HP, HP], {}), "model.onnx")
    found = load(handover.weights(proto))
    state = {k: v for k, v in committee.state_dict().items() if "num_batches" not in k}
    assert state.keys() <= found.keys()
    assert all(torch.equal(found[key], state[key]) for key in state)


@pytest.mark.parametrize("networks", [1, 3])
def test_the_page_s_lines_make_the_network_again(
    networks: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = [network(HP, seed=seed) for seed in range(networks)]
    whole = models.Committee(members).eval() if networks > 1 else members[0]
    file = export(whole, [HP] * networks if networks > 1 else HP, {"dataset": "digits"})
    run = tmp_path / "run"
    publish(RunStorage(str(run)), {layout.MODEL: file}, {"file": layout.MODEL})
    (run / layout.CARD).write_text("# A card\n", encoding="utf-8")
    handover.export(str(run), "huggingface", str(tmp_path / "for-the-hub"))
    monkeypatch.chdir(tmp_path)
    made: dict[str, Any] = {}
    exec(compile(example("for-the-hub/config.json"), "shipped-file.md", "exec"), made)
    images = data.load("digits", "test").images[:20]
    assert np.abs(logits_of(made["network"], images) - logits_of(whole, images)).max() < 1e-5


def test_triton_s_repository_says_what_the_files_take(run: Path, tmp_path: Path) -> None:
    handover.export(str(run), "triton", str(tmp_path))
    handover.export(str(run), "triton", str(tmp_path))  # again, over its own files
    kinds = {
        "tensor(float)": "TYPE_FP32", "tensor(uint8)": "TYPE_UINT8",
        "tensor(int64)": "TYPE_INT64", "tensor(bool)": "TYPE_BOOL",
    }  # fmt: skip
    for name, batches in ((handover.NETWORK, True), (handover.PICTURE, False)):
        text = (tmp_path / name / "config.pbtxt").read_text(encoding="utf-8")
        assert text.count("{") == text.count("}")
        session = onnxruntime.InferenceSession(tmp_path / name / "1" / "model.onnx")
        values = [*session.get_inputs(), *session.get_outputs()]
        found = re.findall(r'name: "(\w+)" data_type: (\w+) dims: \[ ([^]]*) \]', text)
        assert len(found) == len(values)
        for value, (called, kind, dims) in zip(values, found, strict=True):
            shape = [d if isinstance(d, int) else -1 for d in value.shape][batches:] or [1]
            assert (value.name, kinds[value.type]) == (called, kind)
            assert [int(d) for d in dims.split(", ")] == shape
        assert ("max_batch_size: 0" in text) != batches
        labels = (tmp_path / name / "labels.txt").read_text(encoding="utf-8").splitlines()
        assert labels[5] == "five"


def test_triton_s_repository_has_the_names_of_another_program_s_file(tmp_path: Path) -> None:
    """And no text of the file ends its place in the configuration."""
    taken, given = 'images" }', "scores/0"
    weights = numpy_helper.from_array(np.ones((784, 3), np.float32), "w")
    images = helper.make_tensor_value_info(taken, TensorProto.FLOAT, ["n", 1, 28, 28])
    logits = helper.make_tensor_value_info(given, TensorProto.FLOAT, ["n", 3])
    nodes = [
        helper.make_node("Flatten", [taken], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], [given]),
    ]
    graph = helper.make_graph(nodes, "theirs", [images], [logits], [weights])
    opsets = [helper.make_opsetid("", 20)]
    file = tmp_path / "theirs.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), file)
    handover.export(str(file), "triton", str(tmp_path / "out"))
    folder = tmp_path / "out" / handover.NETWORK
    text = (folder / "config.pbtxt").read_text(encoding="utf-8")
    assert r'input [ { name: "images\" }" data_type: TYPE_FP32' in text
    assert 'name: "scores/0" data_type: TYPE_FP32 dims: [ 3 ]' in text
    session = onnxruntime.InferenceSession(folder / "1" / "model.onnx")
    names = [value.name for value in (*session.get_inputs(), *session.get_outputs())]
    assert names == [taken, given]


def test_a_folder_of_other_files_is_left_alone(run: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    for to in ("huggingface", "triton"):
        with pytest.raises(SettingsError, match=r"^--out: .* holds other files, as mine\.txt; "):
            handover.export(str(run), to, str(tmp_path))
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("to", ["huggingface", "triton"])
@pytest.mark.parametrize(
    "name", ["picture.onnx", "model.int8.onnx", "mnist_ray_picture/1/model.onnx"]
)
def test_what_a_person_put_there_is_left_alone(
    to: str, name: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only a folder that export wrote may hold them of a model before."""
    monkeypatch.setattr(handover, "_takes_pictures", lambda model: False)
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_bytes(b"mine")
    with pytest.raises(SettingsError, match=f"^--out: .* holds other files, as {name}; "):
        handover.export(str(run), to, str(tmp_path))
    assert (tmp_path / name).read_bytes() == b"mine"


def test_a_file_without_a_card_goes_to_triton_alone(run: Path, tmp_path: Path) -> None:
    file = str(run / "model.onnx")
    with pytest.raises(SettingsError, match="no card lies there; expected the directory of a run"):
        handover.export(file, "huggingface", str(tmp_path / "a"))
    assert not (tmp_path / "a").exists()
    handover.export(file, "triton", str(tmp_path / "b"))


def test_push_uploads_that_folder(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {}

    def upload(*, repo_id: str, folder_path: str, commit_message: str) -> str:
        seen[repo_id] = {p.name for p in Path(folder_path).iterdir()}
        return "https://hub.example/commit"

    monkeypatch.setattr(huggingface_hub, "upload_folder", upload)
    assert handover.push(str(run), "me/digits") == "https://hub.example/commit"
    assert seen["me/digits"] == handover.huggingface(str(run)).keys()

    def fail(**_: object) -> str:
        raise OSError("401 Client Error\nmore")

    monkeypatch.setattr(huggingface_hub, "upload_folder", fail)
    with pytest.raises(WorkError, match="^me/digits takes no model: 401 Client Error$"):
        handover.push(str(run), "me/digits")


@pytest.mark.parametrize(
    "repo",
    [
        "a b",
        "../x",
        "a/b/c",
        "https://me:planted@host/x",
        "me/" + "x" * 200,
        "me/-x",
        "me/x\ny",
        "é",
    ],
)
def test_what_is_no_repository_is_one_line(run: Path, repo: str) -> None:
    with pytest.raises(SettingsError, match=r"^REPO: .*as me/digits") as caught:
        handover.push(str(run), repo)
    assert "planted" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("token", ["hf_planted", "hf_plan\nted"])
def test_a_hub_that_does_not_answer_is_one_line(run: Path, token: str) -> None:
    away = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_TOKEN": token, "HF_HUB_DISABLE_XET": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "mnist_ray", "push", str(run), "me/digits"],
        env={**os.environ, **away},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1
    assert "me/digits takes no model: " in done.stderr
    assert "Traceback" not in done.stderr
    assert "plan" not in done.stdout + done.stderr


def test_a_published_manifest_goes_with_it(run: Path) -> None:
    manifest = RunStorage(str(run)).read_json(layout.MANIFEST)
    assert json.loads(handover.huggingface(str(run))[layout.MANIFEST]) == manifest


def test_it_writes_through_no_link(run: Path, tmp_path: Path) -> None:
    """The folder may be a repository that was cloned from elsewhere."""
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "README.md").symlink_to(tmp_path / "mine")
    handover.export(str(run), "huggingface", str(tmp_path / "out"))
    assert (tmp_path / "mine").read_text() == "mine"


def test_a_model_without_a_description_is_refused(run: Path, tmp_path: Path) -> None:
    for key, value in (("hyperparameters", "[" * 9000), ("temperature", "warm")):
        model = with_metadata((run / layout.MODEL).read_bytes(), key, value)
        folder = tmp_path / key
        described = {"file": layout.MODEL}
        publish(RunStorage(str(folder)), {layout.MODEL: model}, described)
        (folder / layout.CARD).write_text("# A card\n")
        with pytest.raises(SettingsError, match=f"^{folder}.*{key}"):
            handover.export(str(folder), "huggingface", str(tmp_path / "out"))


def test_images_of_two_channels_are_handed_on_without_pictures(tmp_path: Path) -> None:
    hp = HP | {"in_channels": 2, "mean": [0.1, 0.1], "std": [0.3, 0.3]}
    run = tmp_path / "run"
    files = {layout.MODEL: export(network(hp), hp, {})}
    publish(RunStorage(str(run)), files, {"file": layout.MODEL, "picture": None})
    (run / layout.CARD).write_text("# A card\n", encoding="utf-8")
    handover.export(str(run), "huggingface", str(tmp_path / "hub"))
    assert {path.name for path in (tmp_path / "hub").iterdir()} == {
        layout.CARD, layout.MANIFEST, layout.MODEL, handover.WEIGHTS, handover.CONFIG,
    }  # fmt: skip
    handover.export(str(run), "triton", str(tmp_path / "triton"))
    assert [path.name for path in (tmp_path / "triton").iterdir()] == [handover.NETWORK]


def with_smaller(run: Path, folder: Path, **entry: Any) -> Path:
    """A copy of the run with an int8 file, whose content does not matter here."""
    small = (run / layout.MODEL).read_bytes()[::-1]
    smaller = {"kind": "int8", "file": "model.int8.onnx", "refused": "", "size": 0.3}
    smaller |= {"sha256": hashlib.sha256(small).hexdigest(), **entry}
    files = {layout.MODEL: (run / layout.MODEL).read_bytes()}
    if not smaller["refused"]:
        files["model.int8.onnx"] = small
    publish(RunStorage(str(folder)), files, {"file": layout.MODEL, "smaller": smaller})
    (folder / layout.CARD).write_text("# A card\n", encoding="utf-8")
    return folder


def test_the_smaller_file_goes_to_the_hub_with_its_card(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    small = with_smaller(run, tmp_path / "small")
    handover.export(str(small), "huggingface", str(out))
    assert (out / "model.int8.onnx").read_bytes() == (small / "model.int8.onnx").read_bytes()
    for other in (with_smaller(run, tmp_path / "refused", refused="size 0.9"), run):
        handover.export(str(small), "huggingface", str(out))
        handover.export(str(other), "huggingface", str(out))  # without one, over its own files
        assert not (out / "model.int8.onnx").exists()


def test_a_smaller_file_of_another_content_is_not_handed_on(run: Path, tmp_path: Path) -> None:
    small = with_smaller(run, tmp_path / "small")
    for spoil in (lambda file: file.write_bytes(b"another"), Path.unlink):
        spoil(small / "model.int8.onnx")
        with pytest.raises(CorruptFileError, match=r"model\.int8\.onnx is not the file that"):
            handover.export(str(small), "huggingface", str(tmp_path / "out"))
    outside = with_smaller(run, tmp_path / "outside", file="../secret")
    with pytest.raises(CorruptFileError, match="names the smaller file '../secret'"):
        handover.export(str(outside), "huggingface", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
