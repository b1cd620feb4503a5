"""Own images from one command to a model, and the same ones from every source: whole searches."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import mnist_ray as mr
from mnist_ray.run.publication import read_verified
from mnist_ray.storage import RunStorage
from tests.support import ROOT
from tests.support.pictures import CLASSES, by_class, coloured, in_folders, in_parquet, png
from tests.support.runs import flags, quick, results

FORMATS = ("png", "jpg", "webp", "bmp", "tiff", "gif")
pytestmark = pytest.mark.slow


def mixed(root: Path, n: int = 2000) -> list[Path]:
    """n pictures of four classes in sizes and formats that vary, and three broken files."""
    random = np.random.default_rng(0)
    for i, image in enumerate(coloured(n, (24, 24))):
        label, kind = CLASSES[i % 4], FORMATS[i // 4 % len(FORMATS)]
        folder = root / label
        folder.mkdir(parents=True, exist_ok=True)
        size = (int(random.integers(20, 60)), int(random.integers(20, 60)))
        Image.fromarray(image).resize(size).save(folder / f"bild {i} – ü.{kind}")
    whole = (root / CLASSES[0] / "bild 0 – ü.png").read_bytes()
    broken = {
        "cut off.png": whole[: len(whole) // 2],
        "empty 空.jpg": b"",
        "text.gif": b"no picture",
    }
    for name, content in broken.items():
        (root / CLASSES[1] / name).write_bytes(content)
    return [root / CLASSES[1] / name for name in broken]


def search(env: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mnist_ray", "search", *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=290, check=False
    )


def test_a_folder_of_pictures_becomes_a_model_by_one_command(
    ray_head: dict[str, str], tmp_path: Path
) -> None:
    broken = mixed(tmp_path / "meine bilder")
    env = {**ray_head, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    options = [
        *flags(dataset=f"folder:{tmp_path / 'meine bilder'}", trials=2, max_epochs=3),
        *flags(storage=tmp_path / "runs", name="own", space_args=["min_width=8", "max_width=16"]),
        *quick(tmp_path, 1),
    ]
    refused = search(env, *options)
    assert refused.returncode == 2
    assert not (tmp_path / "runs").exists()
    assert "--skip-broken" in refused.stderr
    named = [line for line in refused.stdout.splitlines() if line.startswith("broken: ")]
    named += [line for line in refused.stderr.splitlines() if line.startswith("broken: ")]
    assert len(named) == len(broken)
    for path in broken:
        assert sum(path.name in line for line in named) == 1, path
    done = search(env, *options, "--skip-broken")
    assert done.returncode == 0, done.stdout + done.stderr
    run = RunStorage(str(tmp_path / "runs" / "own"))
    manifest, _ = read_verified(run)
    assert manifest["test_images"] == 400
    for name in ("model.onnx", "picture.onnx", "report.html", "README.md"):
        assert run.exists(name), name
    model = mr.load_model(run.uri)
    assert model.classes == tuple(sorted(CLASSES))
    right = [
        model.predict(str(next((tmp_path / "meine bilder" / label).glob("bild * – ü.png")))).label
        == label
        for label in CLASSES
    ]
    assert sum(right) >= 3


def test_the_same_images_give_the_same_search_from_every_source(
    ray_head: dict[str, str], tmp_path: Path
) -> None:
    parts = {"train": coloured(200), "test": coloured(40, seed=1)}
    in_folders(tmp_path / "folder", parts)
    (tmp_path / "parquet").mkdir()
    arrays: dict[str, np.ndarray] = {}
    lines = ["path,label,split"]
    for part, images in parts.items():
        ordered, labels = by_class(images)
        places = np.array([sorted(CLASSES).index(label) for label in labels])
        arrays |= {f"x_{part}": ordered, f"y_{part}": np.array(labels), f"i_{part}": places}
        in_parquet(tmp_path / "parquet" / f"{part}-00000-of-00001.parquet", ordered, labels)
        for i, (image, label) in enumerate(zip(ordered, labels, strict=True)):
            (tmp_path / f"{part}{i}.png").write_bytes(png(image))
            lines.append(f"{part}{i}.png,{label},{part}")
    (tmp_path / "table.csv").write_text("\n".join(lines), encoding="utf-8")
    kept = {k: v for k, v in arrays.items() if k[0] != "i"}
    np.savez(tmp_path / "arrays.npz", allow_pickle=False, **kept)
    np.savez(tmp_path / "function.npz", allow_pickle=False, **arrays)
    env = {**ray_head, "XDG_CACHE_HOME": str(tmp_path / "cache"), "OWN_IMAGES": str(tmp_path)}
    names = {
        "folder": f"folder:{tmp_path}/folder",
        "npz": f"npz:{tmp_path}/arrays.npz",
        "csv": f"csv:{tmp_path}/table.csv",
        "parquet": f"parquet:{tmp_path}/parquet",
        "function": "tests.programs.own_arrays:images",
    }
    found = {}
    for kind, name in names.items():
        done = search(
            env, "--deterministic", "--no-finetune",
            *flags(dataset=name, trials=3, max_epochs=2, storage=tmp_path / kind, name="d"),
            *flags(space_args=["min_width=8", "max_width=16"], max_concurrent=2),
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        found[kind] = results(tmp_path / kind)
    assert all(each == found["folder"] for each in found.values())
