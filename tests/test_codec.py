"""Image and mask codecs: shapes, unit RMS, exact bases, learning, bad input."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from ppcmi_fast.codec import CodecLearner, ImageCodec, LinearMaskCodec, MaskAutoencoder
from ppcmi_fast.codec.learner import soft_dice_loss
from ppcmi_fast.codec.mask import dct_basis
from ppcmi_fast.federation.codecs import latent_noise, make_learner
from ppcmi_fast.federation.config import RunConfig
from ppcmi_fast.mapper import LatentMapper
from ppcmi_fast.training import Fit, FitSettings


def discs(count: int, size: int = 32, classes: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    masks = torch.zeros(count, size, size, dtype=torch.int64)
    for label in range(1, classes):
        centre = torch.rand(count, 2, generator=generator) * size * 0.5 + size * 0.25
        inside = (y - centre[:, 0, None, None]) ** 2 + (x - centre[:, 1, None, None]) ** 2 < (size / 6) ** 2
        masks[inside] = label
    images = masks.unsqueeze(1) / (classes - 1) * 0.6 + 0.2
    return images + 0.05 * torch.randn(images.shape, generator=generator), masks


def test_dct_basis_is_orthonormal() -> None:
    basis = dct_basis(8, 64)
    torch.testing.assert_close(basis @ basis.T, torch.eye(64), rtol=0, atol=1e-6)


@pytest.mark.parametrize("classes", [2, 4])
def test_full_rank_linear_codec_is_exact(classes: int) -> None:
    _, masks = discs(3, classes=classes)
    codec = LinearMaskCodec(classes, block=4, rank=16)
    code = codec.encode(masks)
    assert code[4].shape == (3, (classes - 1) * 16, 8, 8)
    assert torch.equal(codec.decode(code).argmax(1), masks)


def test_linear_code_of_one_class_has_unit_rms_and_decodes_linearly() -> None:
    codec = LinearMaskCodec(2, block=8, rank=16)
    empty, full = torch.zeros(1, 32, 32, dtype=torch.int64), torch.ones(1, 32, 32, dtype=torch.int64)
    for mask in (empty, full):
        torch.testing.assert_close(codec.encode(mask)[8].square().mean(1).sqrt(), torch.ones(1, 4, 4))
    mean = (codec.encode(empty)[8] * 0.7) + (codec.encode(full)[8] * 0.3)
    torch.testing.assert_close(codec.decode({8: mean})[:, 1], torch.full((1, 32, 32), 0.3), rtol=0, atol=1e-5)


def test_low_rank_linear_codec_keeps_most_of_a_mask() -> None:
    _, masks = discs(8, size=64)
    codec = LinearMaskCodec(2, block=8, rank=16)
    decoded = codec.decode(codec.encode(masks)).argmax(1)
    overlap = 2 * (decoded * masks).sum() / (decoded.sum() + masks.sum())
    assert overlap > 0.97


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        (torch.zeros(1, 32, 32), r"masks: expected \[N, H, W\] int64, got \[1, 32, 32\] torch.float32"),
        (torch.full((1, 32, 32), 2), r"masks: expected values 0\.\.1, got 2\.\.2"),
        (torch.zeros(1, 30, 32, dtype=torch.int64), r"expected H and W that 8 divides, got 30x32"),
    ],
)
def test_linear_codec_names_bad_masks(masks: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LinearMaskCodec(2).encode(masks)


def test_linear_codec_names_bad_settings() -> None:
    with pytest.raises(ValueError, match="classes: expected at least 2"):
        LinearMaskCodec(1)
    with pytest.raises(ValueError, match=r"rank: expected 1\.\.16 for block=4, got 17"):
        LinearMaskCodec(2, block=4, rank=17)


def test_image_codec_shapes_and_unit_rms() -> None:
    codec = ImageCodec(scales=(4, 8), channels=(6, 10), width=8, blocks=1).eval()
    latents = codec.encode(torch.rand(2, 1, 64, 32))
    assert {s: tuple(z.shape) for s, z in latents.items()} == {4: (2, 6, 16, 8), 8: (2, 10, 8, 4)}
    for z in latents.values():
        torch.testing.assert_close(z.square().mean(1), torch.ones_like(z[:, 0]), rtol=1e-4, atol=1e-4)
    assert codec.decode(latents).shape == (2, 1, 64, 32)


@pytest.mark.parametrize("shape", [(1, 2, 32, 32), (1, 1, 33, 32), (32, 32)])
def test_image_codec_names_bad_images(shape: tuple[int, ...]) -> None:
    with pytest.raises(
        ValueError, match=r"images: expected \[N, 1, H, W\] with H and W multiples of 16, got"
    ):
        ImageCodec().encode(torch.zeros(shape))


@pytest.mark.parametrize(
    ("scales", "channels"), [((3,), (4,)), ((8, 4), (4, 4)), ((), ()), ((4, 8), (4,)), ((4,), (0,))]
)
def test_codec_names_bad_scales(scales: tuple[int, ...], channels: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"scales|channels"):
        ImageCodec(scales, channels)


@pytest.mark.parametrize("mask", ["linear", "autoencoder"])
def test_learner_learns_to_rebuild_and_to_segment(mask: str) -> None:
    torch.manual_seed(0)
    images, masks = discs(16)
    image_codec = ImageCodec((4, 8), (8, 8), width=8, blocks=1)
    mask_codec = LinearMaskCodec(2) if mask == "linear" else MaskAutoencoder(2, (8,), (8,), width=8)
    head = LatentMapper(
        {4: (8, 4), 8: (8, 8)}, {s: (d, s) for s, d in mask_codec.latent_dims.items()}, 16, 1, 0
    )
    learner = CodecLearner(image_codec, mask_codec, head, reconstruction=1.0)
    before = (learner.image_codec.decode(image_codec.encode(images)) - images).abs().mean()
    Fit(learner, lambda g: learner.loss(images, masks, g), FitSettings(150, 5e-3, validate_every=50)).run()
    after = (learner.image_codec.decode(image_codec.encode(images)) - images).abs().mean()
    guess = learner.predict(images).argmax(1)
    dice = 2 * (guess * masks).sum() / (guess.sum() + masks.sum())
    assert after < 0.5 * before
    assert dice > (0.85 if mask == "linear" else 0.7)


def test_a_codec_is_trained_for_the_noise_of_its_bits() -> None:
    found = {bits: latent_noise(RunConfig.build({"data": ".", "bits_up": bits})) for bits in (2, 4, 8, 32)}
    assert found == {2: pytest.approx(0.1175**0.5, rel=0.001), 4: 0.1, 8: 0.1, 32: 0.1}
    config = RunConfig.build({"data": ".", "size": 32, "bits_up": 2})
    learner = make_learner(config, 2, 0)
    assert learner.noise == found[2]
    images, masks = discs(4)
    errors = []
    for noise in (0.1, found[2]):
        learner.noise = noise
        errors.append(learner.loss(images, masks, torch.Generator().manual_seed(0)).item())
    assert errors[0] != errors[1]


@pytest.mark.parametrize("mask", ["linear", "autoencoder"])
def test_a_codec_learns_by_the_dice_of_its_setting(mask: str) -> None:
    settings = {"data": ".", "size": 32, "codec": {"mask": mask}}
    usual = make_learner(RunConfig.build(settings), 2, 0)
    other = make_learner(RunConfig.build(settings, ["codec.dice=image"]), 2, 0)
    assert other.each_image and not usual.each_image
    images, masks = discs(4)
    masks[0] = 0
    losses = [
        learner.loss(images, masks, torch.Generator().manual_seed(0)).item() for learner in (usual, other)
    ]
    assert losses[0] != pytest.approx(losses[1], abs=1e-3)
    other.each_image = False
    assert other.loss(images, masks, torch.Generator().manual_seed(0)).item() == pytest.approx(losses[0])


def test_soft_dice_of_right_and_wrong() -> None:
    _, masks = discs(2)
    right = F.one_hot(masks, 2).movedim(-1, 1).float()
    assert soft_dice_loss(right, masks) < 1e-6
    assert soft_dice_loss(1 - right, masks) > 0.99


def test_each_image_counts_alike_or_each_pixel_does() -> None:
    masks = torch.zeros(2, 32, 32, dtype=torch.int64)
    masks[0, :16], masks[1, :2, :2] = 1, 1
    scores = F.one_hot(masks, 2).movedim(-1, 1).float()
    # Of the small structure, four pixels of 516, nothing is found.
    scores[1, 0], scores[1, 1] = 1, 0
    assert float(soft_dice_loss(scores, masks)) == pytest.approx(4 / 1029, abs=1e-6)
    each = float(soft_dice_loss(scores, masks, each_image=True))
    assert each == pytest.approx((0 + 1 - 1 / (4 + 1)) / 2)


@pytest.mark.parametrize("value", [2, -1])
def test_soft_dice_names_a_label_that_is_no_class(value: int) -> None:
    _, masks = discs(1)
    masks[0, 0, 0] = value
    with pytest.raises(
        ValueError, match=rf"masks: expected values 0\.\.1, got {min(value, 0)}\.\.{max(value, 1)}"
    ):
        soft_dice_loss(torch.zeros(1, 2, 32, 32), masks)
