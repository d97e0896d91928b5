"""The autoencoder in tiles with a crossfade against the autoencoder at once."""

import pytest
import torch

from audiolitefocus.codec import tiling
from audiolitefocus.codec.decode import decode_mel, encode_mel
from audiolitefocus.codec.tiling import OVERLAP_FRAMES, TILE_FRAMES, in_tiles, is_tiled, tiles

# Nats of log-mel, mean over a clip; the demo's clips of 41 s differ by 0.002 to 0.024, and its
# autoencoder from recordings by 0.20.
TILED_BOUND = 0.04
SEAM_RATIO = 2.0  # of the difference at the seams to that elsewhere; 1.0 is measured
STEP_BOUND = 0.1  # nats between neighbouring frames, added by a seam to the mean over bands
LATENT_BOUND = 0.05  # root mean square, of latents whose own is 1
ROUNDING = 1e-6


@pytest.fixture
def small_tiles(monkeypatch):
    monkeypatch.setattr(tiling, "TILE_FRAMES", 48)
    monkeypatch.setattr(tiling, "OVERLAP_FRAMES", 8)


def noise(frames: int, batch: int = 1) -> torch.Tensor:
    return torch.randn(batch, 8, frames, 16, generator=torch.Generator().manual_seed(frames))


def decode(vae, latents: torch.Tensor, how: str) -> torch.Tensor:
    return torch.cat(list(decode_mel(vae, latents, decode=how)), dim=1)


@pytest.mark.parametrize("frames", [1, 256, 257, 480, 481, 512, 513, 1000, 45_000])
def test_tiles_cover_every_frame_and_overlap(frames):
    spans = tiles(frames)
    assert spans[0][0] == 0 and spans[-1][1] == frames
    assert {stop - start for start, stop in spans} == {min(frames, TILE_FRAMES)}
    for (_, stop), (start, _) in zip(spans, spans[1:], strict=False):
        assert stop - start >= OVERLAP_FRAMES


@pytest.mark.parametrize("frames", [1, 48, 49, 88, 89, 96, 97, 150, 1000])
def test_crossfade_weights_sum_to_one(small_tiles, frames):
    """What is the same in all tiles comes out as it is, every frame once."""
    clip = torch.randn(2, 4 * frames, 3, dtype=torch.float64)
    blocks = list(in_tiles(lambda a, b: clip[:, 4 * a : 4 * b], frames, lambda *_: None))
    torch.testing.assert_close(torch.cat(blocks, dim=1), clip, rtol=0, atol=1e-14)


def test_a_crossfade_goes_evenly_from_one_tile_to_the_next(small_tiles):
    first = iter([0.0, 1.0])
    blocks = in_tiles(lambda a, b: torch.full((1, b - a, 1), next(first)), 88, lambda *_: None)
    found = torch.cat(list(blocks), dim=1).flatten()
    assert (found[:40] == 0).all() and (found[48:] == 1).all()
    torch.testing.assert_close(found[40:48], (torch.arange(8) + 0.5) / 8)


@pytest.mark.parametrize(
    "how, frames, expected",
    [
        ("auto", 2 * TILE_FRAMES, False),
        ("auto", 2 * TILE_FRAMES + 1, True),
        ("whole", 10**6, False),
        ("tiled", 1, True),
    ],
)
def test_auto_tiles_what_is_longer_than_two(how, frames, expected):
    assert is_tiled(how, frames) == expected


def test_another_way_to_decode_is_refused(vae):
    with pytest.raises(ValueError, match="decode 'windows': must be one of auto, whole, tiled"):
        list(decode_mel(vae, noise(8), decode="windows"))
    with pytest.raises(ValueError, match="decode None"):
        encode_mel(vae, torch.zeros(1, 32, 64), decode=None)


@torch.inference_mode()
def test_whole_is_the_autoencoder_at_once(vae, small_tiles):
    latents = noise(150, batch=2)
    mel = vae.decode(latents)
    assert torch.equal(decode(vae, latents, "whole"), mel)
    assert torch.equal(encode_mel(vae, mel, decode="whole"), vae.encode(mel)[0])


@pytest.mark.parametrize("how", ["auto", "tiled"])
@pytest.mark.parametrize("frames", [1, 48])
@torch.inference_mode()
def test_short_clips_are_bit_equal(vae, small_tiles, frames, how):
    latents = noise(frames)
    mel = vae.decode(latents)
    assert torch.equal(decode(vae, latents, how), mel)
    assert torch.equal(encode_mel(vae, mel, decode=how), vae.encode(mel)[0])


@torch.inference_mode()
def test_clips_of_a_batch_are_decoded_alike(vae, small_tiles):
    latents = noise(150, batch=2)
    both, second = decode(vae, latents, "tiled"), decode(vae, latents[1:], "tiled")
    torch.testing.assert_close(both[1:], second, rtol=0, atol=100 * ROUNDING)


@torch.inference_mode()
def test_tiles_are_counted(vae, small_tiles):
    counts = []
    for _ in decode_mel(vae, noise(150), on_block=lambda *n: counts.append(n)):
        pass
    assert counts == [(1, 4), (2, 4), (3, 4), (4, 4)]


@pytest.fixture(scope="module")
def decoded(vae, generate):
    """Whole and tiled log-mels (n, t, m) of generated clips, and at which frames tiles overlap."""
    latents = generate(["a low steady tone", "rain"], 24.0, 5)
    latents = latents / vae.config.scale_factor
    with torch.inference_mode():
        whole, tiled = (decode(vae, latents, how) for how in ("whole", "tiled"))
    seams = torch.zeros(whole.shape[1], dtype=torch.bool)
    spans = tiles(latents.shape[2])
    for (_, stop), (start, _) in zip(spans, spans[1:], strict=False):
        seams[4 * start : 4 * stop] = True
    return whole, tiled, seams


def test_tiles_are_close_to_the_whole(decoded):
    whole, tiled, _ = decoded
    assert (tiled - whole).abs().mean((1, 2)).max() < TILED_BOUND


def test_seams_differ_no_more_than_tiles_do(decoded):
    whole, tiled, seams = decoded
    difference = (tiled - whole).abs().mean((0, 2))
    assert difference[seams].mean() < SEAM_RATIO * difference[~seams].mean()


def test_a_seam_is_no_step_in_level(decoded):
    whole, tiled, seams = decoded
    added = (tiled - whole).mean(2).diff(dim=1).abs()
    assert added[:, seams[1:]].max() < STEP_BOUND


@torch.inference_mode()
def test_recordings_are_encoded_in_tiles_like_the_whole(vae, decoded):
    mel, scale = decoded[0], vae.config.scale_factor
    error = scale * (encode_mel(vae, mel, decode="tiled") - vae.encode(mel)[0])
    assert error.square().mean((1, 2, 3)).sqrt().max() < LATENT_BOUND
