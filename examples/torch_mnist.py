"""PyTorch's usual loop on the images of this package, with a network and an optimiser of one's own.

mnist-ray search --dataset digits --train examples.torch_mnist:train --train-data images \
    --space examples.torch_mnist:space --metric accuracy --trials 12 --max-epochs 9
"""

import io

import torch
from torch import nn


def space(trial):
    return {
        "lr": trial.suggest_float("lr", 1e-3, 1.0, log=True),
        "momentum": trial.suggest_float("momentum", 0.1, 0.9),
    }


def train(hp, seed, device, state, data):
    torch.manual_seed(seed)
    x = torch.from_numpy(data.images.images / 255).float().to(device)
    y = torch.from_numpy(data.images.labels).to(device)
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.MaxPool2d(3), nn.ReLU(), nn.Flatten())
    net = net.append(nn.LazyLinear(10)).to(device)
    net(x[:1])  # the lazy layer learns its size
    sgd = torch.optim.SGD(net.parameters(), lr=hp["lr"], momentum=hp["momentum"])
    if state:
        saved = torch.load(io.BytesIO(state))
        net.load_state_dict(saved[0]), sgd.load_state_dict(saved[1])
    while True:
        for batch in torch.as_tensor(data.train)[torch.randperm(len(data.train))].split(64):
            sgd.zero_grad()
            nn.functional.cross_entropy(net(x[batch]), y[batch]).backward()
            sgd.step()
        with torch.no_grad():
            right = net(x[data.val]).argmax(1) == y[data.val]
        torch.save([net.state_dict(), sgd.state_dict()], buffer := io.BytesIO())
        yield {"accuracy": right.float().mean()}, buffer.getvalue()
