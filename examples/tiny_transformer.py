"""A small transformer that learns to sort digits, trained by a function of one's own.

mnist-ray search --train examples.tiny_transformer:train --space examples.tiny_transformer:space \
    --metric loss --metric-mode min --trials 12 --max-epochs 9
"""

import torch
from torch import nn

LENGTH, DIGITS = 6, 10


def space(trial):
    width = trial.suggest_categorical("width", [16, 32, 64])
    return {"width": width, "lr": trial.suggest_float("lr", 1e-4, 1e-2, log=True)}


class Sorter(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.embed, self.place = nn.Embedding(DIGITS, width), nn.Embedding(LENGTH, width)
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, 0.0, batch_first=True)
        self.encoder, self.head = nn.TransformerEncoder(layer, 2), nn.Linear(width, DIGITS)

    def forward(self, x):
        return self.head(self.encoder(self.embed(x) + self.place.weight))


def train(hp, seed, device):
    torch.manual_seed(seed)
    net = Sorter(hp["width"]).to(device)
    adam = torch.optim.Adam(net.parameters(), hp["lr"])
    while True:  # no state is yielded: an interrupted trial begins anew
        x = torch.randint(DIGITS, (256, LENGTH), device=device)
        loss = nn.functional.cross_entropy(net(x).transpose(1, 2), x.sort(1).values)
        adam.zero_grad()
        loss.backward()
        adam.step()
        yield {"loss": loss}
