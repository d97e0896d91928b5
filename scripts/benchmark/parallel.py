"""How fast several devices would be, predicted from counted operations, launches and bytes.

python -m scripts.benchmark.parallel --output scripts/results/parallel-predicted.json

Nothing here is measured on several devices. A step takes as long as the busiest device computes, or
as one thread takes to launch all of its kernels, whichever is longer, and the exchange after it:

    max(operations / throughput, launches * seconds of a launch) + bytes / bandwidth

A table for people, then one line of JSON.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from audiolitefocus.attention.settings import Attention, LiteFocus, attention_text
from audiolitefocus.config import UNetConfig
from audiolitefocus.models.condition import Condition
from audiolitefocus.models.layers import StepInputs
from audiolitefocus.models.unet import UNet
from audiolitefocus.parallel.parts import cut, piece_operations
from audiolitefocus.parallel.settings import AsyncDiff
from scripts.benchmark.operations import operations

FRAMES_A_SECOND, ROWS, STEPS = 25, 16, 25
TRAINED = 10.24
# Assumptions. H100 SXM: 989 TFLOP/s dense bfloat16 by its data sheet, of which such networks reach
# about a third; a launch of an eager PyTorch kernel takes a thread 5 to 10 microseconds. NVLink 4:
# 450 GB/s each way by the same sheet; PCIe 4.0 x16: 31.5 GB/s by its specification, 25 in practice.
THROUGHPUT, LAUNCH = 330e12, 6e-6
LINKS = {"NVLink": 450e9, "PCIe": 25e9}
# of these every kernel-less view is left out of the launches
VIEWS = ("view", "reshape", "permute", "transpose", "expand", "unsqueeze", "slice", "split", "t.")
BYTES = 2  # of a value between parts, bfloat16


@dataclass(frozen=True)
class Prediction:
    """One strategy for one length.

    Attributes:
        busiest: largest share of the operations of one device's evaluation that one device does.
        launches: of all kernels of a step, by one thread.
        sent: bytes that cross a link in a step, of the busiest pair of devices.
        speed: times as fast as one device, for a whole run of the same clips together, by link.
        free: the same with launches that cost nothing, as in CUDA graphs.
    """

    strategy: str
    devices: int
    seconds: float
    attention: str
    busiest: float
    launches: int
    sent: int
    speed: dict[str, float]
    free: dict[str, float]


class Launches(TorchDispatchMode):
    """Counts operations that are no views: about the kernels that a GPU would be given."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = str(func).removeprefix("aten.").lstrip("_")
        self.count += not name.startswith(VIEWS)
        return func(*args, **(kwargs or {}))


def launches(config: UNetConfig, frames: int, attention: Attention, branches: int = 2) -> int:
    """Kernels of one evaluation, about."""
    with FakeTensorMode(), torch.device("meta"), torch.inference_mode():
        unet = UNet(config).eval()
        condition = Condition(
            torch.empty(branches, 8, config.loa_dim), torch.empty(branches, 16, config.t5_dim)
        )
        latents = torch.empty(1, config.in_channels, frames, ROWS)
        inputs = StepInputs(
            unet.time_biases(torch.empty(1)),
            *unet.cross_kv(condition),
            unet.plan(attention, latents),
        )
        with Launches() as counter:
            unet.evaluate(latents, inputs)
    return counter.count


def evaluations(settings: AsyncDiff, steps: int, largest: float) -> float:
    """How long a run takes, in whole evaluations, without exchange: `largest` a step or two."""
    total, step = 0.0, 0
    while step < steps:
        if settings.is_whole(step, steps):
            total, step = total + 1, step + 1
            continue
        two = settings.stride == 2 and not settings.is_whole(step + 1, steps)
        total, step = total + largest, step + 1 + two
    return total


def crossing(unet: UNet, frames: int, ranges: list[range], branches: int = 2) -> int:
    """Bytes that the parts of a UNet on the meta device send each other in a step, all together."""
    attention, sent = "dense", 0
    pieces = unet.pieces()
    number = {piece: n for n, piece in enumerate(pieces)}
    latents = torch.empty(1, unet.config.in_channels, frames, ROWS, device="meta")
    condition = Condition(
        torch.empty(branches, 8, unet.config.loa_dim, device="meta"),
        torch.empty(branches, 16, unet.config.t5_dim, device="meta"),
    )
    recorded: dict = dict.fromkeys(pieces)
    inputs = StepInputs(
        unet.time_biases(torch.empty(1, device="meta")),
        *unet.cross_kv(condition),
        unet.plan(attention, latents),
        recorded=recorded,
    )
    unet.evaluate(latents, inputs)
    for own in ranges:
        taken = {number[p] for piece in list(pieces)[own.start : own.stop] for p in pieces[piece]}
        outputs = [recorded[list(pieces)[n]] for n in taken - set(own)]
        sent += sum(BYTES * output.numel() for output in outputs)
    return sent


class Model:
    """Predictions for one length of clip.

    Args:
        config, seconds, steps: of the UNet and the clip.
        throughput, launch: operations a second of a device, and seconds to launch a kernel.
    """

    def __init__(self, config: UNetConfig, seconds: float, throughput: float, launch: float):
        self.config, self.seconds = config, seconds
        self.frames = round(seconds * FRAMES_A_SECOND)
        self.throughput, self.launch = throughput, launch
        self.attention = "dense" if seconds <= TRAINED else LiteFocus.for_duration(seconds)
        shape = (1, config.in_channels, self.frames, ROWS)
        counted = {
            n: operations(config, shape, self.attention, branches=n, device="meta") for n in (1, 2)
        }
        self.counted, self.whole, self.half = counted[2], counted[2].total, counted[1].total
        self.launches = {n: launches(config, self.frames, self.attention, n) for n in (1, 2)}
        self.latents = 4 * config.in_channels * self.frames * ROWS  # bytes, float32
        with torch.device("meta"):
            self.unet = UNet(config)

    def predictions(self) -> Iterator[Prediction]:
        """Of all strategies for 2, 4 and 8 devices."""
        half, times = self.half / self.whole, 2 * self.launches[1]
        yield self._prediction("guidance", 2, half, times, 2 * self.latents)
        for devices in (2, 4, 8):
            yield self._prediction(
                f"batch of {devices}",
                devices,
                1.0,
                devices * self.launches[2],
                self.latents,
                clips=devices,
            )
        for parts, stride in ((2, 1), (2, 2), (3, 2), (4, 1), (7, 2), (8, 1)):
            yield self._asyncdiff(AsyncDiff(parts, stride=stride))

    def _asyncdiff(self, settings: AsyncDiff) -> Prediction:
        costs = piece_operations(self.unet, self.frames, ROWS, self.attention, 2)
        ranges = cut(costs, settings.parts)
        names = {module: name for name, module in self.unet.named_modules()}
        within = [self.counted.within[names[piece]] for piece in self.unet.pieces()]
        largest = max(sum(within[n] for n in own) for own in ranges) / self.whole
        sent = crossing(self.unet, self.frames, ranges) + 2 * self.latents
        name = f"asyncdiff:{settings.parts}" + ":stride=2" * (settings.stride == 2)
        return self._prediction(
            name, settings.devices, largest, self.launches[2], sent, settings=settings
        )

    def _prediction(
        self,
        name: str,
        devices: int,
        busiest: float,
        count: int,
        sent: int,
        *,
        clips: int = 1,
        settings: AsyncDiff | None = None,
    ) -> Prediction:
        speed: dict[str, float] = {}
        free: dict[str, float] = {}
        for found, launch in ((speed, self.launch), (free, 0.0)):
            one = max(clips * self.whole / self.throughput, self.launches[2] * launch)
            for link, bandwidth in LINKS.items():
                together = max(busiest * self.whole / self.throughput, count * launch)
                together += sent / bandwidth
                if settings is None:
                    found[link] = one / together
                    continue
                whole = evaluations(settings, STEPS, 0.0)
                shared = evaluations(settings, STEPS, 1.0) - whole
                found[link] = STEPS * one / (whole * (one + sent / bandwidth) + shared * together)
        return Prediction(
            name,
            devices,
            self.seconds,
            attention_text(self.attention),
            busiest,
            count,
            sent,
            speed,
            free,
        )


def table(found: list[Prediction]) -> str:
    """In Markdown."""
    lines = [
        "| clip | devices | strategy | busiest | launches | MB | NVLink | PCIe | free launches |",
        "|---:|---:|---|---:|---:|---:|---:|---:|---:|",
    ]
    for p in found:
        lines.append(
            f"| {p.seconds:g} s | {p.devices} | `{p.strategy}` | {p.busiest:.2f} | {p.launches} | "
            f"{p.sent / 1e6:.1f} | {p.speed['NVLink']:.2f} x | {p.speed['PCIe']:.2f} x | "
            f"{p.free['NVLink']:.2f} x |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--seconds", type=float, nargs="+", default=(10.24, 80.0, 600.0))
    add("--throughput", type=float, default=THROUGHPUT, help="operations a second of a device")
    add("--launch", type=float, default=LAUNCH, help="seconds that launching a kernel takes")
    add("--output", type=Path, help="JSON file, such as scripts/results/NAME.json")
    chosen = parser.parse_args()
    predictions = [
        prediction
        for seconds in chosen.seconds
        for prediction in Model(
            UNetConfig(), seconds, chosen.throughput, chosen.launch
        ).predictions()
    ]
    print(table(predictions))
    assumed = {"throughput": chosen.throughput, "launch": chosen.launch, "links": LINKS}
    about = {"what": "several devices, predicted", "torch": torch.__version__, "steps": STEPS}
    found = {**about, **assumed, "results": [asdict(prediction) for prediction in predictions]}
    if chosen.output:
        chosen.output.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
