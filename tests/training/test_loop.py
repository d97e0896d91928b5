"""Fine-tuning: the objective, going on after a kill, and what comes out."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from audiolitefocus import AudioLDM2Pipeline
from audiolitefocus.audio.files import read_sound
from audiolitefocus.config import ScheduleConfig
from audiolitefocus.models.condition import Condition
from audiolitefocus.training.encoded import Encoded
from audiolitefocus.training.loop import check_folder
from audiolitefocus.training.memory import training_memory
from audiolitefocus.training.objective import Batch, NoiseLoss, draw_batch
from audiolitefocus.training.settings import Finetuning
from tests.support.compare import seeded

pytest.importorskip("peft")
pytest.importorskip("accelerate")

ROOT = Path(__file__).resolve().parents[2]
BFLOAT16 = 0.02  # of a loss: its numbers have 8 bits

SETTINGS = {"steps": 4, "batch_size": 2, "rank": 2, "seconds": (0.32, 0.64), "save_every": 2}
SETTINGS |= {"learning_rate": 1e-3, "warmup": 0, "attention": "litefocus:0.2:weight=1"}


class Silent(torch.nn.Module):
    """Predicts no noise."""

    def forward(self, latents, steps, condition, *, attention, generator):
        return torch.zeros_like(latents)


def test_the_weight_of_an_error_is_that_of_min_snr():
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDPMScheduler(
        beta_start=0.0015, beta_end=0.0195, beta_schedule="scaled_linear"
    )
    steps = torch.tensor([0, 10, 300, 999])
    snr = diffusers.training_utils.compute_snr(scheduler, steps)
    expected = snr.clamp(max=5) / snr
    noise = torch.randn(4, 8, 8, 16, generator=seeded())
    batch = Batch(torch.zeros_like(noise), noise, Condition(torch.zeros(4, 8, 4)), steps, 0)
    found = NoiseLoss(Silent(), ScheduleConfig(), "dense", 5.0)(batch)
    torch.testing.assert_close(found, expected * noise.square().mean((1, 2, 3)), rtol=1e-4, atol=0)


def test_a_batch_is_cut_from_its_examples_and_depends_on_the_generator_alone():
    latents = [torch.arange(40.0).repeat(8, 16, 1).transpose(1, 2) + 100 * i for i in range(3)]
    examples = [
        Encoded(x, Condition(torch.full((1, 8, 4), float(i)))) for i, x in enumerate(latents)
    ]
    nothing = Condition(torch.full((1, 8, 4), -1.0))

    def draw(dropped: float) -> Batch:
        return draw_batch(
            examples, nothing, (8, 16), 50, seeded(), dropped=dropped, train_steps=1000
        )

    batch = draw(0.5)
    assert batch.latents.shape[2] in (8, 16) and batch.latents.shape[0] == 50
    first = batch.latents[:, 0, 0, 0]
    steps = torch.arange(float(batch.latents.shape[2]))[:, None]
    assert torch.equal(batch.latents, (first[:, None, None, None] + steps).expand_as(batch.latents))
    shown = batch.condition.loa[:, 0, 0]
    assert 10 < (shown == -1).sum() < 40
    assert torch.equal(shown[shown >= 0], (first // 100)[shown >= 0])
    assert torch.equal(draw(0.5).noise, batch.noise) and (draw(0.0).condition.loa >= 0).all()


def train(bundle, sounds, folder, mixed_precision="no", prompts=(), **changes):
    from audiolitefocus.training.finetune import finetune

    return finetune(
        sounds,
        str(bundle),
        folder,
        Finetuning(**{**SETTINGS, **changes}),
        device="cpu",
        mixed_precision=mixed_precision,
        prompts=prompts,
        say=lambda line: None,
    )


def state(folder) -> dict:
    return torch.load(folder / "state.pt", weights_only=True)


@pytest.fixture(scope="module")
def whole(tiny_bundle, sounds, tmp_path_factory):
    """A folder in which a training has ended. Read only."""
    return train(tiny_bundle, sounds, tmp_path_factory.mktemp("training") / "whole")


@pytest.fixture(autouse=True)
def uncounted(request, monkeypatch):
    """Without the count of memory before, but where it is looked at."""
    if "memory" not in request.node.name:
        from audiolitefocus.training import finetune

        monkeypatch.setattr(finetune, "training_memory", lambda *_, **__: "")


def test_a_run_that_was_cut_off_ends_as_one_that_was_not(tiny_bundle, sounds, tmp_path, whole):
    train(tiny_bundle, sounds, tmp_path, steps=2)
    train(tiny_bundle, sounds, tmp_path)
    expected, parts = state(whole), state(tmp_path)
    assert expected["losses"] == parts["losses"] and expected["done"] == 4
    for name, tensor in expected["trained"].items():
        assert torch.equal(tensor, parts["trained"][name])
        assert torch.equal(expected["average"][name], parts["average"][name])
    rows = list(csv.reader(open(tmp_path / "loss.csv")))
    assert rows[0] == ["step", "loss"] and [row[0] for row in rows[1:]] == ["1", "2", "3", "4"]
    assert (tmp_path / "loss.png").stat().st_size > 1000


def test_what_is_trained_is_an_adapter_that_the_model_takes(tiny_bundle, whole):
    pipe = AudioLDM2Pipeline.from_pretrained(tiny_bundle, device="cpu")
    before = pipe.unet.state_dict()["middle.stage.transformers.0.proj_in.weight"].clone()
    pipe.load_lora(whole)
    after = pipe.unet.state_dict()["middle.stage.transformers.0.proj_in.weight"]
    assert not torch.equal(before, after)
    assert json.loads((whole / "training.json").read_text())["rank"] == 2


def test_a_whole_unet_becomes_a_bundle(tiny_bundle, sounds, tmp_path):
    place = train(tiny_bundle, sounds, tmp_path / "out", prompts=["a bell"], full=True, steps=2)
    pipe = AudioLDM2Pipeline.from_pretrained(place, device="cpu")
    assert pipe.config.name.endswith("-finetuned")
    average = state(tmp_path / "out")["average"]
    for name, weight in pipe.unet.state_dict().items():
        assert torch.equal(weight, average[name])
    sample, picture = (tmp_path / "out/samples" / f"000002.{end}" for end in ("wav", "png"))
    assert len(read_sound(sample, pipe.sampling_rate)) == 5120  # 0.32 s
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow  # another training
def test_activations_computed_again_give_the_same_gradients(tiny_bundle, sounds, tmp_path, whole):
    again = state(train(tiny_bundle, sounds, tmp_path, checkpointing=True))
    for name, tensor in state(whole)["trained"].items():
        assert torch.equal(tensor, again["trained"][name])


@pytest.fixture
def no_state():
    """Without accelerate's memory of this process's precision, which cannot change."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state()
    yield
    AcceleratorState._reset_state()


@pytest.mark.slow  # another training
def test_bfloat16_loses_little(tiny_bundle, sounds, tmp_path, whole, no_state):
    """Activations alone are rounded: weights, their average and the adapter stay float32."""
    half = train(tiny_bundle, sounds, tmp_path / "half", mixed_precision="bf16")
    losses, expected = (torch.tensor(state(folder)["losses"]) for folder in (half, whole))
    assert not torch.equal(losses, expected)
    torch.testing.assert_close(losses, expected, rtol=BFLOAT16, atol=0)
    assert {tensor.dtype for tensor in state(half)["trained"].values()} == {torch.float32}
    AudioLDM2Pipeline.from_pretrained(tiny_bundle, device="cpu").load_lora(half)
    settings = json.loads((half / "training.json").read_text())
    with pytest.raises(ValueError, match="holds a training with mixed_precision bf16, not no"):
        check_folder(half, {**settings, "mixed_precision": "no"})


@pytest.mark.slow  # three processes load PyTorch
def test_two_processes_train_as_one_that_accumulates(tiny_bundle, sounds, tmp_path):
    changes = {"steps": 3, "batch_size": 2, "rank": 2, "learning_rate": 1e-3, "save_every": 2}
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in changes.items()]
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["-m", "audiolitefocus", "finetune", sounds, "--model", tiny_bundle, *flags]
    command += ["--device=cpu", "--duration=0.32", "--attention=dense", "--out", tmp_path / "two"]
    subprocess.run([sys.executable, *map(str, command)], check=True, cwd=ROOT)
    settings = {**changes, "seconds": (0.32,), "attention": "dense", "warmup": 50}
    one = state(train(tiny_bundle, sounds, tmp_path / "one", accumulate=2, **settings))
    two = state(tmp_path / "two")
    torch.testing.assert_close(torch.tensor(two["losses"]), torch.tensor(one["losses"]))
    for kind in ("trained", "average"):
        for name, tensor in one[kind].items():
            torch.testing.assert_close(two[kind][name], tensor)
    with pytest.raises(ValueError, match="holds a training with processes 2, not 1: name another"):
        train(tiny_bundle, sounds, tmp_path / "two", **settings)


def test_a_folder_of_another_training_is_refused(tiny_bundle, sounds, tmp_path, whole):
    with pytest.raises(ValueError, match="holds a training with rank 2, not 3: name another"):
        train(tiny_bundle, sounds, whole, rank=3)
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    (tmp_path / "state.pt").write_bytes(b"no state")
    with pytest.raises(ValueError, match="state.pt is damaged or of another training"):
        train(tiny_bundle, sounds, tmp_path)


def test_memory_is_counted_before(pipe):
    few = Finetuning(**SETTINGS)
    memory = training_memory(pipe.config, few, "dense", 16)
    unet = sum(p.numel() for p in pipe.unet.parameters())
    assert memory.weights == 4 * unet and memory.states == 16 * memory.parameters
    full = training_memory(pipe.config, Finetuning(**SETTINGS, full=True), "dense", 16)
    assert full.parameters == unet
    again = training_memory(pipe.config, Finetuning(**SETTINGS, checkpointing=True), "dense", 16)
    assert again.activations < memory.activations / 2
    twice = training_memory(pipe.config, few, "dense", 32)
    assert 1.8 < twice.activations / memory.activations < 2.2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps 0: must be a whole number from 1"),
        ({"rank": 0.5}, "rank 0.5: must be a whole number"),
        ({"dropped": 2}, "dropped 2: must be a number from 0 to 1"),
        ({"seconds": (0.0,)}, "seconds 0.0: must be a number from 0.04"),
        ({"attention": "sparse"}, "attention 'sparse': must be"),
    ],
)
def test_settings_out_of_bounds_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Finetuning(**changes)
