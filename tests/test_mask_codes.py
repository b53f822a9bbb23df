"""What mask codes keep of masks is measured, and said before anything is trained where it is too little."""

from __future__ import annotations

import hashlib
from io import StringIO
from pathlib import Path

import pytest
import torch
from federation_parties import SITE_SECRETS, SIZE, make_site
from rich.console import Console
from tiny_runs import tiny_config
from torch import Tensor

from ppcmi_fast import SiteKey, ops, wire
from ppcmi_fast.codec import MASK_WEIGHTS, LinearMaskCodec, MaskAutoencoder
from ppcmi_fast.data.arrays import Arrays
from ppcmi_fast.data.phantom import write_native
from ppcmi_fast.errors import ConfigError
from ppcmi_fast.federation.config import RunConfig
from ppcmi_fast.federation.evaluate import mean_dice
from ppcmi_fast.federation.mask_codes import kept_dice, rank_advice
from ppcmi_fast.federation.run import federate
from ppcmi_fast.metrics import dice_scores
from ppcmi_fast.ops.codebook import rms_error
from ppcmi_fast.report.scores import score_notes


def arrays(masks: torch.Tensor) -> Arrays:
    return Arrays(torch.zeros(len(masks), 1, *masks.shape[1:]), masks, [], None)


def rings(thickness: int) -> Arrays:
    """Squares' outlines on 32 x 32 pixels."""
    masks = torch.zeros(70, 32, 32, dtype=torch.int64)
    masks[:, 5:25, 6:26] = 1
    masks[:, 5 + thickness : 25 - thickness, 6 + thickness : 26 - thickness] = 0
    return arrays(masks)


def test_what_a_code_keeps_is_the_dice_of_its_round_trip() -> None:
    data = rings(1)
    assert kept_dice(LinearMaskCodec(2, 8, 64), data, 2) == 1
    codec = LinearMaskCodec(2, 8, 16)
    maps = codec.decode(codec.encode(data.masks)).argmax(1)
    expected = float(dice_scores(maps, data.masks, 2).mean())
    assert kept_dice(codec, data, 2) == pytest.approx(expected) and expected < 0.9
    # Untrained, it knows nothing of masks.
    assert kept_dice(MaskAutoencoder(2).eval(), data, 2) < 0.9


def round_trip(code: Tensor, mixing: str, bits: int, number: int) -> Tensor:
    """A code [N, D, h, w] after protection under a key of that number, `bits` an entry, and the way back."""
    key = SiteKey(hashlib.sha256(str(number).encode()).digest(), "fed")
    params = key.klt_params("mask", 8, code.shape[1], mixing)
    codes = ops.klt_quantize(code, params, bits=bits, normalize=False)
    return ops.klt_dequantize(codes, params, bits=bits)


def background_error(mixing: str, classes: int, keys: int) -> float:
    """Mean squared error of the 4-bit code of a block that shows nothing, under the worst of so many keys."""
    codec = LinearMaskCodec(classes)
    (code,) = codec.encode(torch.zeros(1, 8, 8, dtype=torch.int64)).values()
    return max((round_trip(code, mixing, 4, number) - code).square().mean().item() for number in range(keys))


@pytest.mark.parametrize("classes", [2, 3, 4, 5])
def test_the_default_mixing_keeps_the_background_under_every_key(classes: int) -> None:
    worst = background_error("haar", classes, 400)
    assert worst < 5 * rms_error(4) ** 2
    # Why it is the default: where few entries are not zero, two rounds of signs and Hadamard leave peaks.
    assert background_error("hadamard", classes, 400) > 1.2 * worst


def test_a_site_mixes_masks_as_its_settings_say() -> None:
    masks = torch.zeros(1, SIZE, SIZE, dtype=torch.int64)
    images = torch.ones(1, 1, SIZE, SIZE)
    sent = {}
    for mixed in ("haar", "hadamard"):
        site = make_site("a", mask_mixing=mixed, bits_up=32)
        site.register(SIZE, SIZE)
        sent[mixed] = wire.decode(site.upload(images, masks, "train"), "fed", 0, ("upload",))
        params = SiteKey(SITE_SECRETS["a"], "fed").klt_params("mask", 8, 16, mixed)
        weights = torch.tensor([0.7] + [1.75] * 15).view(1, 16, 1, 1)
        code = LinearMaskCodec(2).encode(masks)[8] * weights
        expected = ops.klt(code, params, normalize=False)
        torch.testing.assert_close(sent[mixed].role("mask")[8], expected, rtol=0, atol=0)
    same = [sent[mixed].role("image")[4] for mixed in ("haar", "hadamard")]
    torch.testing.assert_close(*same, rtol=0, atol=0)


def quantized_dice(data: Arrays, weights: tuple[float, float], bits: int) -> float:
    """Mean Dice of masks after protection, `bits` an entry and the way back, over a few keys."""
    codec = LinearMaskCodec(4)
    weight = codec.entry_weights(*weights)[8]
    code = codec.encode(data.masks)[8] * weight
    backs = [round_trip(code, "haar", bits, number) / weight for number in range(5)]
    return sum(mean_dice(codec.decode({8: back}).argmax(1), data, 4) for back in backs) / len(backs)


def test_weighted_codes_keep_more_at_few_bits() -> None:
    rings_in_rings = torch.zeros(8, 64, 64, dtype=torch.int64)
    for index in range(8):
        for value, margin in ((1, 12), (2, 17), (3, 23)):
            rings_in_rings[index, margin + index : 64 - margin, margin : 60 - margin + index // 2] = value
    data = arrays(rings_in_rings)
    weighted, equal = (quantized_dice(data, weights, 2) for weights in (MASK_WEIGHTS, (1.0, 1.0)))
    assert weighted > equal + 0.02
    assert quantized_dice(data, MASK_WEIGHTS, 4) > quantized_dice(data, (1.0, 1.0), 4) - 0.005


def test_weights_are_those_of_means_and_of_all_else() -> None:
    assert LinearMaskCodec(3, 8, 4).entry_weights(0.5, 2)[8].flatten().tolist() == [0.5, 2, 2, 2] * 2
    assert LinearMaskCodec(3, 8, 4).entry_weights(0.5, 2)[8].shape == (1, 8, 1, 1)
    assert LinearMaskCodec(2, 4, 1).entry_weights(0.5, 2)[4].tolist() == [[[[0.5]]]]
    for bad in ((0.0, 1.0), (1.0, -1.0), (float("nan"), 1.0), (1.0, float("inf")), (1.0,)):
        with pytest.raises(ConfigError, match="mask_weights: expected two finite numbers over 0, got"):
            make_site("a", mask_weights=bad)
    nonlinear = MaskAutoencoder(2, (8, 16), (4, 6)).entry_weights(0.5, 2)
    assert {scale: weight.shape for scale, weight in nonlinear.items()} == {8: (1, 4, 1, 1), 16: (1, 6, 1, 1)}
    assert all(bool((weight == 1).all()) for weight in nonlinear.values())


@pytest.mark.parametrize("bits", [4, 32])
def test_a_reply_is_weighed_back(bits: int) -> None:
    site = make_site("a", mask_weights=(0.5, 1.5), bits_down=bits)
    codec = LinearMaskCodec(2)
    masks = torch.zeros(1, SIZE, SIZE, dtype=torch.int64)
    masks[:, 5:27, 8:20] = 1
    weighted = codec.encode(masks)[8] * codec.entry_weights(0.5, 1.5)[8]
    params = SiteKey(SITE_SECRETS["a"], "fed").klt_params("mask", 8, 16, "haar")
    answer = (
        ops.klt(weighted, params, normalize=False)
        if bits == 32
        else ops.klt_quantize(weighted, params, bits=bits, normalize=False)
    )
    reply = wire.encode(wire.Message("reply", "fed", "server", 0, {}, {"mask/8": answer}))
    error = (site.open_reply(reply) - codec.decode(codec.encode(masks))).abs()
    # Not weighed back, every pixel of the background would be off by a quarter.
    assert error.mean() < (0.06 if bits == 4 else 1e-5)


def test_a_finer_code_is_advised_where_it_would_keep_more() -> None:
    blocks = {"codec.mask_block": 8}
    config = tiny_config(Path(), blocks)
    fine, coarse = rings(1), rings(8)
    assert rank_advice(config, {"a": coarse}, 2) == ""
    kept = [kept_dice(LinearMaskCodec(2, 8, rank), fine, 2) for rank in (16, 32)]
    for sites in ({"a": fine}, {"a": coarse, "b": fine}):
        found = rank_advice(config, sites, 2)
        assert found.startswith(f"codec.mask_rank=16 keeps a Dice of {kept[0]:.3f} of the training masks")
        assert f"32 would keep {kept[1]:.3f}" in found
    assert rank_advice(tiny_config(Path(), blocks | {"codec.mask_rank": 64}), {"a": fine}, 2) == ""
    assert rank_advice(tiny_config(Path(), {"codec.mask": "autoencoder"}), {"a": fine}, 2) == ""


@pytest.mark.parametrize("size", [64, 128])
def test_who_follows_the_advice_gets_what_it_promises(size: int) -> None:
    fine = rings(1)
    fine.masks[:] = torch.rand(fine.masks.shape, generator=torch.Generator().manual_seed(1)) > 0.5

    def kept(config: RunConfig) -> float:
        return kept_dice(LinearMaskCodec(2, config.codec.mask_block, config.codec.mask_rank), fine, 2)

    now = tiny_config(Path(), {"size": size})
    then = tiny_config(Path(), {"size": size, "codec.mask_rank": 2 * now.codec.mask_rank})
    assert then.codec.mask_block == now.codec.mask_block
    assert f"{then.codec.mask_rank} would keep {kept(then):.3f}" in rank_advice(now, {"a": fine}, 2)
    assert kept(then) > kept(now)


def test_a_run_says_it_first_and_keeps_it(tmp_path: Path) -> None:
    write_native("acdc", tmp_path / "data", subjects=6, sites=2, size=48)
    said = StringIO()
    metrics = federate(
        tiny_config(tmp_path / "data", {}), tmp_path / "run", console=Console(file=said, width=500)
    )
    assert said.getvalue().startswith("note: codec.mask_rank=8 keeps a Dice of 0.")
    kept = metrics["mask_code_dice"]
    assert set(kept) == {"site-0", "site-1"} and all(0.3 < value < 0.98 for value in kept.values())
    assert f"keep a Dice of {sum(kept.values()) / 2:.3f} of the test masks" in " ".join(score_notes(metrics))
