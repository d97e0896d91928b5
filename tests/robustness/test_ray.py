"""Runs on a Ray cluster of this machine: the files of a run without it, whatever dies."""

import json
import os
import shutil
import signal
import socket
import sys
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from audiolitefocus import AudioLDM2Pipeline, GenerationOptions
from audiolitefocus.batch.prompts import read_prompts
from audiolitefocus.batch.run import BatchRun, group
from tests.support.children import hidden, start
from tests.support.command import QUICK as COMMAND
from tests.support.command import assert_failed, run

ray = pytest.importorskip("ray", reason="the extra ray is not installed")
from audiolitefocus.batch import stores, units  # noqa: E402
from audiolitefocus.batch.ray import RayRun, Totals  # noqa: E402
from audiolitefocus.batch.workers import ClipWorker, Result  # noqa: E402
from scripts.benchmark.local_ray import start_ray  # noqa: E402

QUICK = GenerationOptions(audio_length_in_s=0.64, num_inference_steps=2)
psutil = pytest.importorskip("psutil")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Ray with two CPUs, for all tests of this file: it takes long to start."""
    before, place = dict(os.environ), Path("/tmp") / f"alf-{os.getpid()}"
    os.environ |= {"OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    start_ray(str(place))
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import tests
    yield
    ray.shutdown()
    shutil.rmtree(place, ignore_errors=True)
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="module")
def demo() -> AudioLDM2Pipeline:
    return AudioLDM2Pipeline.from_pretrained("demo", device="cpu")


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name[0] != "."}


def made_without_ray(pipe, prompts: Path, folder: Path, size: int = 1) -> dict[str, bytes]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    BatchRun(pipe, read_prompts(prompts, folder, QUICK), batch_size=size).run()
    torch.set_num_threads(before)
    return files(folder)


def test_batches_are_those_of_a_run_without_ray(tmp_path):
    lines = [
        {"prompt": str(n), "name": str(n), "steps": 1 + n % 3, "unconditional": kind}
        for n, kind in enumerate(["trained", "trained", "empty_prompt"] * 20)
    ]
    (tmp_path / "prompts").write_text("\n".join(map(json.dumps, lines)))
    clips = read_prompts(tmp_path / "prompts", tmp_path, QUICK)
    found = [[clip for _, clip in batch] for batch in units.batches(enumerate(clips), 4)]
    assert sorted(found, key=str) == sorted(group(clips, 4), key=str)


def test_batches_do_not_wait_for_clips_that_fit_without_end(monkeypatch, tmp_path):
    monkeypatch.setattr(units, "OPEN_BATCHES", 3)
    (tmp_path / "prompts").write_text("a|a")
    (clip,) = read_prompts(tmp_path / "prompts", tmp_path, QUICK)
    others = [
        (n, replace(clip, options=replace(clip.options, num_inference_steps=1 + n % 5)))
        for n in range(20)
    ]
    found = list(units.batches(iter(others), 2))
    assert sorted(number for batch in found for number, _ in batch) == list(range(20))
    assert found[0] == others[:1]


def test_a_run_on_ray_leaves_the_files_of_a_run_without(cluster, demo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # recordings count from here, on workers too
    noise = np.random.default_rng(0).uniform(-0.3, 0.3, 10240)
    soundfile.write("in.wav", noise, 16000)
    lines = [
        "a bell",
        "a bell",
        "rain|Rain.flac",
        json.dumps({"prompt": "wind", "steps": 3, "sampler": "dpm++", "candidates": 2}),
        json.dumps({"prompt": "sea", "init_audio": "in.wav", "duration": None}),
    ]
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(lines))
    expected = made_without_ray(demo, prompts, tmp_path / "alone", 2)
    seen: Counter[int] = Counter()
    with RayRun(prompts, "ray", QUICK, model="demo", device="cpu", batch_size=2) as first:
        totals = first.run(workers=2, on_clip=lambda result: seen.update([result.number]))
    assert totals == Totals(5, 0, 0) and seen == Counter(range(5))
    assert files(tmp_path / "ray") == expected and not hidden(tmp_path / "ray")
    # again, with one of them gone and one broken line
    (tmp_path / "ray" / "Rain.flac").unlink()
    prompts.write_text("\n".join([*lines, '{"prompt": "x", "name": "x.mp3", "steps": 950}']))
    with RayRun(prompts, "ray", QUICK, model="demo", device="cpu", batch_size=2) as second:
        assert second.run(workers=2) == Totals(1, 4, 1)  # two threads would round otherwise
        assert ["ray/x.mp3: num_inference_steps 950" in line for line in second.failures()] == [
            True
        ]
    assert files(tmp_path / "ray") == expected


class Slow(ClipWorker):
    """Shows its process, and takes a while, so that it can be killed in the middle."""

    def make(self, batch):
        (Path(self.job.folder) / f"{os.getpid()}.pid").touch()
        made = super().make(batch)
        time.sleep(0.3)
        return made


@pytest.mark.slow  # scripts.benchmark.ray_kills does it many times over
def test_a_worker_that_is_killed_costs_no_clip(cluster, demo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(f"a bell {n}|{n}" for n in range(12)))
    expected = made_without_ray(demo, prompts, tmp_path / "alone")
    seen: Counter[int] = Counter()
    killed: list[int] = []

    def on_clip(result) -> None:
        seen[result.number] += 1
        if len(seen) == 3 and not killed:
            killed.append(int(next(tmp_path.glob("*.pid")).stem))
            os.kill(killed[0], signal.SIGKILL)

    with RayRun(prompts, "ray", QUICK, model="demo", device="cpu") as planned:
        totals = planned.run(workers=2, worker=Slow, on_clip=on_clip)
    assert killed and totals == Totals(12, 0, 0) and seen == Counter(range(12))
    assert files(tmp_path / "ray") == expected


class Mortal(ClipWorker):
    """Dies of one prompt, and makes no sound of the others."""

    attempts = 2

    def load(self):
        pass

    def make(self, batch):
        if any(clip.prompt == "deadly" for _, clip in batch):
            os.kill(os.getpid(), signal.SIGKILL)
        return [Result(number, False, clip.path.name) for number, clip in batch]


@pytest.mark.slow
def test_a_clip_that_kills_its_workers_is_given_up_and_named(cluster, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(["a|a", "deadly|b", "c|c", "d|d"]))
    with RayRun(prompts, tmp_path / "out", QUICK, model="demo", batch_size=3) as planned:
        assert planned.run(workers=1, worker=Mortal) == Totals(3, 0, 1)
        assert list(planned.failures()) == [f"{tmp_path}/out/b.wav: 2 workers died at it"]


@pytest.mark.slow
def test_a_worker_that_does_not_see_the_folder_ends_the_run(cluster, tmp_path, monkeypatch):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a|a")
    monkeypatch.setattr(stores.Folder, "mark", lambda *_: None)  # as if it were another machine's
    with RayRun(prompts, tmp_path / "out", QUICK, model="demo") as planned:
        with pytest.raises(ValueError, match=f"on {socket.gethostname()}: .*/out is not the same"):
            planned.run(workers=1)
    assert not files(tmp_path / "out")


@pytest.mark.slow  # a Ray of its own, or a whole run
def test_the_command_says_what_it_does(cluster, tmp_path):
    (tmp_path / "prompts").write_text("a bell|a\nrain|b")
    command = ("generate", "--prompts", "prompts", "--out", "out", "--ray", "local", *COMMAND)
    result = run(*command, "--workers", "1", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "out/a.wav (seed 7)" in result.stdout and "2 made, 0 there already" in result.stdout
    assert "2/2" in result.stderr
    assert "0 made, 2 there already" in run(*command, cwd=tmp_path).stdout
    assert_failed(run(*command, "--steps", "3", cwd=tmp_path), "made with other settings: pass")
    assert_failed(run(*command, "--workers", "3", "--force", cwd=tmp_path), "has 2 CPUs")
    assert sorted(files(tmp_path / "out")) == ["a.json", "a.wav", "b.json", "b.wav"]


@pytest.mark.slow  # a Ray of its own, or a whole run
def test_ctrl_c_ends_a_run_and_keeps_what_is_finished(tmp_path):
    lines = [json.dumps({"prompt": p, "name": p, "steps": n}) for p, n in (("a", 2), ("b", 900))]
    (tmp_path / "prompts").write_text("\n".join(lines))
    command = ("generate", "--prompts", "prompts", "--out", "out", "--ray", "local", *COMMAND)
    process = start(*command, "--workers", "1", cwd=tmp_path)
    timer = threading.Timer(300, process.kill)
    timer.start()
    while "a.wav (seed" not in (tmp_path / "said").read_text() and process.poll() is None:
        time.sleep(0.1)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    process.wait(60)
    timer.cancel()
    said = (tmp_path / "said").read_text()
    assert process.returncode == 130 and "cancelled" in said and "Traceback" not in said, said
    assert sorted(files(tmp_path / "out")) == ["a.json", "a.wav"]
    assert not psutil.wait_procs(children, timeout=30)[1]
