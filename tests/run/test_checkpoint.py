"""A checkpoint gives back what was put in, and any altered byte is found."""

import pickle
import random

import pytest
import torch

from mnist_ray.errors import CorruptFileError
from mnist_ray.run import checkpoint

TENSORS = {
    "weight": torch.arange(12, dtype=torch.float32).reshape(3, 4),
    "steps": torch.tensor(7),
    "half": torch.ones(5, dtype=torch.bfloat16),
    "last": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
}
STORY = {"epoch": 3, "rows": [{"val_accuracy": 0.5}]}


def test_gives_back_tensors_and_story() -> None:
    tensors, story = checkpoint.unpack(checkpoint.pack(TENSORS, STORY), "x")
    assert story == STORY
    assert tensors.keys() == TENSORS.keys()
    assert all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS)


def test_names_may_share_their_memory() -> None:
    """As of tied weights: safetensors by itself refuses them."""
    w = torch.randn(3, 4)
    shared = {"a": w, "b": w, "c": w[0], "d": w.T, "none": w[:0], "no": w[:0]}
    data = checkpoint.pack(shared, STORY)
    tensors, _ = checkpoint.unpack(data, "x")
    assert tensors.keys() == shared.keys()
    assert all(torch.equal(tensors[name], shared[name]) for name in shared)
    assert data == checkpoint.pack({name: t.clone() for name, t in shared.items()}, STORY)


def test_equal_content_gives_equal_bytes() -> None:
    assert checkpoint.pack(TENSORS, STORY) == checkpoint.pack(
        dict(reversed(TENSORS.items())), STORY
    )


def test_every_flipped_byte_is_found() -> None:
    data = bytearray(checkpoint.pack(TENSORS, STORY))
    generator = random.Random(0)
    for position in generator.sample(range(len(data)), 200):
        damaged = bytearray(data)
        damaged[position] ^= generator.randrange(1, 256)
        try:
            tensors, story = checkpoint.unpack(bytes(damaged), "best/model.safetensors")
        except CorruptFileError as error:
            assert "best/model.safetensors" in str(error)
        else:  # a flip that changes nothing, as one blank of the header's padding for another
            assert story == STORY
            assert all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS)


def test_every_truncation_is_found() -> None:
    data = checkpoint.pack(TENSORS, STORY)
    for length in range(0, len(data), max(1, len(data) // 60)):
        with pytest.raises(CorruptFileError):
            checkpoint.unpack(data[:length], "x")


def test_a_pickle_is_refused_and_not_executed(tmp_path) -> None:  # type: ignore[no-untyped-def]
    class Hostile:
        def __reduce__(self):  # type: ignore[no-untyped-def]
            return open, (str(tmp_path / "executed"), "w")

    with pytest.raises(CorruptFileError):
        checkpoint.unpack(pickle.dumps(Hostile()), "x")
    assert not (tmp_path / "executed").exists()
