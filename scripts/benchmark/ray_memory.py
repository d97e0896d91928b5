"""Memory of the process that drives a Ray run, by the number of prompts.

    python -m scripts.benchmark.ray_memory --out scripts/results/ray-memory.json

Prompts are read, planned, given to two workers and their results written down as in any run; only
the workers' networks are left out, so that a hundred thousand clips take minutes. Each number is
measured in a process of its own. Linux only.
"""

import argparse
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

import ray

from audiolitefocus import GenerationOptions
from audiolitefocus.batch.ray import RayRun
from audiolitefocus.batch.workers import ClipWorker, Result
from scripts.benchmark.local_ray import start_ray
from scripts.benchmark.timing import cpu_name

QUICK = GenerationOptions(audio_length_in_s=2.56, sampler="dpm++", num_inference_steps=5)
MIB = 1 << 20


class Idle(ClipWorker):
    """A worker without a model, which says of every clip that it was made."""

    def load(self) -> None:
        pass

    def make(self, batch) -> list[Result]:
        return [Result(number, False, clip.path.name) for number, clip in batch]


class Watch(threading.Thread):
    """The most memory that this process held, by kind, in MiB: read ten times a second."""

    def __init__(self):
        super().__init__(daemon=True)
        self.peaks = {"VmRSS": 0.0, "RssAnon": 0.0, "RssFile": 0.0, "RssShmem": 0.0}

    def run(self) -> None:
        while True:
            for line in Path("/proc/self/status").read_text().splitlines():
                name, _, value = line.partition(":")
                if name in self.peaks:
                    mib = int(value.split()[0]) / 1024
                    self.peaks[name] = max(self.peaks[name], round(mib, 1))
            time.sleep(0.1)


def write_prompts(path: Path, count: int) -> None:
    with open(path, "w") as file:
        for number in range(count):
            file.write(f"the sound of thing number {number} in a large hall, recorded from afar\n")


def measure(count: int, temporary: str | None) -> dict:
    """What one run of `count` prompts takes, in this process."""
    watch = Watch()
    watch.start()
    with TemporaryDirectory() as folder:
        prompts = Path(folder) / "prompts.txt"
        write_prompts(prompts, count)
        began = time.monotonic()
        with RayRun(prompts, Path(folder) / "out", QUICK, model="demo") as run:
            planned, after_plan = time.monotonic(), dict(watch.peaks)
            disk = sum(path.stat().st_size for path in run.path.parent.iterdir())
            start_ray(temporary)
            totals = run.run(workers=2, worker=Idle)
        ended = time.monotonic()
    assert totals == (count, 0, 0), totals
    return {
        "prompts": count,
        "peak_mib": watch.peaks,
        "peak_mib_once_planned": after_plan,
        "plan_on_disk_mib": round(disk / MIB, 1),
        "seconds_to_plan": round(planned - began, 1),
        "seconds_to_make": round(ended - planned, 1),
    }


def in_processes(counts: Iterable[int], temporary: str | None) -> list[dict]:
    results = []
    for count in counts:
        command = [sys.executable, "-m", "scripts.benchmark.ray_memory", "--one", str(count)]
        command += ["--temporary", temporary] if temporary else []
        said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        results.append(json.loads(said.splitlines()[-1]))
        print(json.dumps(results[-1]), flush=True)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, nargs="+", default=[100, 100_000])
    parser.add_argument("--one", type=int, help="measure this number here, and print it")
    parser.add_argument("--temporary", help="folder for Ray's files")
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    if chosen.one:
        print(json.dumps(measure(chosen.one, chosen.temporary)))
        return
    report = {
        "processor": cpu_name(),
        "ray": ray.__version__,
        "runs": in_processes(chosen.prompts, chosen.temporary),
    }
    if chosen.out:
        chosen.out.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
