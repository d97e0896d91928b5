"""scripts/demo/world/latents.py: clips of the synthetic world as the UNet sees them."""

import torch

from audiolitefocus import AudioLDM2Pipeline
from scripts.demo.world import clips, latents
from scripts.demo.world.sounds import draw
from tests.support.compare import assert_same

FEW = 3  # clips, instead of a thousand


def test_clips_keep_their_loudness_and_are_encoded_once(tmp_path, monkeypatch):
    for module in (clips, latents):
        monkeypatch.setattr(module, "CHUNK", FEW)
    pipe = AudioLDM2Pipeline.from_pretrained("demo", device="cpu")
    examples = latents.encode_clips(pipe, tmp_path, 2)
    shown = clips.shown(2)
    assert len(examples) == len(shown) and set(shown) == set(range(2 * FEW))
    example = examples[shown.index(FEW + 1)]
    mel = torch.from_numpy(clips.clip(FEW + 1)[1])[None]
    with torch.inference_mode():
        expected = pipe.vae.encode(mel)[0][0] * pipe.config.vae.scale_factor
    assert_same(example.latents, expected)
    condition = pipe.encode_prompt(draw(FEW + 1).caption)
    assert_same(example.condition.loa, condition.loa)
    assert_same(example.condition.t5[:, : condition.t5.shape[1]], condition.t5)
    assert example.condition.t5_mask.sum() == condition.t5_mask.sum()
    monkeypatch.setattr(clips, "clip", None)  # nothing is rendered again, nor encoded
    again = latents.encode_clips(pipe, tmp_path, 2)
    assert all(torch.equal(x.latents, y.latents) for x, y in zip(examples, again, strict=True))


def test_clips_are_as_long_as_is_asked(tmp_path, monkeypatch):
    for module in (clips, latents):
        monkeypatch.setattr(module, "CHUNK", FEW)
    pipe = AudioLDM2Pipeline.from_pretrained("demo", device="cpu")
    [short, long] = [latents.encode_clips(pipe, tmp_path, 1, seconds) for seconds in (0.64, 5.12)]
    assert short[0].latents.shape == (8, 16, 16) and long[0].latents.shape == (8, 128, 16)
    mel = torch.from_numpy(clips.clip(0, 512)[1])[None]
    with torch.inference_mode():
        expected = pipe.vae.encode(mel)[0][0] * pipe.config.vae.scale_factor
    assert_same(long[clips.shown(1).index(0)].latents, expected)
