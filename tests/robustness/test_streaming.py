"""Waveforms that are decoded and written block by block."""

import json
from collections import namedtuple

import numpy as np
import pytest
import soundfile
import torch

from audiolitefocus import atomic
from audiolitefocus.audio.files import write_sound
from audiolitefocus.batch.clips import make_clips, save_clip
from audiolitefocus.batch.requests import prepare
from audiolitefocus.codec import decode as decoding
from audiolitefocus.codec import tiling
from audiolitefocus.options import GenerationOptions
from tests.support.compare import seeded

QUICK = {"audio_length_in_s": 5.12, "num_inference_steps": 2}
TWO_STEPS = {"num_inference_steps": 2, "seed": 0}
PCM_STEP = 1.01 / 32768  # 16-bit samples are rounded


@pytest.fixture
def short_tiles(monkeypatch):
    """Clips are decoded in tiles of 32 latent frames, and vocoded as soon as possible."""
    monkeypatch.setattr(tiling, "TILE_FRAMES", 32)
    monkeypatch.setattr(tiling, "OVERLAP_FRAMES", 8)
    monkeypatch.setattr(decoding, "CHUNK_FRAMES", 64)


def test_blocks_are_the_waveform(pipe, short_tiles):
    whole = pipe(["rain", "wind"], generator=seeded(3), output_type="pt", **QUICK).audios
    blocks = pipe(["rain", "wind"], generator=seeded(3), output_type="blocks", **QUICK).audios
    blocks = [list(clip) for clip in blocks]
    assert all(len(clip) > 1 for clip in blocks)
    assert torch.equal(torch.stack([torch.cat(clip) for clip in blocks]), whole)


def test_a_recording_stays_in_blocks_too(pipe, short_tiles):
    recording = 0.1 * torch.randn(16000, generator=seeded(3))
    settings = {**QUICK, "continue_audio": recording}
    whole = pipe("rain", generator=seeded(3), output_type="pt", **settings).audios
    (blocks,) = pipe("rain", generator=seeded(3), output_type="blocks", **settings).audios
    found = torch.cat(list(blocks))
    assert torch.equal(found, whole[0]) and torch.equal(found[:16000], recording)


def test_nothing_is_decoded_before_it_is_asked_for(pipe, monkeypatch):
    monkeypatch.setattr(pipe.vae, "decode", lambda latents: pytest.fail("decoded"))
    pipe("rain", output_type="blocks", **QUICK)


@pytest.mark.parametrize("recorded", [False, True])
def test_room_for_the_sounds_is_looked_for_before_the_first_step(
    pipe, recorded, tmp_path, monkeypatch
):
    recording = write_sound(tmp_path / "second.wav", np.zeros(16000, np.float32), 16000)
    asked = {"init_audio": str(recording)} if recorded else {"audio_length_in_s": 1.0}
    clips = [
        prepare("x", tmp_path / f"{name}.wav", GenerationOptions(**asked, **TWO_STEPS))
        for name in "ab"
    ]
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(atomic.shutil, "disk_usage", lambda folder: usage(63_999))
    with pytest.raises(OSError, match="63,999 bytes free, and 64,000 needed"):
        make_clips(pipe, clips, lambda *_: pytest.fail("a step"))
    monkeypatch.setattr(atomic.shutil, "disk_usage", lambda folder: usage(64_000))
    make_clips(pipe, clips, lambda *_: None)


def test_candidates_need_whole_waveforms(pipe):
    with pytest.raises(ValueError, match="ranked"):
        pipe("rain", output_type="blocks", num_waveforms_per_prompt=2, **QUICK)


def test_tiles_are_reported(pipe, short_tiles):
    counts = []
    pipe("rain", on_block=lambda *n: counts.append(n), **QUICK)
    assert counts[-1][0] == counts[-1][1] == len(counts) > 1


def test_clips_are_written_as_they_are_decoded(pipe, short_tiles, tmp_path):
    """In the file before the last block has been made, and under its name after it."""
    clip = prepare("rain", tmp_path / "rain.wav", GenerationOptions(**QUICK, seed=0))
    heard = []

    def on_block(done: int, total: int) -> None:
        heard.append(max(path.stat().st_size for path in tmp_path.iterdir()))
        assert not clip.path.exists()

    (output,) = make_clips(pipe, [clip], None, on_block)
    assert not heard and not list(tmp_path.iterdir())
    save_clip(pipe, clip, output)
    assert heard[-1] > 70_000  # of 164 kB: the last window but one waits for its context
    recipe = json.loads((tmp_path / "rain.json").read_text())
    assert recipe["samples"] == soundfile.info(clip.path).frames == 81920
    expected = pipe("rain", generator=torch.Generator().manual_seed(0), **QUICK).audios[0]
    np.testing.assert_allclose(soundfile.read(clip.path)[0], expected, atol=PCM_STEP)


def test_a_decoder_that_fails_leaves_no_file(pipe, tmp_path, monkeypatch):
    def decode(latents):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate")

    (blocks,) = pipe("rain", output_type="blocks", **QUICK).audios
    monkeypatch.setattr(pipe.vae, "decode", decode)
    with pytest.raises(MemoryError, match="on cpu making 1 clip of 5.12 s.*what helps: "):
        write_sound(tmp_path / "x.wav", blocks, 16000)
    assert not list(tmp_path.iterdir())
