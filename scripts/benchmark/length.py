"""Memory and time of clips against their length, each clip made in a process of its own, as the
command makes it.

Few steps are taken: one is like another in memory, and in time but for the first. A table for
people, then one line of JSON; `--table FILE ...` prints the README's table of such records.
"""

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from statistics import median

import torch

from audiolitefocus import AudioLDM2Pipeline
from audiolitefocus.audio.length import ClipLength
from audiolitefocus.batch.clips import make_clips, save_clip
from audiolitefocus.batch.requests import ClipRequest
from audiolitefocus.options import GenerationOptions
from audiolitefocus.runtime import denoising_bytes
from scripts.benchmark.timing import machine, release, status

SECONDS = (10.24, 60.0, 180.0, 600.0, 1800.0)
VARIANTS = ("auto", "auto+whole", "dense")  # attention, and how clips are decoded
PROMPT = "rain on a tin roof, distant thunder"
POLL = 0.02  # seconds between two looks at the memory in use
FAST_STEPS = 25  # of dpm++, for the table


class Phase:
    """What runs inside: `seconds` of the clock, `processor` seconds, and bytes at the peak."""

    def __enter__(self) -> "Phase":
        release()
        self.memory, self._ended = 0, threading.Event()
        self._looks = threading.Thread(target=self._look, daemon=True)
        self._start = time.perf_counter(), time.process_time()
        self._looks.start()
        return self

    def __exit__(self, *error) -> None:
        self.seconds = time.perf_counter() - self._start[0]
        self.processor = time.process_time() - self._start[1]
        self._ended.set()
        self._looks.join()

    def _look(self) -> None:
        """Memory of the process alone: the system keeps a file's in use only while it has it to
        spare.
        """
        while not self._ended.wait(POLL):
            self.memory = max(self.memory, status("RssAnon"))


def measure(case: dict, model: str, steps: int, threads: int | None) -> dict:
    """One clip, in this process."""
    torch.set_num_threads(threads or torch.get_num_threads())
    pipe = AudioLDM2Pipeline.from_pretrained(model, device="cpu")
    loaded, length = status("RssAnon"), ClipLength(case["seconds"], pipe.config)
    options = GenerationOptions(
        audio_length_in_s=case["seconds"],
        num_inference_steps=steps,
        sampler="dpm++",
        attention=case["attention"],
        decode=case["decode"],
        windows=case["windows"],
        seed=0,
    )
    ends: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        clip = ClipRequest(PROMPT, Path(folder) / "x.wav", options)
        with Phase() as denoising:
            (output,) = make_clips(pipe, [clip], lambda *_: ends.append(time.process_time()))
        with Phase() as saving:
            save_clip(pipe, clip, output)
    return case | {
        "step_processor_seconds": median(b - a for a, b in zip(ends, ends[1:], strict=False)),
        "denoising_seconds": denoising.seconds,
        "denoising_processor_seconds": denoising.processor,
        "decoding_seconds": saving.seconds,
        "decoding_processor_seconds": saving.processor,
        "loaded_bytes": loaded,
        "denoising_bytes": denoising.memory,
        "decoding_bytes": saving.memory,
        "peak_bytes": status("VmHWM"),
        "estimated_bytes": round(denoising_bytes(pipe.config, length.latent_frames, 4)),
    }


def in_own_process(case: dict, options: argparse.Namespace) -> dict:
    """`measure` in a fresh process; a case that fails or takes too long says so."""
    command = [
        sys.executable,
        "-m",
        "scripts.benchmark.length",
        "--case",
        json.dumps(case),
        "--model",
        options.model,
    ]
    command += ["--steps", str(options.steps)]
    command += ["--threads", str(options.threads)] if options.threads else []
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=options.limit)
    except subprocess.TimeoutExpired:
        return case | {"note": f"more than {options.limit:g} s"}
    if done.returncode:
        return case | {"note": done.stderr.strip().splitlines()[-1]}
    return json.loads(done.stdout.splitlines()[-1])


def markdown(records: list[dict]) -> str:
    """The README's table; memory beyond what the process has once the model is loaded."""
    lines = [
        f"| clip | attention | a step | decoding | {FAST_STEPS} steps in all | memory, denoising | "
        f"memory, decoding | estimated |",
        "|---:|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in (row for record in records for row in record["results"] if "note" not in row):
        step, saving = row["step_processor_seconds"], row["decoding_processor_seconds"]
        sizes = [row[f"{phase}_bytes"] - row["loaded_bytes"] for phase in ("denoising", "decoding")]
        name = row["attention"] + ", decoded whole" * (row["decode"] == "whole")
        name += ", in windows" * (row.get("windows", "off") != "off")
        lines.append(
            f"| {row['seconds']:g} s | {name} | {step:.2f} s | {saving:.1f} s | "
            f"{FAST_STEPS * step + saving:.0f} s | {_gb(sizes[0])} | {_gb(sizes[1])} | "
            f"{_gb(row['estimated_bytes'])} |"
        )
    return "\n".join(lines)


def _gb(size: float) -> str:
    return f"{size / 1e9:.2f} GB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--seconds", type=float, nargs="+", default=SECONDS)
    add(
        "--attention",
        nargs="+",
        default=VARIANTS,
        help="+whole, +tiled: how it is decoded; +windows=auto",
    )
    add("--dense-up-to", type=float, default=180.0, help="seconds; its time grows as the square")
    add("--steps", type=int, default=3)
    add("--model", default="demo")
    add("--threads", type=int)
    add("--limit", type=float, default=1200.0, help="seconds for one clip")
    add("--output", type=Path, help="JSON file, such as scripts/results/NAME.json")
    add("--table", type=Path, nargs="+", help="print these records' table instead")
    add("--case", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.table:
        print(markdown([json.loads(path.read_text()) for path in options.table]))
        return
    if options.case:
        print(json.dumps(measure(options.case, options.model, options.steps, options.threads)))
        return
    about = {"model": options.model, "steps": options.steps, **machine("cpu")}
    results = []
    for seconds, variant in itertools.product(options.seconds, options.attention):
        attention, _, other = variant.partition("+")
        case = {"seconds": seconds, "attention": attention, "decode": "auto", "windows": "off"}
        if other:
            name, _, value = other.rpartition("=")
            case[name or "decode"] = value
        if attention == "dense" and seconds > options.dense_up_to:
            continue
        results.append(in_own_process(case, options))
        print(results[-1], file=sys.stderr, flush=True)
        if options.output:
            options.output.write_text(json.dumps({**about, "results": results}, indent=1) + "\n")
    print(markdown([{"results": results}]))
    print(json.dumps({**about, "results": results}))


if __name__ == "__main__":
    main()
