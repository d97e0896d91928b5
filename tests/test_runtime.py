"""Running out of memory, and networks that come and go."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from audiolitefocus import AudioLDM2Pipeline, LiteFocus, pipeline
from audiolitefocus.runtime import Offloader, halve_on_oom, is_out_of_memory, oom_as_memory_error
from tests.support.compare import seeded

QUICK = {"audio_length_in_s": 1.28, "num_inference_steps": 3, "output_type": "pt"}
BATCH_TOLERANCE = 1e-4  # rounding of batched matrix products, through three steps and the vocoder


@pytest.mark.parametrize("count", [1, 2, 7])
@pytest.mark.parametrize("fits", [1, 2, 3, 100])
def test_groups_halve_until_they_fit_and_cover_every_clip_once(count, fits):
    def work(group: slice) -> list[int]:
        clips = list(range(count))[group]
        if len(clips) > fits:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return clips

    assert sum(halve_on_oom(count, work), []) == list(range(count))


def test_what_does_not_fit_alone_is_a_memory_error_and_other_errors_pass():
    def no_memory(group: slice):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    with pytest.raises(MemoryError, match="^one line$"), oom_as_memory_error("one line"):
        halve_on_oom(2, no_memory)
    with pytest.raises(RuntimeError, match="shapes"), oom_as_memory_error("one line"):
        raise RuntimeError("shapes differ")
    assert not is_out_of_memory(ValueError("out of memory"))


def test_running_out_half_way_gives_the_same_clips_in_the_end(pipe, monkeypatch):
    call = {**QUICK, "num_waveforms_per_prompt": 3}
    expected = pipe("a bell", generator=seeded(), **call).audios
    evaluate, calls = pipe._evaluate, []

    def short_of_memory(latents, inputs):
        calls.append(len(latents))
        if len(latents) > 1 and len(calls) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return evaluate(latents, inputs)

    monkeypatch.setattr(pipe, "_evaluate", short_of_memory)
    found = pipe("a bell", generator=seeded(), **call).audios
    torch.testing.assert_close(found, expected, rtol=0, atol=BATCH_TOLERANCE)
    assert calls == [3, 3] + [1] * 9


def test_running_out_for_good_is_one_line_with_what_helps(pipe, monkeypatch):
    def no_memory(latents, inputs):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(pipe, "_evaluate", no_memory)
    with pytest.raises(
        MemoryError, match="on cpu making 2 clips of 1.28 s.*what helps: .*bfloat16"
    ):
        pipe(["a bell", "rain"], **QUICK)


def test_a_cpu_short_of_memory_is_warned_of_and_the_clip_is_made(pipe, monkeypatch):
    monkeypatch.setattr(pipeline, "available_memory", lambda: 1000.0)
    with pytest.warns(UserWarning, match="1 clip of 1.28 s need about 0.1 GB"):
        assert pipe("a bell", **QUICK).audios.shape == (1, 20480)


class Moves(nn.Module):
    """Remembers where it was moved to."""

    def __init__(self):
        super().__init__()
        self.places: list[str] = []

    def to(self, device):
        self.places.append(str(device))
        return self


def test_a_network_leaves_the_device_when_its_last_user_does():
    network, other = Moves(), Moves()
    on_device = Offloader("cuda", offload=True)
    with on_device(network):
        with on_device(network, other):
            assert network.places[-1] == other.places[-1] == "cuda"
        assert network.places[-1] == "cuda" and other.places[-1] == "cpu"
    assert network.places[-1] == "cpu"
    with pytest.raises(ValueError), on_device(network):
        raise ValueError
    assert network.places[-1] == "cpu"


def test_without_offload_nothing_is_moved():
    network = Moves()
    with Offloader("cuda")(network):
        assert network.places == []


def test_offload_changes_nothing_and_leaves_no_network_on_the_device(tiny_bundle, pipe):
    """On the CPU, where `to` is called all the same."""
    call = {**QUICK, "num_waveforms_per_prompt": 2}
    expected = pipe("a bell", generator=seeded(), **call)
    offloaded = AudioLDM2Pipeline.from_pretrained(tiny_bundle, device="cpu", offload=True)
    found = offloaded("a bell", generator=seeded(), **call)
    assert torch.equal(found.audios, expected.audios)
    assert torch.equal(found.scores, expected.scores)
    used = {type(network).__name__ for network in offloaded.on_device._users}
    assert used == {"TextEncoder", "UNet", "VAE", "HiFiGAN"}
    assert not any(offloaded.on_device._users.values())


class NoFloat64(TorchDispatchMode):
    """Refuses what MPS has not."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            assert not isinstance(tensor, torch.Tensor) or tensor.dtype != torch.float64, function
        return out


@pytest.mark.parametrize("attention", ["dense", "tome", LiteFocus(uniform=True), LiteFocus()])
def test_no_network_computes_in_float64(pipe, attention):
    """MPS has no float64; the noise schedule, on the CPU, is Python's numbers by then."""
    pipe.encode_prompt("the towers are loaded now")
    with NoFloat64(), torch.inference_mode():
        condition = pipe.encode_prompt("a bell")
        pipe.unet(torch.randn(1, 8, 32, 8), torch.tensor([7]), condition, attention=attention)
        pipe.decode(torch.randn(1, 8, 32, 8))
