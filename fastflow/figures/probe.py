"""The obfuscation probe: how much of the class a classifier still finds in what the class should not explain."""

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fastflow.figures.latents import embedded
from fastflow.figures.rows import in_batches, test_rows
from fastflow.figures.style import COLORS
from fastflow.training.build import Data

BATCH = 256
HIDDEN = 256


def obfuscation_probe(model: nn.Module, data: Data, *, epochs: int = 100, seed: int = 0) -> dict:
    """Test accuracies, in [0, 1], of classifiers on z_f and on z_h of an `SCNF`, and of the best guess without either.

    Each is a perceptron of four hidden layers of 256, trained on every training row whose class the data know and
    tested on the whole test set; z_h is that of the true class, and training means are subtracted from both. Of a model
    that separates class and style z_f does as well as the model, and z_h as badly as chance, the share in the test set
    of the class that is most frequent in training. Returns these as "z_f", "z_h", "chance", with "epochs",
    "train_rows", "test_rows". Raises ValueError where no training row has a class.

    Source: Atanov et al. 2019 (SCNF, arXiv 1905.00505): Adam at 1e-3 with linear decay, batches of 256, 100 epochs.
    """
    x, labels = data.train_x, data.train_labels
    known = labels >= 0
    if not known.any():
        raise ValueError(f"obfuscation_probe: {data.name} has no training row of known class, expected some")
    test_x, test_labels = test_rows(data)
    parts = (x[known], labels[known]), (test_x, test_labels)
    train, test = (in_batches(lambda *rows: embedded(model, *rows), model, data, *part) for part in parts)
    result = {name: _accuracy((train[name], parts[0][1]), (test[name], test_labels), data.classes, epochs, seed)
              for name in ("z_f", "z_h")}
    chance = (test_labels == labels[known].mode().values).double().mean().item()
    return result | {"chance": chance, "epochs": epochs, "train_rows": int(known.sum()), "test_rows": len(test_x)}


def probe_picture(result: dict) -> Figure:
    """The accuracies of `obfuscation_probe` as bars."""
    figure = Figure(figsize=(5.2, 2.3))
    axes = figure.subplots()
    names = {"$z_f$, what the class head sees": "z_f", "$z_h$, given the true class": "z_h", "chance": "chance"}
    bars = axes.barh(list(names), [100 * result[name] for name in names.values()],
                     color=[COLORS[0], COLORS[1], "0.7"], height=0.6)
    axes.bar_label(bars, fmt="%.1f %%", padding=3)
    axes.invert_yaxis()
    axes.set_xlim(0, 112)
    axes.set_xticks(range(0, 101, 20))
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(f"accuracy on {result['test_rows']} test rows, %")
    figure.suptitle(f"classifiers on latents of {result['train_rows']} training rows, {result['epochs']} epochs",
                    fontsize=10, x=0.01, ha="left")
    return figure


def _accuracy(train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], classes: int, epochs: int, seed: int) -> float:
    """Share of the test rows whose class a perceptron that is trained on z [N, d] with labels [N] finds."""
    (z, labels), (test_z, test_labels) = train, test
    center = z.mean(0)
    z, test_z = (z - center).float(), (test_z - center).float()
    labels, device = labels.to(z.device), z.device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        net = nn.Sequential(
            nn.Linear(z.shape[1], HIDDEN), nn.LeakyReLU(), nn.Linear(HIDDEN, HIDDEN), nn.Dropout(0.3), nn.LeakyReLU(),
            nn.Linear(HIDDEN, HIDDEN), nn.LeakyReLU(), nn.Linear(HIDDEN, HIDDEN), nn.LeakyReLU(),
            nn.Linear(HIDDEN, classes),
        ).to(device)
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-3, fused=True)
        steps = epochs * -(-len(z) // BATCH)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps)
        for _ in range(epochs):
            for rows in torch.randperm(len(z), device=device).split(BATCH):
                optimizer.zero_grad()
                cross_entropy(net(z[rows]), labels[rows]).backward()
                optimizer.step()
                schedule.step()
        with torch.no_grad():
            predicted = net.eval()(test_z).argmax(1).cpu()
    return (predicted == test_labels).double().mean().item()
