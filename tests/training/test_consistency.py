"""Consistency distillation: its loss against the paper's equations, its teacher, and its runs."""

import copy
import json
import math
import shutil

import numpy as np
import pytest
import torch

from audiolitefocus.checkpoints.bundle import load_config
from audiolitefocus.config import Distilled, ScheduleConfig
from audiolitefocus.models.condition import Condition
from audiolitefocus.training import memory
from audiolitefocus.training.adapters import add_adapters, frozen_teacher, trained
from audiolitefocus.training.consistency import ConsistencyLoss
from audiolitefocus.training.objective import Batch
from audiolitefocus.training.settings import Finetuning
from tests.support.compare import seeded
from tests.support.denoising import tiny_condition, tiny_unet

pytest.importorskip("peft")
pytest.importorskip("accelerate")

FLOAT32 = 2e-5  # of a loss near 1, whose x0 is divided by as little as sqrt(alpha) = 0.07
SCALE = 3.0


class Toy(torch.nn.Module):
    """A stand-in for the UNet that depends on all that it is given."""

    def __init__(self, factor: float):
        super().__init__()
        self.factor = factor

    def noise(self, x, t, text):
        """Numbers of numpy or torch."""
        sine = torch.sin if isinstance(x, torch.Tensor) else np.sin
        return self.factor * sine(2 * x + t / 100) + 0.1 * x + text

    def forward(self, latents, steps, condition, *, attention, generator):
        assert attention == "dense" and generator.initial_seed() == 7
        text = condition.loa.mean((1, 2))[:, None, None, None]
        return self.noise(latents, steps[:, None, None, None], text)


def toy_batch(steps: list[int]) -> tuple[Batch, Condition]:
    """Clips at these steps, and what is unconditional."""
    shape = len(steps), 8, 4, 16
    latents, noise = (torch.randn(shape, generator=seeded(i)) for i in (1, 2))
    text = torch.randn(len(steps), 8, 4, generator=seeded(3))
    return Batch(latents, noise, Condition(text), torch.tensor(steps), 7), Condition(
        torch.full((1, 8, 4), 0.2)
    )


def by_the_paper(student, teacher, batch: Batch, unconditional: float, train_steps: int):
    """Algorithm 1 of Luo et al. 2023 in float64, clip by clip, with w + 1 = SCALE; weighted."""
    config = ScheduleConfig()
    betas = np.linspace(math.sqrt(config.beta_start), math.sqrt(config.beta_end), train_steps) ** 2
    alphas, k = np.cumprod(1 - betas), train_steps // 50

    def consistency(x, t, text):
        c_skip = 0.5**2 / ((10 * t) ** 2 + 0.5**2)
        c_out = 10 * t / math.sqrt((10 * t) ** 2 + 0.5**2)
        epsilon = student.noise(x, t, text)
        return c_skip * x + c_out * (x - math.sqrt(1 - alphas[t]) * epsilon) / math.sqrt(alphas[t])

    losses = []
    for z, noise, text, step in zip(
        batch.latents.double().numpy(),
        batch.noise.double().numpy(),
        batch.condition.loa.double().mean((1, 2)).tolist(),
        batch.steps.tolist(),
        strict=True,
    ):
        t = (step // k) * k + k - 1
        s = max(t - k, 0)
        x = math.sqrt(alphas[t]) * z + math.sqrt(1 - alphas[t]) * noise
        e_text, e_none = (teacher.noise(x, t, c) for c in (text, unconditional))
        epsilon = e_text + (SCALE - 1) * (e_text - e_none)
        x0 = (x - math.sqrt(1 - alphas[t]) * epsilon) / math.sqrt(alphas[t])
        x_s = math.sqrt(alphas[s]) * x0 + math.sqrt(1 - alphas[s]) * epsilon
        error = consistency(x, t, text) - consistency(x_s, s, text)
        c = 0.00054 * math.sqrt(error.size)  # Song and Dhariwal 2023, section 3.3
        distance = (math.sqrt(np.sum(error**2) + c**2) - c) / math.sqrt(error.size)
        losses.append(math.sqrt(alphas[t]) * distance)
    return torch.tensor(losses, dtype=torch.float32)


@pytest.mark.parametrize("train_steps", [1000, 900])
def test_the_loss_is_that_of_the_paper(train_steps):
    student, teacher = Toy(0.7), Toy(0.5)
    steps = [0, 19, 20, 500, train_steps - 1]  # the first and the last of the grid among them
    batch, nothing = toy_batch(steps)
    loss = ConsistencyLoss(
        student, teacher, ScheduleConfig(train_steps=train_steps), "dense", SCALE, nothing
    )
    expected = by_the_paper(student, teacher, batch, 0.2, train_steps)
    torch.testing.assert_close(loss(batch), expected, rtol=FLOAT32, atol=FLOAT32)


class Shrinking(torch.nn.Module):
    """Knows silence alone: its noise is x / sqrt(1 - alpha), and trajectories shrink."""

    def __init__(self, alphas):
        super().__init__()
        self.alphas = alphas

    def forward(self, latents, steps, condition, *, attention, generator):
        return latents / (1 - self.alphas[steps][:, None, None, None]).sqrt()


class Consistent(Shrinking):
    """Leads from every point of such a trajectory to where it ends, at step 0."""

    def forward(self, latents, steps, condition, *, attention, generator):
        alpha, t = (x[:, None, None, None] for x in (self.alphas[steps], steps.double()))
        skip, out = 0.25 / (100 * t**2 + 0.25), 10 * t / (100 * t**2 + 0.25).sqrt()
        end = latents * ((1 - self.alphas[0]) / (1 - alpha)).sqrt()
        clean = torch.where(t > 0, (end - skip * latents) / out.clamp(min=1e-9), 0)
        return (latents - alpha.sqrt() * clean) / (1 - alpha).sqrt()


def test_a_network_that_is_consistent_has_no_loss():
    from audiolitefocus.diffusion.schedule import alphas_cumprod

    alphas = torch.tensor(alphas_cumprod(ScheduleConfig()), dtype=torch.float64)
    batch, nothing = toy_batch(list(range(0, 1000, 37)))
    teacher = Shrinking(alphas)
    consistent = ConsistencyLoss(
        Consistent(alphas), teacher, ScheduleConfig(), "dense", SCALE, nothing
    )
    other = ConsistencyLoss(teacher, teacher, ScheduleConfig(), "dense", SCALE, nothing)
    assert consistent(batch).abs().max() < 1e-6 and other(batch).max() > 1e-3


@pytest.mark.parametrize("attention", ["dense", "litefocus:0.2:weight=1"])
def test_training_reduces_it(attention):
    unet = tiny_unet()
    teacher = frozen_teacher(unet, full=True)
    unet.requires_grad_(True)
    shape = 3, 8, 8, 16
    latents, noise = (torch.randn(shape, generator=seeded(i)) for i in (1, 2))
    batch = Batch(latents, noise, tiny_condition(3, 1), torch.tensor([50, 300, 950]), 0)
    loss = ConsistencyLoss(unet, teacher, ScheduleConfig(), attention, SCALE, tiny_condition(1, 2))
    optimizer = torch.optim.Adam(unet.parameters(), lr=3e-4)
    losses = []
    for _ in range(8):
        losses.append(loss(batch).mean())
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.7 * losses[0]
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_the_teacher_of_adapters_is_the_unet_without_them():
    unet = tiny_unet()
    original = copy.deepcopy(unet)
    add_adapters(unet, 2, 0, time=True)
    teacher = frozen_teacher(unet, full=False)
    names = list(trained(unet))
    with torch.no_grad():
        for parameter in trained(unet).values():
            parameter.copy_(torch.randn(parameter.shape, generator=seeded()))
        inputs = torch.randn(1, 8, 16, 16, generator=seeded(1)), torch.tensor(500)
        inputs = *inputs, tiny_condition(1, 1)
        assert torch.equal(teacher(*inputs), original(*inputs))
        assert not torch.equal(unet(*inputs), original(*inputs))
    assert list(trained(unet)) == names
    layers = {name.split(".lora_")[0] for name in names}
    assert {"time_embedding.linear_1", "time_embedding.linear_2"} < layers
    assert any(layer.endswith("time_emb_proj") for layer in layers)


# Runs

SETTINGS = {"steps": 2, "batch_size": 1, "rank": 2, "seconds": (0.32,), "save_every": 1}
SETTINGS |= {"learning_rate": 1e-3, "warmup": 0, "distill": "lcm", "guidance_scale": SCALE}


@pytest.fixture(autouse=True)
def uncounted(request, monkeypatch):
    """Without the count of memory before, but where it is looked at."""
    if "memory" not in request.node.name:
        from audiolitefocus.training import finetune

        monkeypatch.setattr(finetune, "training_memory", lambda *_, **__: "")


def train(bundle, sounds, folder, prompts=(), on_update=lambda update, loss: None, **changes):
    from audiolitefocus.training.finetune import finetune

    settings, quiet = Finetuning(**{**SETTINGS, **changes}), lambda line: None
    options = {"device": "cpu", "prompts": prompts, "say": quiet, "on_update": on_update}
    return finetune(sounds, str(bundle), folder, settings, **options)


@pytest.mark.slow  # another training; test_loop has the same without distillation
def test_a_run_that_was_cut_off_ends_as_one_that_was_not(tiny_bundle, sounds, tmp_path):
    whole, part = tmp_path / "whole", tmp_path / "part"
    part.mkdir()

    def after(update, loss):
        if update == 2:  # the state is that after the first one
            shutil.copy(whole / "state.pt", part)

    train(tiny_bundle, sounds, whole, on_update=after)
    assert state(part)["done"] == 1
    train(tiny_bundle, sounds, part)
    assert state(whole)["losses"] == state(part)["losses"]
    for name, tensor in state(whole)["average"].items():
        assert torch.equal(tensor, state(part)["average"][name])
    said = json.loads((whole / "distilled.json").read_text())
    assert said == {"sampler": "lcm", "guidance_scale": SCALE}


def state(folder) -> dict:
    return torch.load(folder / "state.pt", weights_only=True)


@pytest.mark.slow  # another training; test_loop has the same without distillation
def test_a_whole_unet_becomes_a_bundle_that_says_so(tiny_bundle, sounds, tmp_path):
    out = tmp_path / "out"
    bundle = train(tiny_bundle, sounds, out, ["a bell"], full=True, steps=1)
    assert (out / "samples/000001.wav").is_file()
    assert load_config(bundle).distilled == Distilled("lcm", SCALE)
    with pytest.raises(ValueError, match="has been distilled: train the model that it was made of"):
        train(bundle, sounds, tmp_path / "again")


def test_the_teachers_weights_are_counted_in_memory(pipe, monkeypatch):
    monkeypatch.setattr(memory, "_saved_bytes", lambda *_: 0)
    usual = {"distill": None, "guidance_scale": None}
    distilled, other = (
        memory.training_memory(pipe.config, Finetuning(**SETTINGS | changes), "dense", 16)
        for changes in ({"full": True}, {"full": True, **usual})
    )
    assert distilled.weights == 2 * other.weights and distilled.states == other.states


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"distill": "turbo"}, "distill 'turbo': must be one of lcm"),
        ({"distill": None}, "guidance_scale 3 is baked in by distill alone"),
        ({"guidance_scale": 0.5}, "guidance_scale 0.5: must be a number from 1"),
        ({"dropped": 0.1}, "dropped 0.1: distilled weights are never evaluated without a text"),
    ],
)
def test_settings_that_do_not_go_with_distillation_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Finetuning(**{**SETTINGS, **changes})


def test_defaults_of_distillation():
    assert Finetuning(distill="lcm").dropped == 0 and Finetuning().dropped == 0.1
    assert Finetuning(distill="lcm").distilled == Distilled("lcm", 3.5)
    assert Finetuning().distilled is None
