"""The transform inside a network that is trained: gradients pass through it and its inverse, compiled or not.

The activations of a small conv net are rotated, softly clipped to the range that a codebook covers, and rotated back,
as one would train a net that is to live with quantized activations.

    python examples/differentiable_transform.py --steps 50
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from rotate_and_quantize import ROTATION_KEY, at_least, device
from torch import Tensor, nn

from ppcmi_fast import ops
from ppcmi_fast.ops import KltParams

CLASSES = 4
CLIP = 3.0  # in RMS of a position, which is 1 after the transform
TOLERANCE = 1e-4  # float32 sums in another order
COMPILERS = ("inductor", "aot_eager", "none")


class Result(NamedTuple):
    """Largest gradient differences, relative to each parameter's largest gradient, and the losses of the training."""

    gradient_difference: float
    compiled_difference: float | None
    losses: list[float]


class RotatedClip(nn.Module):
    """Transform, clip and transform back; `backend` as in `ops.klt`."""

    def __init__(self, params: KltParams, backend: str) -> None:
        super().__init__()
        self.params, self.backend = params, backend

    def forward(self, x: Tensor) -> Tensor:
        """[N, D, H, W] to the same shape."""
        rotated = ops.klt(x, self.params, backend=self.backend)
        clipped = CLIP * torch.tanh(rotated / CLIP)
        return ops.klt(clipped, self.params, normalize=False, inverse=True, backend=self.backend)


def network(params: KltParams, backend: str) -> nn.Sequential:
    """Two convolutions with the transform between them; logits [N, CLASSES]."""
    net = nn.Sequential(
        nn.Conv2d(1, params.dim, 3, padding=1),
        nn.GELU(),
        RotatedClip(params, backend),
        nn.Conv2d(params.dim, CLASSES, 3, padding=1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    return net.to(params.device)


def stripes(count: int, generator: torch.Generator, where: torch.device) -> tuple[Tensor, Tensor]:
    """Noisy stripes [count, 1, 16, 16] at one of CLASSES angles, and the angle's index."""
    labels = torch.randint(CLASSES, (count,), generator=generator)
    angle = labels.view(-1, 1, 1) * torch.pi / CLASSES
    row, column = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    phase = 2 * torch.pi * torch.rand(count, 1, 1, generator=generator)
    images = torch.sin(row * angle.sin() + column * angle.cos() + phase)
    images = images + 0.3 * torch.randn(images.shape, generator=generator)
    return images.unsqueeze(1).to(where), labels.to(where)


def gradients(net: nn.Module, call: Callable[..., Any], batch: tuple[Tensor, Tensor]) -> list[Tensor]:
    """Of the loss of `call`, with respect to the parameters of `net`."""
    loss = F.cross_entropy(call(batch[0]), batch[1])
    return list(torch.autograd.grad(loss, list(net.parameters())))


def difference(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """Largest over the parameters, each relative to its largest gradient."""
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(ours, theirs, strict=True))


def run(params: KltParams, steps: int, compiler: str, seed: int) -> Result:
    """Compare the gradients of one batch, then train."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    net, reference = network(params, "auto"), network(params, "torch")
    reference.load_state_dict(copy.deepcopy(net.state_dict()))
    batch = stripes(32, generator, params.device)
    expected = gradients(reference, reference, batch)
    eager = difference(gradients(net, net, batch), expected)

    call: Callable[..., Any] = net
    compiled = None
    if compiler != "none":
        call = torch.compile(net, fullgraph=True, backend=compiler)
        compiled = difference(gradients(net, call, batch), expected)

    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    losses = []
    for _ in range(steps):
        images, labels = stripes(32, generator, params.device)
        loss = F.cross_entropy(call(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return Result(eager, compiled, losses)


def main(arguments: Sequence[str] | None = None) -> Result:
    """Print what was compared and how the training went; exits with 1 where the gradients differ."""
    parser = argparse.ArgumentParser(description="Train through the transform and check its gradients.")
    parser.add_argument(
        "--dim", type=at_least(2), default=32, help="channels that are transformed (default 32)"
    )
    parser.add_argument("--steps", type=at_least(1), default=50)
    parser.add_argument("--seed", type=at_least(0), default=0)
    parser.add_argument("--device", type=device, default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--compiler", default="inductor", help=f"one of {COMPILERS}")
    options = parser.parse_args(arguments)
    if options.compiler not in COMPILERS:
        parser.error(f"argument --compiler: expected one of {COMPILERS}, got {options.compiler!r}")
    try:
        params = ROTATION_KEY.klt_params("image", 1, options.dim).to(options.device)
    except ValueError as error:
        parser.error(f"argument --dim: {error}")
    result = run(params, options.steps, options.compiler, options.seed)
    found = {"eager": result.gradient_difference, "compiled": result.compiled_difference}
    for name, value in found.items():
        text = "not run" if value is None else f"{value:.1e} (at most {TOLERANCE:.0e})"
        print(f"gradient difference to the torch reference, {name}: {text}")
    print(f"loss of the first and last step: {result.losses[0]:.4f} {result.losses[-1]:.4f}")
    # Written so that a NaN fails.
    if not all(value is None or value <= TOLERANCE for value in found.values()):
        raise SystemExit(f"gradients: expected a difference of at most {TOLERANCE}, got {found}")
    return result


if __name__ == "__main__":
    main()
