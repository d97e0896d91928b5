"""The worker: batches, its bounded queue, and what nobody waits for any more."""

import threading

import numpy as np
import pytest
import torch

pytest.importorskip("fastapi", reason="needs the extra web")

from audiolitefocus.options import GenerationOptions  # noqa: E402
from audiolitefocus.web import worker as module  # noqa: E402
from audiolitefocus.web.worker import Cancelled, Closed, Full, Job, Worker  # noqa: E402
from tests.support.serving import wait_for  # noqa: E402

PATIENCE = 30.0  # seconds
BATCH_TOLERANCE = 1e-4  # rounding of batched products; 8.3e-5 was seen in 32 clips of 0.64 s


class Recorded(Job):
    """A job that keeps what it is told; `gate` holds the worker at the job's first step."""

    def __init__(self, prompt="rain", gate: threading.Event | None = None, **options):
        options = {"seed": 1, "num_inference_steps": 2, "audio_length_in_s": 0.64, **options}
        made = GenerationOptions(**options)
        super().__init__(prompt, made, made.audio_length_in_s or 1.0)
        self.gate, self.steps, self.together = gate, [], 0
        self.sound, self.error, self.done = None, None, threading.Event()

    def on_step(self, done, total, latents):
        self.steps.append((done, total))
        self.together = len(latents)
        if self.gate:
            assert self.gate.wait(PATIENCE)

    def on_made(self, output):
        best = output.audios[0]
        self.sound = best if output.scores is not None else torch.cat(list(best)).numpy()
        self.done.set()

    def on_error(self, error):
        self.error = error
        self.done.set()

    def wait(self) -> "Recorded":
        assert self.done.wait(PATIENCE)
        return self


@pytest.fixture
def gate():
    """Holds the worker until it is set; set at the end in any case."""
    gate = threading.Event()
    yield gate
    gate.set()


@pytest.fixture
def worker(demo):
    worker = Worker(demo, waiting=4, batch=3, seconds=2.0)
    worker.start()
    yield worker
    worker.close()


def hold(worker: Worker, gate: threading.Event) -> Recorded:
    """A job that the worker is busy with until the gate opens."""
    job = Recorded("wind", gate=gate, num_inference_steps=3)
    worker.submit(job)
    wait_for(lambda: job.steps)
    return job


def test_a_clip_is_the_one_that_the_pipeline_makes(worker, demo):
    job = Recorded(seed=7)
    worker.submit(job)
    expected = demo("rain", options=job.options).audios[0]
    np.testing.assert_array_equal(job.wait().sound, expected)
    assert job.steps == [(1, 2), (2, 2)]


def test_requests_that_differ_in_prompt_and_seed_are_made_together(worker, gate, demo):
    hold(worker, gate)
    jobs = [Recorded(text, seed=seed) for seed, text in enumerate(("rain", "a bell", "wind"))]
    for job in jobs:
        worker.submit(job)
    gate.set()
    for job in jobs:
        assert job.wait().together == 3
        expected = demo(job.prompt, options=job.options).audios[0]
        np.testing.assert_allclose(job.sound, expected, atol=BATCH_TOLERANCE)


@pytest.mark.parametrize(
    ("options", "together"),
    [
        ({"num_inference_steps": 1}, 1),
        ({"guidance_scale": 1.0}, 1),
        ({"audio_length_in_s": 0.32}, 1),
        ({"seed": 99}, 2),
    ],
)
def test_other_options_make_another_batch(worker, gate, options, together):
    hold(worker, gate)
    first, second = Recorded(), Recorded(**options)
    worker.submit(first)
    worker.submit(second)
    gate.set()
    assert first.wait().together == second.wait().together == together


def test_clips_that_depend_on_their_batch_are_made_alone(worker, gate):
    hold(worker, gate)
    recording = torch.zeros(16000)
    jobs = [Recorded(unconditional="empty_prompt") for _ in range(2)]
    jobs += [Recorded(init_audio=recording, audio_length_in_s=None) for _ in range(2)]
    for job in jobs:
        worker.submit(job)
    gate.set()
    assert [job.wait().together for job in jobs] == [1, 1, 1, 1]


def test_a_batch_has_as_much_sound_as_one_request_may_ask_for(worker, gate):
    hold(worker, gate)
    jobs = [Recorded(audio_length_in_s=0.96, seed=seed) for seed in range(3)]  # of 2 s
    for job in jobs:
        worker.submit(job)
    gate.set()
    assert [job.wait().together for job in jobs] == [2, 2, 1]


def test_a_full_queue_says_when_to_come_again(worker, gate):
    hold(worker, gate)
    jobs = [Recorded() for _ in range(4)]
    for job in jobs:
        worker.submit(job)
    with pytest.raises(Full) as caught:
        worker.submit(Recorded())
    assert caught.value.seconds >= 1 and worker.waiting == 4
    gate.set()
    assert all(job.wait().sound is not None for job in jobs)


def test_what_waits_is_forgotten_at_once_when_it_is_cancelled(worker, gate):
    hold(worker, gate)
    job = Recorded()
    worker.submit(job)
    worker.cancel(job)
    assert worker.waiting == 0
    gate.set()
    other = Recorded()
    worker.submit(other)
    assert other.wait().sound is not None and not job.steps


def test_what_runs_stops_at_its_next_step_when_it_is_cancelled(worker, gate):
    job = hold(worker, gate)
    worker.cancel(job)
    gate.set()
    assert isinstance(job.wait().error, Cancelled) and job.steps == [(1, 3)]


def test_others_of_a_batch_are_made_though_one_is_cancelled(worker, gate):
    hold(worker, gate)
    leaves, stays = Recorded(), Recorded(seed=2)
    leaves.on_step = lambda *_: worker.cancel(leaves)
    worker.submit(leaves)
    worker.submit(stays)
    gate.set()
    assert stays.wait().sound is not None and stays.together == 2
    assert isinstance(leaves.wait().error, Cancelled)


def test_only_those_fail_that_must(worker, gate, monkeypatch):
    make = module.make_together

    def failing(pipe, prompts, *others):
        if "bad" in prompts:
            raise ValueError("bad prompt")
        return make(pipe, prompts, *others)

    monkeypatch.setattr(module, "make_together", failing)
    hold(worker, gate)
    good, bad = Recorded(), Recorded("bad")
    worker.submit(good)
    worker.submit(bad)
    gate.set()
    assert good.wait().sound is not None
    assert str(bad.wait().error) == "bad prompt"


def test_closing_fails_what_waits_and_stops_what_runs(demo, gate):
    worker = Worker(demo, waiting=4, batch=1, seconds=2.0)
    worker.start()
    runs, waits = hold(worker, gate), Recorded()
    worker.submit(waits)
    closing = threading.Thread(target=worker.close)
    closing.start()
    assert isinstance(waits.wait().error, Closed)
    gate.set()
    assert isinstance(runs.wait().error, Closed)
    closing.join(PATIENCE)
    assert not worker.alive
    with pytest.raises(Closed):
        worker.submit(Recorded())
