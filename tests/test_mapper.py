"""The mapper: shapes over grids and folds, adapters, training on squared error."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ppcmi_fast.mapper import LatentMapper, train_mapper
from ppcmi_fast.mapper.training import position_weights, squared_error
from ppcmi_fast.training import FitSettings


class RandomSet:
    """Targets are a fixed linear function of the inputs, seen through a matrix per site."""

    def __init__(self, count: int, sites: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        fixed = torch.Generator().manual_seed(99)
        frames = torch.stack([torch.linalg.qr(torch.randn(4, 4, generator=fixed))[0] for _ in range(sites)])
        weight = torch.randn(6, 4, generator=fixed)
        plain = torch.randn(count, 4, 8, 8, generator=generator)
        self.site = torch.randint(sites, (count,), generator=generator)
        self.inputs = torch.einsum("nij,njhw->nihw", frames[self.site], plain)
        self.targets = torch.einsum("ij,njhw->nihw", weight, plain)

    def __len__(self) -> int:
        return len(self.inputs)

    def batch(self, index: Tensor) -> tuple[dict[int, Tensor], dict[int, Tensor], Tensor]:
        return {4: self.inputs[index]}, {4: self.targets[index]}, self.site[index]


@pytest.mark.parametrize("size", [48, 80, 144])
def test_sizes_that_the_grid_below_the_coarsest_does_not_divide(size: int) -> None:
    mapper = LatentMapper({4: (4, 4), 16: (4, 16)}, {2: (3, 2), 8: (5, 8)}, width=4, blocks=1, context=2)
    out = mapper({s: torch.zeros(2, 4, size // s, size // s) for s in (4, 16)})
    assert {s: tuple(z.shape) for s, z in out.items()} == {
        2: (2, 3, size // 2, size // 2),
        8: (2, 5, size // 8, size // 8),
    }


@pytest.mark.parametrize(
    ("ins", "outs"),
    [
        ({4: (8, 4), 8: (12, 8), 16: (16, 16)}, {8: (16, 8)}),
        ({4: (32, 8), 8: (12, 8)}, {8: (16, 8)}),
        ({8: (12, 8)}, {4: (6, 4), 8: (5, 8)}),
        ({4: (8, 4)}, {16: (7, 16)}),
        ({16: (8, 16), 4: (4, 4)}, {8: (7, 8)}),
    ],
)
def test_shapes(ins: dict[int, tuple[int, int]], outs: dict[int, tuple[int, int]]) -> None:
    mapper = LatentMapper(ins, outs, width=8, blocks=1).eval()
    result = mapper({s: torch.randn(2, d, 64 // g, 64 // g) for s, (d, g) in ins.items()})
    assert {s: tuple(z.shape) for s, z in result.items()} == {
        s: (2, d, 64 // g, 64 // g) for s, (d, g) in outs.items()
    }


def test_every_parameter_is_used() -> None:
    ins, outs = {4: (8, 4), 8: (12, 8)}, {8: (16, 8)}
    mapper = LatentMapper(ins, outs, width=8, blocks=1)
    mapper({s: torch.randn(2, d, 64 // g, 64 // g) for s, (d, g) in ins.items()})[8].square().sum().backward()
    assert all(p.grad is not None for p in mapper.parameters())


def test_gates_see_both_grids_and_every_one_of_them_is_used() -> None:
    torch.manual_seed(0)
    ins, outs = {4: (8, 4), 8: (12, 8)}, {4: (16, 4)}
    mapper = LatentMapper(ins, outs, width=8, blocks=1, attention=True)
    latents = {s: torch.randn(2, d, 64 // g, 64 // g) for s, (d, g) in ins.items()}
    mapper(latents)[4].square().sum().backward()
    assert all(p.grad is not None for p in mapper.parameters())
    assert set(mapper.gates) == {"4", "8"}
    gate = mapper.gates["8"].eval().requires_grad_(False)
    coarse, own = torch.randn(2, 2, 16, 8, 8)
    passed = gate(coarse, own)
    assert passed.shape == (2, 1, 8, 8) and 0 < float(passed.min()) < float(passed.max()) < 1
    for other in (gate(coarse.flip(2), own), gate(coarse, own.flip(2))):
        assert not torch.allclose(other, passed)


def test_a_gate_that_is_open_changes_nothing() -> None:
    ins, outs = {4: (8, 4), 8: (12, 8)}, {4: (16, 4)}
    torch.manual_seed(0)
    gated = LatentMapper(ins, outs, width=8, blocks=1, attention=True).eval()
    plain = LatentMapper(ins, outs, width=8, blocks=1).eval()
    plain.load_state_dict({k: v for k, v in gated.state_dict().items() if not k.startswith("gates.")})
    latents = {s: torch.randn(2, d, 64 // g, 64 // g) for s, (d, g) in ins.items()}
    assert not torch.allclose(gated(latents)[4], plain(latents)[4])
    with torch.no_grad():
        for gate in gated.gates.values():
            gate.score.weight.zero_()  # type: ignore[operator, union-attr]
            gate.score.bias.fill_(30)  # type: ignore[operator, union-attr]
    torch.testing.assert_close(gated(latents)[4], plain(latents)[4])


def test_adapters_make_up_for_frames_of_their_own() -> None:
    settings = FitSettings(250, 1e-2, validate_every=50)
    best = {}
    for sites in (0, 3):
        torch.manual_seed(0)
        mapper = LatentMapper({4: (4, 4)}, {4: (6, 4)}, width=16, blocks=1, context=0, sites=sites)
        state = train_mapper(mapper, RandomSet(192, 3, 1), RandomSet(48, 3, 2), settings, 16)
        best[sites] = -state.best_value
    assert best[3] < 0.4 * best[0]


def test_adapters_need_the_site() -> None:
    mapper = LatentMapper({4: (4, 4)}, {4: (6, 4)}, width=8, blocks=1, sites=2)
    with pytest.raises(ValueError, match=r"site: expected int64 \[N\]"):
        mapper({4: torch.randn(1, 4, 8, 8)})


def test_rare_mask_codes_count_more_whatever_the_frame() -> None:
    torch.manual_seed(0)
    background, foreground = torch.randn(2, 8, 1, 1)
    z = background.expand(2, 8, 4, 4).clone()
    z[:, :, 1, 1:3] = foreground[..., 0]
    weights = position_weights(z, 0.3)
    assert weights.shape == (2, 1, 4, 4) and float(weights.mean()) == pytest.approx(1)
    rare, common = weights[0, 0, 1, 1], weights[0, 0, 0, 0]
    # A share p of the positions: distances (1 - p)^2 and p^2, of mean p (1 - p).
    p = 2 / 16
    assert float(rare / common) == pytest.approx((1 + 0.3 * (1 - p) / p) / (1 + 0.3 * p / (1 - p)), rel=1e-4)
    frame = torch.linalg.qr(torch.randn(8, 8)).Q
    turned = torch.einsum("ij,njhw->nihw", frame, z)
    torch.testing.assert_close(position_weights(turned, 0.3), weights)
    guess = {8: torch.randn(2, 8, 4, 4)}
    by_hand = (weights * (guess[8] - z).square()).mean()
    torch.testing.assert_close(squared_error(guess, {8: z}, 0.3), by_hand)
    torch.testing.assert_close(squared_error(guess, {8: z}), (guess[8] - z).square().mean())
    assert bool((position_weights(torch.ones(1, 8, 2, 2), 0.3) == 1).all())
