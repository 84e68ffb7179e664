"""What does a training step of SCNF-GLOW on MNIST cost? `python benchmarks/scnf_step.py [--device cuda]`.

One step is noise, forward, loss with a third of the rows labelled, backward, and with --adamax the update. Three of
them run interleaved, on the same weights, images and labels:

    reference            benchmarks/scnf_reference.py and the public script's objective: one pass of the head over the
                         unlabelled rows with all classes, one over the labelled rows, one more over these with all
                         classes for the accuracy that it logs
    fastflow             `SCNF.mnist()` and `likelihood_loss`, which takes likelihood and accuracy from one pass
    fastflow reversible  the same with a reversible trunk

Gradients are summed into buffers that exist before the step, so that the live memory at the peak is that of activations
and working space. fp32 is without TF32; bf16 is autocast of the forward, for all three alike.
"""

import argparse
from collections.abc import Callable

import torch
from scnf_reference import SCNFReference
from torch import Tensor, nn
from training_steps import compare

from fastflow.bench import script
from fastflow.bench.timing import threads
from fastflow.models import SCNF
from fastflow.ops import uniform_noise
from fastflow.training.config import LossConfig
from fastflow.training.loss import likelihood_loss

BATCH = {"cpu": 8, "cuda": 256}


def reference_loss(model: SCNFReference, images: Tensor, noise: Tensor, labels: Tensor) -> Tensor:
    """As the public script has it: labels on the CPU, -1 unlabelled; labelled rows without log p(y)."""
    log_det, z = model.flow((images + noise) / 256)
    known = labels != -1
    count = known.sum().item()
    log_prior = torch.ones_like(log_det)
    if count < len(labels):
        log_prior[~known] = model.prior.log_joint(z[~known]).logsumexp(1)
    if count:
        log_prior[known] = model.prior.log_prob(z[known], labels[known].to(z.device))
    weights = torch.ones_like(log_det)
    weights /= weights.sum()
    loss = -((log_det + log_prior) * weights).sum()
    if count:
        model.prior.log_joint(z[known]).argmax(1).cpu()  # the accuracy's pass, with a graph that nothing reads
    return loss


def fastflow_loss(model: SCNF, images: Tensor, noise: Tensor, labels: Tensor) -> Tensor:
    log_base, scores = model.class_scores(images, noise)
    return likelihood_loss(log_base, scores, labels, LossConfig())[0]


def models(device: str) -> dict[str, nn.Module]:
    """The three, with the same weights: none zero, or a conditioner's work could be left out."""
    torch.manual_seed(0)
    reference = SCNFReference(probabilities=torch.full((10,), 0.1, device=device)).to(device)
    with torch.no_grad():
        for parameter in filter(lambda each: each.requires_grad, reference.parameters()):
            parameter += 0.01 * torch.randn_like(parameter)
    plain, reversible = SCNF.mnist().to(device), SCNF.mnist(reversible=True).to(device)
    plain.load_state_dict(SCNF.from_reference(reference.state_dict()).state_dict())
    reversible.load_state_dict(plain.state_dict())
    return {"reference": reference, "fastflow": plain, "fastflow reversible": reversible}


def training_step(model: nn.Module, batch: int, device: str, precision: str, update: bool) -> Callable[[], None]:
    images = torch.randint(0, 256, (batch, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    rows, images = torch.arange(batch), images.to(device)
    labels = torch.where(rows % 3 == 0, rows % 10, -1)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer = torch.optim.Adamax(parameters, lr=1e-3) if update else None
    if isinstance(model, SCNFReference):
        def forward() -> Tensor:
            return reference_loss(model, images, torch.rand(images.shape, device=device), labels)
    else:
        rows, labels = rows.to(device), labels.to(device)

        def forward() -> Tensor:
            return fastflow_loss(model, images, uniform_noise(images.shape, seed=0, step=0, rows=rows), labels)

    def step() -> None:
        model.zero_grad(set_to_none=False)
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
            loss = forward()
        loss.backward()
        if optimizer:
            optimizer.step()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=BATCH)
    parser.add_argument("--batch", type=int, help="images in a step (default 8, on CUDA 256)")
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--adamax", action="store_true", help="update the weights, as the public script does")
    parser.add_argument("--threads", type=int, default=2, help="of the CPU (default 2)")
    parser.add_argument("--seconds", type=float, default=30, help="spent on timing (default 30)")
    options = script.start(parser)
    batch = options.batch or BATCH[options.device]
    torch.backends.fp32_precision = "ieee"
    steps = {name: (training_step(model, batch, options.device, options.precision, options.adamax), 0)
             for name, model in models(options.device).items()}
    with threads(options.threads):
        measured, disturbance = compare(steps, options.seconds, options.device)
    print(f"batch {batch}, {options.precision}, {options.device}, {options.threads} thread(s)"
          f"{', Adamax' if options.adamax else ''} {disturbance.reason}")
    base = measured["reference"]
    for name, (timing, live) in measured.items():
        print(f"{name:20s} {batch / timing.seconds:9.1f} images/s  {base.timing.seconds / timing.seconds:5.2f} x  "
              f"{live / 1e6:9.1f} MB live  {live / base.live:5.2f} x  (spread {timing.spread:.0%})")
    script.write(options, threads=options.threads, batch=batch, precision=options.precision, adamax=options.adamax,
                 disturbed=disturbance.reason, results={
                     name: {"seconds": timing.seconds, "spread": timing.spread, "live_bytes": live}
                     for name, (timing, live) in measured.items()})


if __name__ == "__main__":
    main()
