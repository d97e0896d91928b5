"""Time ours against diffusers, the authors' LiteFocus and naive attention: one process, turn by
turn.

`--what unet` times one guided evaluation of the full-size UNet, with random weights and no files;
`--what pipeline` times whole clips of a bundle. A table for people, then one line of JSON."""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from scripts.benchmark.contenders import (
    CONTENDERS,
    OTHERS,
    TRAINED_SECONDS,
    Models,
    attention_of,
    flops,
    weights_bytes,
)
from scripts.benchmark.report import Result, publish
from scripts.benchmark.timing import available_memory, extra_memory, machine, peak_flops, turns

LENGTHS = (80.0, 10.24, 40.96, 20.48, 160.0, 320.0)  # most important first, for the budget
COMPILE_CALLS = 3  # compile, record the CUDA graph, replay it


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--what", choices=("unet", "pipeline"), default="unet")
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--seconds", type=float, nargs="+", default=LENGTHS, help="most important first")
    add("--dtypes", nargs="+", default=("float32", "bfloat16"))
    add("--contenders", nargs="+", default=CONTENDERS, help="most important first")
    add("--compile", action="store_true", help="compile ours too")
    add("--mode", help='of torch.compile; default on cuda: "reduce-overhead"')
    add("--repeats", type=int, default=5)
    add("--threads", type=int, help="of the CPU")
    add("--budget", type=float, default=float("inf"), help="seconds in all")
    add("--limit", type=float, default=600.0, help="seconds for one call; longer ones are skipped")
    add("--output", type=Path, help="JSON file, such as scripts/results/NAME.json")
    add("--model", default="demo", help="bundle, for --what pipeline")
    add("--steps", type=int, default=20, help="for --what pipeline")
    chosen = parser.parse_args()
    try:
        for name in chosen.contenders:
            attention_of(name, TRAINED_SECONDS)
    except ValueError as error:
        parser.error(str(error))
    if chosen.compile:
        ours = [name for name in chosen.contenders if name not in OTHERS]
        chosen.contenders = [*chosen.contenders, *(f"{name}-compiled" for name in ours)]
    chosen.mode = chosen.mode or ("reduce-overhead" if chosen.device == "cuda" else "default")
    return chosen


class UNetCalls:
    """Makes what is timed by `--what unet`."""

    def __init__(self, options: argparse.Namespace):
        self.device = options.device
        self.models = {
            dtype: Models(options.device, getattr(torch, dtype), options.mode)
            for dtype in options.dtypes
        }

    def flops(self, result: Result) -> int:
        return flops(result.contender, result.seconds, self.device)

    def obstacle(self, result: Result) -> str:
        """Why a contender cannot run, or nothing."""
        itemsize = self.models[result.dtype].dtype.itemsize
        needed = weights_bytes(result.contender, result.seconds, itemsize)
        if needed > 0.9 * available_memory(self.device):
            return f"attention weights of {needed / 2**30:.0f} GiB"
        return ""

    def call(self, result: Result) -> Callable[[], object]:
        return self.models[result.dtype].evaluation(result.contender, result.seconds)


class PipelineCalls:
    """Makes what is timed by `--what pipeline`: a clip from a prompt whose encoding is known."""

    def __init__(self, options: argparse.Namespace):
        from audiolitefocus import AudioLDM2Pipeline

        self.steps = options.steps
        self.pipes = {
            dtype: AudioLDM2Pipeline.from_pretrained(
                options.model, dtype=dtype, device=options.device
            )
            for dtype in options.dtypes
        }

    def flops(self, result: Result) -> None:
        return None

    def obstacle(self, result: Result) -> str:
        alone = result.contender in OTHERS or result.contender.endswith("-compiled")
        return "times the UNet alone" if alone else ""

    def call(self, result: Result) -> Callable[[], object]:
        pipe = self.pipes[result.dtype]
        condition = pipe.encode_prompt("rain on a tin roof")
        return lambda: pipe(
            prompt_embeds=condition.t5,
            attention_mask=condition.t5_mask,
            generated_prompt_embeds=condition.loa,
            audio_length_in_s=result.seconds,
            num_inference_steps=self.steps,
            attention=attention_of(result.contender, result.seconds),
            generator=torch.Generator().manual_seed(0),
        )


class Benchmark:
    """Rounds of calls, one length after the other, within the budget."""

    def __init__(self, options: argparse.Namespace, calls: UNetCalls | PipelineCalls):
        self.options, self.calls = options, calls
        self.deadline = time.monotonic() + options.budget
        self.last: dict[str, Result] = {}  # of each contender

    def length(self, seconds: float) -> list[Result]:
        """Everybody at one length."""
        torch._dynamo.reset()  # one length's graphs are of no use to the next
        dtypes, names = self.options.dtypes, self.options.contenders
        results = [Result(name, dtype, seconds) for dtype in dtypes for name in names]
        ready = {r.key: call for r in results if (call := self.first_call(r)) is not None}
        times = turns(
            ready,
            device=self.options.device,
            repeats=self.options.repeats,
            first={r.key: r.times[0] for r in results if r.times},
            deadline=self.deadline,
        )
        for result in results:
            result.times = times.get(result.key, [])
        return results

    def first_call(self, result: Result) -> Callable[[], object] | None:
        """Warm a contender up, noting time and memory; None, with a note, if it cannot run."""
        result.flops = self.calls.flops(result)
        result.note = self.calls.obstacle(result) or self.no_time_for(result)
        if result.note:
            return None
        try:
            call = torch.inference_mode()(self.calls.call(result))
            for _ in range(COMPILE_CALLS if result.contender.endswith("-compiled") else 0):
                call()
            spent, result.memory = extra_memory(call, self.options.device)
        except ModuleNotFoundError as error:
            result.note = f"{error.name} is not installed"
            return None
        except RuntimeError as error:  # out of memory, or a kernel that this device lacks
            result.note = str(error).splitlines()[0][:80]
            return None
        result.times = [spent]
        self.last[result.key] = Result(**vars(result))
        print(f"{result.seconds:g} s, {result.key}: {spent:.2f} s", file=sys.stderr, flush=True)
        return call

    def no_time_for(self, result: Result) -> str:
        """Why one more call does not fit, judged by the contender's last length; or nothing."""
        expected, last = 0.0, self.last.get(result.key)
        if last:
            work = result.seconds / last.seconds
            if result.flops and last.flops:
                work = result.flops / last.flops
            expected = work * last.times[0]
        if expected > self.options.limit:
            return f"about {expected:.0f} s a call"
        left = self.deadline - time.monotonic()
        return "" if left > 2 * expected else "no time left"


def main() -> None:
    options = arguments()
    if options.threads:
        torch.set_num_threads(options.threads)
    calls = UNetCalls(options) if options.what == "unet" else PipelineCalls(options)
    about = {"what": options.what, **machine(options.device), "batch": 2}
    peaks = {name: peak_flops(options.device, getattr(torch, name)) for name in options.dtypes}
    benchmark, results = Benchmark(options, calls), []
    for seconds in options.seconds:
        results += benchmark.length(seconds)
    publish(sorted(results, key=lambda r: r.seconds), about, peaks, options.output)


if __name__ == "__main__":
    main()
