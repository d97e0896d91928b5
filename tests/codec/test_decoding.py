"""The vocoder in chunks against the vocoder at once, and blocks of the waveform."""

import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from audiolitefocus.checkpoints.bundle import load_component
from audiolitefocus.codec import decode as decoding
from audiolitefocus.codec import tiling
from audiolitefocus.config import VocoderConfig, demo_folder
from audiolitefocus.models.vocoder import HiFiGAN

EXACT = 1e-13  # of a waveform in [-1, 1]
ROUNDING = 1e-6  # float32, root mean square: convolutions add up in an order that goes by length


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(decoding, "CHUNK_FRAMES", 32)
    monkeypatch.setattr(tiling, "TILE_FRAMES", 64)
    monkeypatch.setattr(tiling, "OVERLAP_FRAMES", 8)


@pytest.mark.parametrize("frames", [1, 63, 64, 89, 90, 128, 129, 300])
@torch.inference_mode()
def test_the_vocoder_in_chunks_is_the_vocoder(small_chunks, frames):
    config = VocoderConfig(
        initial_channels=16, upsample_rates=(5, 4, 2), upsample_kernels=(16, 16, 8)
    )
    torch.manual_seed(0)
    vocoder, mel = HiFiGAN(config).double(), torch.randn(2, frames, 64, dtype=torch.float64)
    expected = vocoder(mel)
    for blocks in ([mel], mel.split(37, dim=1), mel.split(5, dim=1)):
        found = torch.cat(list(decoding.vocode(vocoder, blocks)), dim=1)
        assert found.shape == expected.shape == (2, 40 * frames + 8)
        torch.testing.assert_close(found, expected, rtol=0, atol=EXACT)


@torch.inference_mode()
def test_in_float32_chunks_round_like_the_vocoder_at_once(vocoder, small_chunks):
    mel = torch.randn(1, 300, 64, generator=torch.Generator().manual_seed(0))
    whole, found = vocoder(mel), torch.cat(list(decoding.vocode(vocoder, [mel])), dim=1)
    truth = load_component(demo_folder(), "vocoder", dtype=torch.float64)(mel.double())
    assert (found - whole).square().mean().sqrt() < ROUNDING
    assert (found - truth).abs().max() < 1.5 * (whole - truth).abs().max()


@torch.inference_mode()
def test_chunks_have_equal_widths(monkeypatch, vocoder, small_chunks):
    widths, forward = [], vocoder.forward
    monkeypatch.setattr(vocoder, "forward", lambda x: widths.append(x.shape[1]) or forward(x))
    for _ in decoding.vocode(vocoder, torch.zeros(1, 500, 64).split(37, dim=1)):
        pass
    width = 32 + 2 * decoding.receptive_field(vocoder.config)
    assert len(widths) > 10 and set(widths[:-1]) == {width} and widths[-1] <= width


def test_the_vocoder_sees_no_further_than_its_receptive_field(vocoder):
    """A change of one mel frame, by automatic differentiation."""
    assert decoding.receptive_field(VocoderConfig()) == 25
    reach = decoding.receptive_field(vocoder.config)
    mel = torch.randn(1, 101, 64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    vocoder(mel)[0, 50 * 160 : 51 * 160].sum().backward()
    seen = mel.grad[0].abs().sum(-1).nonzero().flatten()
    assert 50 - reach <= seen.min() and seen.max() <= 50 + reach
    assert seen.max() - seen.min() > reach  # and not much less than it could


@pytest.mark.parametrize("samples", [None, 1, 640 * 300, 640 * 300 - 77])
@torch.inference_mode()
def test_blocks_are_cut_to_the_sample(vae, vocoder, small_chunks, samples):
    latents = torch.randn(1, 8, 300, 16, generator=torch.Generator().manual_seed(0))
    blocks = list(decoding.decode_blocks(vae, vocoder, latents, samples))
    total = sum(block.shape[1] for block in blocks)
    assert total == (640 * 300 if samples is None else samples)
    assert all(block.shape[1] for block in blocks)


class PeakBytes(TorchDispatchMode):
    """The most bytes that tensors made inside held at once."""

    def __init__(self):
        super().__init__()
        self.alive, self.peak = weakref.WeakKeyDictionary(), 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self.alive[storage] = storage.nbytes()
        self.peak = max(self.peak, sum(self.alive.values()))
        return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_does_not_grow_with_the_clip(small_chunks, dtype):
    networks = [load_component(demo_folder(), name, dtype=dtype) for name in ("vae", "vocoder")]
    peaks = []
    for frames in (150, 300):
        latents = torch.randn(1, 8, frames, 16, generator=torch.Generator().manual_seed(0))
        with PeakBytes() as mode:
            for _ in decoding.decode_blocks(*networks, latents):
                pass
        peaks.append(mode.peak - 3 * latents.nbytes)  # on the device, and unscaled
    assert peaks[1] < 1.05 * peaks[0]


@torch.inference_mode()
def test_blocks_are_made_as_they_are_asked_for(vae, vocoder, small_chunks):
    done = []
    latents = torch.randn(1, 8, 300, 16, generator=torch.Generator().manual_seed(0))
    blocks = decoding.decode_blocks(vae, vocoder, latents, on_block=lambda *n: done.append(n))
    assert not done
    next(blocks)
    assert done == [(1, 6)]


@pytest.mark.parametrize("frames, how", [(128, "auto"), (300, "whole")])
@torch.inference_mode()
def test_whole_clips_are_decoded_at_once(vae, vocoder, small_chunks, frames, how):
    latents = torch.randn(1, 8, frames, 16, generator=torch.Generator().manual_seed(0))
    blocks = decoding.decode_blocks(vae, vocoder, latents, decode=how)
    mel = vae.decode(latents / vae.config.scale_factor)
    assert torch.equal(
        torch.cat(list(blocks), 1), torch.cat(list(decoding.vocode(vocoder, [mel])), 1)
    )
