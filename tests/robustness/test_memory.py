"""Estimates of memory, what is done when it is short, and networks that come and go."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from audiolitefocus import AudioLDM2Pipeline, LiteFocus, pipeline
from audiolitefocus import runtime as devices
from audiolitefocus.config import BundleConfig
from audiolitefocus.memory import TEXT_CODE, WORKSPACE, Demand, fit, shortage
from audiolitefocus.runtime import Workplace, available, explained, in_groups, ran_out

BATCH_TOLERANCE = 1e-4  # rounding of batched matrix products, through three steps and the vocoder
QUICK = {"audio_length_in_s": 1.28, "num_inference_steps": 3, "output_type": "pt"}
FULL = Demand(
    BundleConfig(),
    seconds=10.24,
    clips=1,
    guided=True,
    itemsize=4,
    dense=True,
    parameters={"text": 660_000_000, "denoiser": 346_943_496, "decoder": 110_000_000},
    device=torch.device("cuda"),
)


@pytest.fixture(scope="module")
def pipe(tiny_bundle):
    return AudioLDM2Pipeline.from_pretrained(tiny_bundle, device="cpu")


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def test_need_grows_with_everything_that_is_asked_for():
    more = [
        replace(FULL, seconds=81.92, clips=8),
        replace(FULL, clips=8),
        replace(FULL, parameters={**FULL.parameters, "text": 10**9}),
    ]
    less = [
        replace(FULL, itemsize=2),
        replace(FULL, offload=True),
        replace(FULL, guided=False, clips=8),
    ]
    assert all(demand.needed() > FULL.needed() for demand in more)
    assert less[0].needed() < FULL.needed() and less[1].needed() < FULL.needed()
    assert less[2].needed() < more[1].needed()


def test_memory_is_linear_in_the_length_except_where_scores_are_held():
    fixed = sum(FULL.weights().values()) + WORKSPACE
    short, long = (replace(FULL, seconds=s, clips=4).phases()["denoiser"] for s in (10.24, 81.92))
    assert (long - fixed) / (short - fixed) == pytest.approx(8)
    on_mps = replace(FULL, seconds=81.92, device=torch.device("mps"))
    assert on_mps.needed() > 1.5 * replace(on_mps, dense=False).needed()


def test_what_is_loaded_is_not_missing():
    weights = FULL.weights()
    loaded = replace(FULL, text_loaded=True)
    assert loaded.missing() == pytest.approx(FULL.needed() - sum(weights.values()))
    assert FULL.missing() - loaded.missing() == pytest.approx(weights["text"])
    cpu = torch.device("cpu")
    text = replace(FULL, device=cpu).missing() - replace(loaded, device=cpu).missing()
    assert text == pytest.approx(weights["text"] + TEXT_CODE)
    offloaded = replace(FULL, offload=True)
    assert offloaded.missing() == offloaded.needed()


def test_clips_are_split_until_they_fit():
    many = replace(FULL, clips=16, seconds=40.96)
    one = replace(many, clips=1).missing()
    assert fit(many, None) == fit(many, many.missing()) == 16
    assert 1 <= fit(many, (one + many.missing()) / 2) < 16
    with pytest.raises(MemoryError, match="1 clip of 40.96 s need about"):
        fit(many, 0.9 * one)


def test_a_shortage_names_what_would_be_enough_first():
    demand = replace(FULL, seconds=600.0, clips=4)
    message = shortage(demand, replace(demand, clips=1).missing())
    assert "\n" not in message and "4 clips of 600 s need about" in message
    helps = message.split("What would help: ")[1].split("; ")
    assert len(helps) == 3 and any(text.startswith("fewer clips at a time") for text in helps[:2])
    message = shortage(replace(FULL, seconds=3600.0, text_loaded=True), 5e9)
    assert "a shorter clip (--duration" in message and "half precision" in message
    on_mps = replace(FULL, seconds=600.0, device=torch.device("mps"))
    assert "LiteFocus" in shortage(on_mps, replace(on_mps, dense=False).missing())


ERRORS = {
    "CUDA": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
    "CPU": RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
    "MPS": RuntimeError("MPS backend out of memory (MPS allocated: 1 GB"),
    "Python": MemoryError(),
}


@pytest.mark.parametrize("kind", ERRORS)
def test_every_way_of_running_out_is_known(kind):
    assert ran_out(ERRORS[kind])
    with pytest.raises(MemoryError, match="^what helps$"), explained(lambda: "what helps"):
        raise ERRORS[kind]


def test_a_real_allocation_that_fails_and_other_errors():
    with pytest.raises(MemoryError, match="^what helps$"), explained(lambda: "what helps"):
        torch.empty(1 << 60)
    with pytest.raises(RuntimeError, match="shape"), explained(lambda: "what helps"):
        raise RuntimeError("a shape that does not fit")


def test_groups_halve_where_memory_runs_out():
    seen = []

    def work(group: slice) -> int:
        seen.append((group.start, group.stop))
        if group.stop - group.start > 2:
            raise MemoryError
        return group.stop - group.start

    assert in_groups(7, 5, work) == [2, 2, 2, 1]
    assert seen == [(0, 5), (0, 2), (2, 4), (4, 6), (6, 7)]
    with pytest.raises(RuntimeError, match="memory"):
        in_groups(2, 2, lambda group: torch.empty(1 << 60))


def test_memory_that_is_left_is_a_number_of_bytes():
    free = available(torch.device("cpu"))
    assert free is None or 1e6 < free < 1e15


@pytest.mark.parametrize("sampler", ["ddim", "dpm++"])
def test_candidates_one_after_another_are_those_made_together(pipe, monkeypatch, sampler):
    options = {**QUICK, "sampler": sampler, "attention": LiteFocus(sparse_ratio=0.2)}
    call = {"num_waveforms_per_prompt": 2, "negative_prompt": "noise", **options}
    together = pipe(["a bell", "rain"], generator=seeded(), **call)
    monkeypatch.setattr(pipeline, "fit", lambda demand, free: 1)
    seen = []
    options = {**call, "callback": lambda step, timestep, latents: seen.append(len(latents))}
    apart = pipe(["a bell", "rain"], generator=seeded(), **options)
    torch.testing.assert_close(apart.audios, together.audios, rtol=0, atol=BATCH_TOLERANCE)
    assert seen == [1] * 3 * 4


def test_running_out_half_way_gives_the_same_clips_in_the_end(pipe, monkeypatch):
    call = {**QUICK, "num_waveforms_per_prompt": 3}
    expected = pipe("a bell", generator=seeded(), **call).audios
    evaluate, calls = pipe._evaluate, []

    def short_of_memory(latents, signals):
        calls.append(len(latents))
        if len(latents) > 1 and len(calls) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return evaluate(latents, signals)

    monkeypatch.setattr(pipe, "_evaluate", short_of_memory)
    found = pipe("a bell", generator=seeded(), **call).audios
    torch.testing.assert_close(found, expected, rtol=0, atol=BATCH_TOLERANCE)
    assert calls == [3, 3] + [1] * 9


def test_running_out_for_good_is_one_line_with_what_helps(pipe, monkeypatch):
    def no_memory(latents, signals):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(pipe, "_evaluate", no_memory)
    with pytest.raises(MemoryError, match="out of memory on cpu: 2 clips of 1.28 s .*would help: "):
        pipe(["a bell", "rain"], **QUICK)


def test_what_cannot_fit_is_refused_before_the_work(pipe, monkeypatch):
    monkeypatch.setattr(pipeline, "available", lambda device: 1000.0)
    monkeypatch.setattr(pipe, "_text", None)
    with pytest.raises(MemoryError, match="1 clip of 1.28 s need about"):
        pipe("a bell", **QUICK)
    assert pipe._text is None


def test_a_network_is_at_work_once_however_often_it_is_asked(monkeypatch):
    moves = []
    monkeypatch.setattr(devices, "_move", lambda network, device: moves.append(str(device)))
    network, other = nn.Linear(1, 1), nn.Linear(1, 1)
    at_work = Workplace("cuda", offload=True)
    with at_work(network), at_work(network, other):
        assert moves == ["cuda", "cuda"]
    assert moves == ["cuda", "cuda", "cpu", "cpu"]
    with pytest.raises(ValueError), at_work(network):
        raise ValueError
    assert moves[-1] == "cpu"
    with Workplace("cuda")(network):
        assert len(moves) == 6


def test_offload_moves_every_network_in_and_out_and_changes_nothing(tiny_bundle, pipe, monkeypatch):
    """On the CPU, with a stand-in that tells what would be moved."""
    call = {**QUICK, "num_waveforms_per_prompt": 2}
    expected = pipe("a bell", generator=seeded(), **call)
    offloaded = AudioLDM2Pipeline.from_pretrained(tiny_bundle, device="cpu", offload=True)
    moves: list[tuple[str, str]] = []
    here: dict[int, str] = {}

    def move(network: nn.Module, device: torch.device) -> None:
        here[id(network)] = "out" if here.get(id(network)) == "in" else "in"
        moves.append((type(network).__name__, here[id(network)]))

    monkeypatch.setattr(devices, "_move", move)
    found = offloaded("a bell", generator=seeded(), **call)
    assert torch.equal(found.audios, expected.audios)
    names = [name for name, where in moves if where == "in"]
    towers = ["ClapModel", "T5EncoderModel", "Projection", "GPT2Model", "T5EncoderModel"]
    assert names == [*towers, "UNet", "VAE", "HiFiGAN", "ClapModel"]
    assert set(here.values()) == {"out"}
    alive = [sum(1 if where == "in" else -1 for _, where in moves[:n]) for n in range(len(moves))]
    assert max(alive) <= 2  # projection with GPT-2, decoder with vocoder


class NoFloat64(TorchDispatchMode):
    """Refuses what MPS has not."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            assert not (isinstance(tensor, torch.Tensor) and tensor.dtype == torch.float64), (
                function
            )
        return out


@pytest.mark.parametrize("attention", ["dense", "tome", LiteFocus(uniform=True), LiteFocus()])
def test_no_network_computes_in_float64(pipe, attention):
    """MPS has no float64; the noise schedule, on the CPU, is Python's numbers by then."""

    @torch.inference_mode()
    def run() -> None:
        condition = pipe.encode_prompt("a bell")
        pipe.unet.use_attention(attention)
        pipe.unet(torch.randn(1, 8, 32, 8), torch.tensor([7]), condition)
        pipe.decode(torch.randn(1, 8, 32, 8))

    pipe.encode_prompt("the towers are loaded now")
    with NoFloat64():
        run()
