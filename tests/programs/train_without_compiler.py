"""Trains with every optimiser and then does what its argument names, which needs torch's compiler."""  # noqa: E501

import sys

import torch

from mnist_ray.training.machine import leave_out_the_compiler

leave_out_the_compiler()
leave_out_the_compiler()  # as for a second trial

from mnist_ray.training.trainer import Trainer

HP = {
    "model": "mlp",
    "in_channels": 1,
    "image_size": [8, 8],
    "classes": 10,
    "mean": [0.5],
    "std": [0.5],
    "units": [8],
    "dropouts": [0.1],
    "batch_size": 16,
    "lr": 0.01,
}
images, labels = torch.randint(0, 255, (64, 1, 8, 8), dtype=torch.uint8), torch.arange(64) % 10
for kind in ("adam", "adamw", "sgd", "rmsprop", "muon"):
    trainer = Trainer({**HP, "optimizer": kind}, epochs=2, seed=0)
    trainer.run_epoch(images, labels, torch.arange(48), torch.arange(48, 64))
    trainer.load_state(trainer.state_bytes({}), "here")
assert "torch._dynamo.config" not in sys.modules

if sys.argv[1] == "torch.compile":
    compiled = torch.compile(trainer.model, backend="eager")
    assert compiled(torch.zeros(1, 1, 8, 8)).shape == (1, 10)
elif sys.argv[1] == "a part of it":
    import torch._dynamo.config
elif sys.argv[1] == "the exporter":
    from mnist_ray.export.write import export

    export(trainer.model, trainer.hp, {})
import torch._dynamo

assert callable(torch._dynamo.optimize)
