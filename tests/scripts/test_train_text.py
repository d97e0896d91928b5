"""The stages "clap", "diffusion" and "bundle", tiny: they learn, go on where they were cut off, and
they write a bundle whose text conditioning is that of training.
"""

import dataclasses
import json

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from audiolitefocus import AudioLDM2Pipeline
from audiolitefocus.checkpoints.bundle import load_config
from audiolitefocus.config import ScheduleConfig, UNetConfig, VAEConfig
from audiolitefocus.diffusion.schedule import alphas_cumprod
from audiolitefocus.models.vae import VAE
from audiolitefocus.models.vocoder import HiFiGAN
from audiolitefocus.training.updates import Updates
from scripts.demo import loop as training
from scripts.demo.loop import Run
from scripts.demo.networks import last_checkpoint, save_vae
from scripts.demo.stages import clap as train_clap
from scripts.demo.stages import classifier as train_classifier
from scripts.demo.stages import diffusion as train_diffusion
from scripts.demo.stages import vocoder as train_vocoder
from scripts.demo.stages.bundle import make_bundle
from scripts.demo.stages.denoiser import LAST_STEP, SCHEDULE, Denoiser, build
from scripts.demo.stages.diffusion import Clips, diffusion_loss
from scripts.demo.world.sounds import draw, sound

WIDTH = train_clap.WIDTH
TINY = UNetConfig(
    channels=(32, 8, 8, 8),
    heads=(1, 1, 1, 1),
    resnets=1,
    norm_groups=8,
    loa_dim=WIDTH,
    t5_dim=WIDTH,
)
TINY_VOCODER = dataclasses.replace(train_vocoder.CONFIG, initial_channels=16)
COUNT = 60  # clips
FLOAT32 = 1e-4  # eight tokens, each made of those before it


class Inline:
    """An executor without threads."""

    map = staticmethod(map)


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setattr("scripts.demo.stages.denoiser.UNET", TINY)
    monkeypatch.setattr("scripts.demo.stages.bundle.UNET", TINY)
    monkeypatch.setattr(train_vocoder, "CONFIG", TINY_VOCODER)
    monkeypatch.setattr(train_diffusion, "GROUP", 2)
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(training, "CURVE_STEPS", 4)
    monkeypatch.setattr(training, "WARM_UP", 2)


@pytest.fixture(scope="module")
def clips() -> Clips:
    """Latents that say where a sound's family stands in the world, in 8 frames."""
    generator = torch.Generator().manual_seed(0)
    captions = [draw(seed).caption for seed in range(COUNT)]
    latents = torch.randn(COUNT, 8, 1, 16, generator=generator).repeat(1, 1, 8, 1).numpy()
    ids = train_diffusion.t5_tokenizer()(captions)["input_ids"]
    clap = torch.randn(COUNT, WIDTH, generator=generator)
    return Clips([latents.astype(np.float16)], clap, ids, list(range(COUNT)))


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Run:
    """A folder in which every stage has been, with tiny or random networks."""
    run = Run(out=tmp_path_factory.mktemp("train"), steps=4)
    torch.manual_seed(0)
    vae = VAE(VAEConfig(channels=(8, 8, 8), resnets=1, norm_groups=4, scale_factor=1.1))
    save_vae(run.folder("vae"), vae)
    tokenizer = train_clap.clap_tokenizer()
    tower = train_clap.clap_tower(len(tokenizer)).half().float()
    for part in (tower, tokenizer, train_clap.clap_extractor()):
        part.save_pretrained(run.folder("clap") / "tower")
    train_classifier.save(run.folder("classifier") / "model", train_classifier.build())
    updates = Updates(HiFiGAN(TINY_VOCODER), 0.0)  # those of the other stages are not loaded
    updates.done = 25
    for stage in ("vae", "vocoder", "clap", "classifier"):
        updates.save(run.folder(stage) / training.CHECKPOINT, seconds=90.0)
        curve = "step,seconds,rate,loss\n25,90.0,0.1,0.5\n50,99.9,0.1,0.3\n"  # 50 was lost
        (run.folder(stage) / "curve.csv").write_text(curve)
    (run.out / "clap" / "report.json").write_text('{"clips": 9, "of_20": 0.5, "family": 0.5}')
    (run.out / "classifier" / "accuracy.json").write_text('{"single": 1.0, "pair": 0.25}')
    errors = {name: 1.0 for name in ("mean_mel", "vae", "vocoder", "both")}
    (run.out / "round_trip.json").write_text(json.dumps({"clips": 9, "all": errors}))
    return run


def fit(run: Run, clips: Clips, *, cut_off_at: int | None = None) -> Denoiser:
    denoiser, calls = build(0), 0

    def loss():
        nonlocal calls
        calls += 1
        if calls == cut_off_at:
            raise KeyboardInterrupt
        return diffusion_loss(run, denoiser, clips.batch("cpu"), Inline)

    return training.train(run, "diffusion", denoiser, loss, steps=8, rate=5e-3)


def test_diffusion_goes_on_where_it_was_cut_off(clips, tmp_path):
    straight, cut = tmp_path / "straight", tmp_path / "cut"
    straight.mkdir(), cut.mkdir()
    expected = fit(Run(out=straight), clips)
    with pytest.raises(KeyboardInterrupt):
        fit(Run(out=cut), clips, cut_off_at=6)  # after the checkpoint of step 4
    found = fit(Run(out=cut), clips)
    for key, value in expected.state_dict().items():
        assert torch.equal(value, found.state_dict()[key]), key


@pytest.mark.slow  # a training
def test_diffusion_learns_a_batch(clips, tmp_path):
    run, denoiser, batch = Run(out=tmp_path), build(0), clips.batch("cpu")
    training.train(
        run,
        "diffusion",
        denoiser,
        lambda: diffusion_loss(run, denoiser, batch, Inline),
        steps=12,
        rate=3e-3,
    )
    curve = np.genfromtxt(tmp_path / "diffusion" / "curve.csv", delimiter=",", names=True)
    assert curve["loss"][-1] < 0.9 * curve["loss"][0]


def test_groups_in_threads_have_the_gradient_of_their_mean(clips, tmp_path):
    denoiser = build(0)
    for parameter in denoiser.parameters():  # those that begin with zeros would hide the others
        parameter.data += 0.02 * torch.randn(
            parameter.shape, generator=torch.Generator().manual_seed(0)
        )
    groups = clips.batch("cpu")
    mean = torch.stack([denoiser(group) for group in groups]).mean()
    mean.backward()
    expected = [p.grad.clone() for p in denoiser.parameters() if p.grad is not None]
    found_at = [p for p in denoiser.parameters() if p.grad is not None]
    denoiser.zero_grad()
    with train_diffusion.ThreadPoolExecutor(2) as pool:
        loss = diffusion_loss(Run(out=tmp_path), denoiser, groups, pool)["loss"]
    loss.backward()
    assert_close(loss.detach(), mean.detach())
    assert_close([p.grad for p in found_at], expected)


def test_a_new_denoiser_answers_with_its_input(clips):
    """Nearly, and as loud whatever the deviation of the noise, of which a norm would make 1."""
    batch = clips.batch("cpu")[0]
    noise = batch.noise / batch.noise.square().mean((2, 3), keepdim=True).sqrt()
    noise *= torch.linspace(0.9, 1.1, len(noise))[:, None, None, None]
    fresh = build(0)
    with torch.inference_mode():
        condition = fresh.condition(batch.clap, batch.ids, batch.dropped)
        answer = fresh.unet(noise, batch.steps, condition)
    gains = (answer * noise).sum((2, 3)) / noise.square().sum((2, 3))  # b c
    assert_close(answer, noise, rtol=0.1, atol=0.1)
    assert gains.std(0).max() < 0.03  # 0.14 if each were divided by its deviation


def test_steps_of_a_batch_are_spread(clips):
    """One in every part of the schedule."""
    torch.manual_seed(0)
    steps = torch.cat([group.steps for group in clips.batch("cpu")]).sort().values
    edges = torch.linspace(0, LAST_STEP, len(steps) + 1)
    assert (edges[:-1].floor() <= steps).all() and (steps <= edges[1:]).all()


def test_the_schedule_is_the_beginning_of_audioldm2s():
    whole = torch.tensor(alphas_cumprod(ScheduleConfig()))
    assert_close(torch.tensor(alphas_cumprod(SCHEDULE)), whole[:LAST_STEP], rtol=1e-12, atol=0)


def test_clips_of_a_group_have_captions_of_one_length(clips):
    torch.manual_seed(0)
    lengths = {clips.batch("cpu")[0].ids.shape[1] for _ in range(30)}
    assert len(lengths) > 3 and lengths <= {len(ids) for ids in clips.ids}


def test_the_bundle_loads_and_gives_the_conditioning_of_training(clips, whole):
    fit(whole, clips)
    make_bundle(whole)
    folder = whole.out / "bundle"
    card = (folder / "README.md").read_text()
    assert "| vocoder | 4,000 | 25 | 2 | 0.500 |" in card and "25% of pairs" in card
    assert "classifier/model.safetensors" in load_config(folder).files
    pipe = AudioLDM2Pipeline.from_pretrained(folder, device="cpu")
    made = pipe(
        "a high steady tone",
        num_inference_steps=2,
        sampler="dpm++",
        num_waveforms_per_prompt=2,
        generator=torch.Generator().manual_seed(0),
    )
    assert made.audios.shape == (2, 40960) and np.isfinite(made.audios).all()
    assert made.scores is not None and made.scores[0] >= made.scores[1]
    caption = "a rising chirp"
    denoiser, encoder = last_checkpoint(whole.out / "diffusion", build(0)), pipe.text
    denoiser.half().float()  # as the bundle keeps it
    clap = train_diffusion.clap_embeddings(whole.out / "clap" / "tower", [caption])
    ids = torch.tensor([train_diffusion.t5_tokenizer()(caption)["input_ids"]])
    with torch.inference_mode():
        both = denoiser.condition(clap.repeat(2, 1), ids.repeat(2, 1), torch.tensor([False, True]))
        condition, nothing = encoder.encode([caption]), encoder.unconditional(1)
    length = condition.t5.shape[1]
    assert_close(both.loa[:1], condition.loa, atol=FLOAT32, rtol=FLOAT32)
    assert_close(both.t5[:1], condition.t5, atol=FLOAT32, rtol=FLOAT32)
    assert_close(both.t5[1:, :1], nothing.t5, atol=FLOAT32, rtol=FLOAT32)
    assert torch.equal(both.loa[1:], nothing.loa) and not both.loa[1].any()
    assert both.t5_mask.tolist() == [[1] * length, [1] + [0] * (length - 1)]


def test_a_bundle_needs_every_stage(whole, tmp_path):
    with pytest.raises(ValueError, match="no trained vae: run the stage 'vae'"):
        make_bundle(Run(out=tmp_path))
    assert not (tmp_path / "bundle").exists()


def test_sounds_mean_the_same_where_their_words_do():
    fast, again, slow = (
        sound("metronome", seed=seed, speed=speed)
        for seed, speed in ((1, "fast"), (2, "fast"), (1, "slow"))
    )
    assert train_clap.meaning(fast) == train_clap.meaning(again) != train_clap.meaning(slow)
    meanings = [train_clap.meaning(s) for s in (fast, slow, again)]
    assert train_clap.numbered(meanings).tolist() == [0, 1, 0]


def test_contrastive_loss_in_closed_form():
    """With a scale of 1 and four orthogonal directions: -log(e / (e + 3)) for pairs of their own;
    where all mean the same, every sound is as good a target as the next.
    """
    clap = torch.nn.Module()
    clap.logit_scale_a = clap.logit_scale_t = torch.zeros(())
    unit = torch.eye(4)
    own = train_clap.contrastive(clap, unit, unit, torch.arange(4))
    one = torch.tensor(1.0)
    assert_close(own, (one.exp() + 3).log() - 1)
    assert_close(
        train_clap.contrastive(clap, unit, unit, torch.zeros(4)), (one.exp() + 3).log() - 0.25
    )


@pytest.mark.slow  # a training
def test_clap_learns(tmp_path, monkeypatch):
    """A handful of noises of different loudness and colour find their captions."""
    monkeypatch.setattr(train_clap, "BATCH", 8)
    generator = np.random.default_rng(0)
    sounds = [draw(seed) for seed in range(8)]
    waveforms = generator.standard_normal((8, 48000)).cumsum(1) * np.arange(8)[:, None] * 1e-3
    waveforms += generator.standard_normal((8, 48000)) * (2.0 ** -np.arange(8))[:, None]
    pairs = train_clap.Pairs(sounds, train_clap.features_of(waveforms))
    assert pairs.features.shape == (8, 1, 251, 64)
    torch.manual_seed(0)
    clap, run = train_clap.clap_tower(1024), Run(out=tmp_path)
    training.train(
        run, "clap", clap, lambda: train_clap.clap_loss(run, clap, pairs), steps=30, rate=2e-3
    )
    curve = np.genfromtxt(tmp_path / "clap" / "curve.csv", delimiter=",", names=True)
    assert curve["loss"][-1] < 0.7 * curve["loss"][0]
