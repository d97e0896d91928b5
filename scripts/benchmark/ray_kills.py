"""Workers of a Ray run killed again and again: are clips lost, doubled or different?

    python -m scripts.benchmark.ray_kills --kills 20 --out scripts/results/ray-kills-demo.json

Clips of the demo model are made by two workers, of which one is killed (SIGKILL) at some moment,
then again, until enough have been. Every run must report each clip once and leave the files that
one process makes without Ray. Linux only.
"""

import argparse
import json
import random
import threading
import time
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
import ray
import torch

from audiolitefocus import AudioLDM2Pipeline, GenerationOptions
from audiolitefocus.batch.prompts import read_prompts
from audiolitefocus.batch.ray import RayRun
from audiolitefocus.batch.run import BatchRun
from audiolitefocus.checkpoints.bundle import sha256
from scripts.benchmark.local_ray import start_ray
from scripts.benchmark.timing import cpu_name

QUICK = GenerationOptions(audio_length_in_s=2.56, sampler="dpm++", num_inference_steps=5)
WORKER = "ray::MapWorker"  # how Ray calls the process of an actor of a pool
AT_WORK = ".submit"  # what is added to that while it has a unit
SUMS = ("killed_at_work", "clips", "lost", "unreported", "doubled", "different")


class Killer(threading.Thread):
    """Kills workers of this process's Ray, most of them at work and the others at any moment.

    Attributes:
        killed: how many; `at_work` of them were making a clip, by what Ray calls their process.
    """

    def __init__(self, wait: tuple[float, float], most: int):
        super().__init__(daemon=True)
        self.wait, self.most = wait, most
        self.killed, self.at_work, self.done = 0, 0, threading.Event()

    def run(self) -> None:
        while self.killed < self.most and not self.done.is_set():
            state = random.choice((AT_WORK, AT_WORK, AT_WORK, ""))
            while not self.workers(state) and not self.done.wait(0.1):
                pass
            if not self.done.wait(random.uniform(*self.wait)) and (found := self.workers(state)):
                process, title = random.choice(found)
                process.kill()
                self.killed, self.at_work = self.killed + 1, self.at_work + (AT_WORK in title)

    @staticmethod
    def workers(state: str) -> list[tuple[psutil.Process, str]]:
        """Processes of workers in this state, and what Ray calls them."""
        found = []
        for process in psutil.Process().children(recursive=True):
            try:
                title = " ".join(process.cmdline())
            except psutil.NoSuchProcess:
                continue
            if title.startswith(WORKER) and state in title:
                found.append((process, title))
        return found


def digests(folder: Path) -> dict[str, str]:
    """Every file of a folder, hidden parts of killed processes aside, and its sha256."""
    return {path.name: sha256(path) for path in folder.iterdir() if path.name[0] != "."}


def one_run(prompts: Path, expected: dict[str, str], kills: int, wait: tuple[float, float]) -> dict:
    """What a run with kills reports and leaves."""
    with TemporaryDirectory() as folder, RayRun(prompts, folder, QUICK, model="demo") as run:
        seen: Counter[int] = Counter()
        killer, began = Killer(wait, kills), time.monotonic()
        killer.start()
        totals = run.run(workers=2, on_clip=lambda result: seen.update([result.number]))
        killer.done.set()
        killer.join()
        found = digests(Path(folder))
        left = sum(path.name[0] == "." for path in Path(folder).iterdir())
    return {
        "clips": run.total,
        "killed": killer.killed,
        "killed_at_work": killer.at_work,
        "seconds": round(time.monotonic() - began, 1),
        "made": totals.made,
        "failed": totals.failed,
        "lost": sum(name not in found for name in expected if name.endswith(".wav")),
        "unreported": run.total - len(seen),
        "doubled": sum(n > 1 for n in seen.values()) + sum(name not in expected for name in found),
        "different": sum(found.get(name, digest) != digest for name, digest in expected.items()),
        "hidden_parts_left": left,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20, help="in all runs together, at least")
    parser.add_argument("--clips", type=int, default=40, help="of each run")
    parser.add_argument("--wait", type=float, nargs=2, default=(0.5, 12.0), help="seconds at work")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--temporary", help="folder for Ray's files")
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    random.seed(chosen.seed)
    torch.set_num_threads(1)
    with TemporaryDirectory() as folder:
        prompts, reference = Path(folder) / "prompts.txt", Path(folder) / "reference"
        prompts.write_text("\n".join(f"a bell {n}|{n}" for n in range(chosen.clips)))
        pipe = AudioLDM2Pipeline.from_pretrained("demo", device="cpu")
        BatchRun(pipe, read_prompts(prompts, reference, QUICK)).run()
        expected = digests(reference)
        start_ray(chosen.temporary)
        runs: list[dict] = []
        while (left := chosen.kills - sum(run["killed"] for run in runs)) > 0:
            runs.append(one_run(prompts, expected, left, tuple(chosen.wait)))
            print(json.dumps(runs[-1]), flush=True)
    report = {
        "processor": cpu_name(),
        "ray": ray.__version__,
        "kills": sum(run["killed"] for run in runs),
        **{key: sum(run[key] for run in runs) for key in SUMS},
        "runs": runs,
    }
    if chosen.out:
        chosen.out.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
