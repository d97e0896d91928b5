"""What a model must not forget: clips of its own in every batch, and its own noise for them."""

from dataclasses import replace

import pytest
import torch

from audiolitefocus import AudioLDM2Pipeline
from audiolitefocus.models.condition import Condition
from audiolitefocus.training.adapters import add_adapters, frozen_teacher
from audiolitefocus.training.encoded import Encoded, read_encoded
from audiolitefocus.training.finetune import finetune
from audiolitefocus.training.objective import Batch, NoiseLoss, draw_batch
from audiolitefocus.training.settings import Finetuning
from tests.support.compare import assert_same, seeded

pytest.importorskip("peft")
pytest.importorskip("accelerate")

PROMPTS = ["rain", "a bell"]
SETTINGS = Finetuning(
    steps=4, batch_size=4, rank=2, seconds=(0.32,), save_every=2, learning_rate=1e-2, warmup=0
)


def examples(count: int, value: float) -> list[Encoded]:
    """Whose latents and conditions all have that value."""
    condition = Condition(torch.full((1, 8, 4), value))
    return [Encoded(torch.full((8, 16, 16), value), condition)] * count


def test_half_of_a_batch_is_kept_and_only_that_is_shown_without_its_text():
    unconditional = Condition(torch.full((1, 8, 4), -1.0))
    inputs = examples(3, 1.0), unconditional, [8], 5

    def draw(**others):
        return draw_batch(*inputs, seeded(0), train_steps=1000, **others)

    batch = draw(dropped=1.0, kept=examples(2, 2.0))
    assert batch.kept == 2
    assert batch.latents[:, 0, 0, 0].tolist() == [1, 1, 1, 2, 2]
    assert batch.condition.loa[:, 0, 0].tolist() == [1, 1, 1, -1, -1]
    plain = draw(dropped=1.0)
    assert plain.kept == 0 and (plain.condition.loa == -1).all()


def test_the_noise_of_kept_clips_is_that_of_the_model_as_it_was(pipe):
    unet = pipe.unet
    config, generator = unet.config, seeded(1)
    shape = 3, config.in_channels, 8, 16
    condition = Condition(torch.randn(3, 8, config.loa_dim, generator=generator))
    if "t5" in config.contexts:
        condition = replace(condition, t5=torch.randn(3, 4, config.t5_dim, generator=generator))
    latents, noise = (torch.randn(shape, generator=generator) for _ in range(2))
    batch = Batch(latents, noise, condition, torch.tensor([10, 400, 700]), 0, kept=2)
    add_adapters(unet, 2, 0)
    teacher = frozen_teacher(unet, full=False)
    loss = NoiseLoss(unet, pipe.config.schedule, "dense", 5.0, teacher)
    plain = NoiseLoss(unet, pipe.config.schedule, "dense", 5.0)
    with torch.no_grad():
        assert_same(loss(batch)[:1], plain(batch)[:1])
        # nothing has been trained: another batch adds in another order, and that is all
        assert loss(batch)[1:].max() < 1e-9 < 0.01 < plain(batch)[1:].min()
        for name, parameter in unet.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.1)
        alpha = loss.alphas[batch.steps][1:, None, None, None]
        noisy = alpha.sqrt() * latents[1:] + (1 - alpha).sqrt() * noise[1:]
        kept = noisy, batch.steps[1:], condition[slice(1, None)]
        error = (unet(*kept, attention="dense") - teacher(*kept, attention="dense")).square()
        expected = loss.weights[batch.steps][1:] * error.mean((1, 2, 3))
        assert_same(loss(batch)[1:], expected)


def train(bundle, sounds, folder, keep=PROMPTS, **changes):
    return finetune(
        sounds,
        str(bundle),
        folder,
        replace(SETTINGS, **changes),
        device="cpu",
        keep=keep,
        say=lambda line: None,
    )


@pytest.fixture(autouse=True)
def uncounted(monkeypatch):
    from audiolitefocus.training import finetune

    monkeypatch.setattr(finetune, "training_memory", lambda *_, **__: "")


def test_what_is_kept_is_made_once_and_a_run_goes_on(tiny_bundle, sounds, tmp_path):
    whole, part = tmp_path / "whole", tmp_path / "part"
    train(tiny_bundle, sounds, whole)
    pipe = AudioLDM2Pipeline.from_pretrained(tiny_bundle, device="cpu")
    made = sorted((whole / "encoded").glob("kept-*"))
    assert len(made) == len(PROMPTS)
    expected = pipe(
        PROMPTS[1],
        audio_length_in_s=0.32,
        sampler="dpm++",
        num_inference_steps=25,
        seed=1,
        output_type="latent",
    )
    found = [read_encoded(path).latents for path in made]
    assert any(torch.equal(x, torch.as_tensor(expected.audios[0])) for x in found)

    train(tiny_bundle, sounds, part, steps=2)
    times = [path.stat().st_mtime_ns for path in sorted((part / "encoded").iterdir())]
    train(tiny_bundle, sounds, part)
    assert times == [path.stat().st_mtime_ns for path in sorted((part / "encoded").iterdir())]
    states = [torch.load(folder / "state.pt", weights_only=True) for folder in (whole, part)]
    for name, tensor in states[0]["average"].items():
        assert torch.equal(tensor, states[1]["average"][name])
    with pytest.raises(ValueError, match="holds a training with keep"):
        train(tiny_bundle, sounds, part, keep=PROMPTS[:1])


def test_nothing_to_keep_is_refused_at_once(tiny_bundle, tmp_path):
    nowhere = tmp_path / "sounds"
    with pytest.raises(ValueError, match="batch_size 1: half of a batch is what is kept"):
        train(tiny_bundle, nowhere, tmp_path, batch_size=1)
    with pytest.raises(ValueError, match="keep: distillation teaches no sounds"):
        train(tiny_bundle, nowhere, tmp_path, distill="lcm", dropped=None)
