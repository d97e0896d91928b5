"""Compiled pipelines: any sequence of calls gives sound, whatever can be compiled of it."""

import warnings

import pytest
import torch

from audiolitefocus import AudioLDM2Pipeline
from audiolitefocus.runtime import GRAPHS, compiled_or_eager

COMPILED = 1e-4  # the same sums over more keys, of which those that are masked add nothing


class FirstGraphs:
    """A stand-in for torch.compile's backend that refuses to go on after some graphs."""

    def __init__(self, limit: int):
        self.limit, self.graphs = limit, 0

    def __call__(self, graph, inputs):
        self.graphs += 1
        if self.graphs > self.limit:
            raise RuntimeError("no compiler here")
        return graph.forward


def test_nine_prompts_share_two_graphs_and_what_cannot_be_compiled_runs_as_it_is(tiny_bundle, pipe):
    """T5's tokens are padded, under the mask, to 16 and to 32; the third graph is refused."""
    torch._dynamo.reset()
    backend = FirstGraphs(limit=2)
    compiled = AudioLDM2Pipeline.from_pretrained(tiny_bundle, device="cpu").compile(backend=backend)
    calls = [("rain" + " on" * words, 0.64) for words in range(9)]
    calls += [("rain", 0.96), ("wind", 0.96), ("rain", 0.64)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for prompt, seconds in calls:
            options = {"audio_length_in_s": seconds, "num_inference_steps": 1, "seed": 0}
            made = compiled(prompt, output_type="latent", **options).audios
            expected = pipe(prompt, output_type="latent", **options).audios
            torch.testing.assert_close(made, expected, rtol=0, atol=COMPILED)
    assert backend.graphs >= 3  # two that are used, and the one that is refused
    messages = [str(w.message) for w in caught if "without being compiled" in str(w.message)]
    assert len(messages) == 1 and "no compiler here" in messages[0]


@pytest.mark.slow
def test_steps_that_reuse_have_one_graph_and_full_ones_another(tiny_bundle, pipe):
    torch._dynamo.reset()
    backend = FirstGraphs(limit=100)
    compiled = AudioLDM2Pipeline.from_pretrained(tiny_bundle, device="cpu").compile(backend=backend)
    options = {"audio_length_in_s": 0.64, "num_inference_steps": 7, "seed": 0}
    options |= {"reuse": "deepcache:3:start=0", "sampler": "dpm++", "output_type": "latent"}
    made, expected = (p("rain", **options).audios for p in (compiled, pipe))
    # random networks amplify rounding from step to step
    difference = (made - expected).norm() / expected.norm()
    assert difference < COMPILED, difference
    graphs = backend.graphs
    assert graphs <= 4  # the last step has nothing to record
    assert torch.equal(compiled("rain", **options).audios, made) and backend.graphs == graphs


@pytest.mark.slow
def test_steps_of_a_stretch_have_one_graph_and_full_ones_others(tiny_bundle, pipe):
    torch._dynamo.reset()
    backend = FirstGraphs(limit=100)
    compiled = AudioLDM2Pipeline.from_pretrained(tiny_bundle, device="cpu").compile(backend=backend)
    noise = torch.rand(16000, generator=torch.Generator().manual_seed(0)) - 0.5
    options = {"continue_audio": noise, "audio_length_in_s": 1.6, "num_inference_steps": 7}
    options |= {"refresh": 2, "seed": 0, "sampler": "dpm++", "output_type": "latent"}
    made, expected = (p("rain", **options).audios for p in (compiled, pipe))
    difference = (made - expected).norm() / expected.norm()
    assert difference < COMPILED, difference
    graphs = backend.graphs
    assert graphs <= 3  # full, full and keeping, of the stretch
    assert torch.equal(compiled("rain", **options).audios, made) and backend.graphs == graphs


def test_every_new_shape_is_compiled_once_and_none_is_refused():
    """PyTorch's own limit is eight; beyond GRAPHS, what is new runs as it is."""
    torch._dynamo.reset()
    backend = FirstGraphs(limit=10**6)
    double = compiled_or_eager(lambda x: 2 * x, mode=None, backend=backend)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            for size in range(2, GRAPHS + 12):
                assert torch.equal(double(torch.ones(size)), 2 * torch.ones(size))
    assert backend.graphs == GRAPHS
    assert len([w for w in caught if "without being compiled" in str(w.message)]) == 1
