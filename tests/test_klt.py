"""The transform as a module, and folded into convolutions."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ppcmi_fast import KeyedLatentTransform, SiteKey
from ppcmi_fast.klt import fold_forward_into_conv, fold_inverse_into_conv

KEY = SiteKey(bytes(range(32)), "tests")


@pytest.mark.parametrize("mixing", ["haar", "hadamard"])
@pytest.mark.parametrize("offset", [0.0, 0.4])
@pytest.mark.parametrize("bias", [True, False])
def test_folded_equals_unfolded(mixing: str, offset: float, bias: bool) -> None:
    params = KEY.klt_params("image", 8, 32, mixing, offset_scale=offset)
    transform = KeyedLatentTransform(params)
    x = torch.randn(2, 12, 6, 5)
    encoder = nn.Conv2d(12, 32, 1, bias=bias)
    unfolded = transform(encoder(x), normalize=False)
    torch.testing.assert_close(fold_forward_into_conv(encoder, params)(x), unfolded, rtol=1e-5, atol=1e-5)
    decoder = nn.Conv2d(32, 9, 1, bias=bias)
    torch.testing.assert_close(
        fold_inverse_into_conv(params, decoder)(unfolded),
        decoder(transform.inverse(unfolded)),
        rtol=1e-5,
        atol=1e-5,
    )


def test_module_matches_its_parts_and_keeps_the_key_out_of_state_dict() -> None:
    transform = KeyedLatentTransform(KEY.klt_params("image", 8, 64, "hadamard", 2))
    x = torch.randn(2, 16, 8, 8)
    assert transform.state_dict() == {}
    torch.testing.assert_close(transform.inverse(transform(x, normalize=False)), x, rtol=1e-5, atol=1e-5)
    codes = transform.quantize(x, 8)
    unit = transform.inverse(transform(x))
    assert (transform.dequantize(codes, 8) - unit).abs().max() < 0.35
    assert "tensor" not in repr(transform)


@pytest.mark.parametrize(
    ("conv", "fold", "message"),
    [
        (nn.Conv2d(8, 32, 3), 1, "expected a plain 1x1 convolution"),
        (nn.Conv2d(8, 16, 1), 1, "out_channels=32, got 16"),
        (nn.Conv2d(8, 32, 1), 2, "expected fold=1, got 2"),
    ],
)
def test_convolutions_that_cannot_take_a_key_are_named(conv: nn.Conv2d, fold: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fold_forward_into_conv(conv, KEY.klt_params("image", 8, 32, "haar", fold))
