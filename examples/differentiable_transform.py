"""A keyed transform inside a network that is trained through it.

`ops.klt` is differentiable on every device and under torch.compile: here the activations of a small network pass
through a transform and, after a layer in its frame, back through the inverse.

    python examples/differentiable_transform.py
    python examples/differentiable_transform.py --compile
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn

from ppcmi_fast import SiteKey, ops
from ppcmi_fast.ops import reference

CHANNELS = 32


class Network(nn.Module):
    """Convolutions around a 1x1 layer that sees transformed activations only."""

    def __init__(self, device: str, backend: str = "auto") -> None:
        super().__init__()
        self.params = SiteKey(bytes(32), "example").klt_params("image", 1, CHANNELS).to(device)
        self.backend = backend
        self.before = nn.Conv2d(1, CHANNELS, 3, padding=1)
        self.between = nn.Conv2d(CHANNELS, CHANNELS, 1)
        self.after = nn.Conv2d(CHANNELS, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 1, H, W] to the same."""
        hidden = torch.relu(self.before(x))
        mixed = ops.klt(hidden, self.params, normalize=False, backend=self.backend)
        back = ops.klt(self.between(mixed), self.params, normalize=False, inverse=True, backend=self.backend)
        out: Tensor = self.after(torch.relu(back))
        return out


def gradient_error(device: str) -> float:
    """Largest difference between the kernels' gradient and autograd's through the pure-torch reference."""
    params = SiteKey(bytes(32), "example").klt_params("image", 1, CHANNELS).to(device)
    x = (
        torch.randn(2, CHANNELS, 16, 16, generator=torch.Generator().manual_seed(0))
        .to(device)
        .requires_grad_()
    )
    weight = torch.randn(2, CHANNELS, 16, 16, generator=torch.Generator().manual_seed(1)).to(device)
    (ours,) = torch.autograd.grad((ops.klt(x, params) * weight).sum(), x)
    (theirs,) = torch.autograd.grad((reference.klt(x, params) * weight).sum(), x)
    return float((ours - theirs).abs().max())


def train(device: str, steps: int, *, compiled: bool = False, backend: str = "auto") -> list[float]:
    """Losses while the network learns to blur noise."""
    torch.manual_seed(0)
    network = Network(device, backend).to(device)
    forward = torch.compile(network) if compiled else network
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    losses = []
    for step in range(steps):
        x = torch.randn(4, 1, 16, 16, generator=torch.Generator().manual_seed(step)).to(device)
        loss = nn.functional.mse_loss(forward(x), nn.functional.avg_pool2d(x, 3, 1, 1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def main(arguments: list[str] | None = None) -> None:
    """Print the gradient's error and the loss."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument(
        "--compile", action="store_true", help="through torch.compile; takes a minute to begin"
    )
    given = parser.parse_args(arguments)
    if given.steps < 1:
        parser.error(f"--steps: expected at least 1, got {given.steps}")
    if given.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device: expected a CUDA device for cuda, found none; use cpu")
    print(f"gradient: at most {gradient_error(given.device):.1e} from the reference")
    losses = train(given.device, given.steps, compiled=given.compile)
    print(f"loss: {losses[0]:.4f} at first, {losses[-1]:.4f} after {given.steps} steps")


if __name__ == "__main__":
    main()
