"""Time the way from nothing to a sound: environments made with pip or uv, and their first clips.

PyTorch comes first and apart, then a built wheel with what else it needs, then the command makes a
clip twice, from an empty folder and without the checkout on the path. Caches of packages are not
used. Figures for people, then one line of JSON.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from scripts.benchmark.timing import machine

CONSTRAINTS = Path(__file__).resolve().parents[2] / "constraints.txt"
# of a checkout or a container, which would change what is measured
DROPPED = ("PYTHONPATH", "PYTHONDONTWRITEBYTECODE", "VIRTUAL_ENV")
CLIP = [
    *("generate", "a bell over rain", "--model", "demo", "--duration", "2.56"),
    *("--sampler", "dpm++", "--steps", "25", "--seed", "7"),
]


def pip(environment: Path) -> tuple[list[str], list[str]]:
    """The commands that make an environment, and that install into it."""
    python = str(environment / "bin" / "python")
    return [sys.executable, "-m", "venv", str(environment)], [
        *(python, "-m", "pip", "install", "--quiet", "--no-cache-dir"),
    ]


def uv(environment: Path) -> tuple[list[str], list[str]]:
    """The same with uv, which must be on the path."""
    return ["uv", "venv", "--quiet", "--python", sys.executable, str(environment)], [
        *("uv", "pip", "install", "--quiet", "--no-cache", "--python", str(environment)),
    ]


TOOLS: dict[str, Callable] = {"pip": pip, "uv": uv}


def timed(command: list[str], folder: Path) -> dict[str, float]:
    """Wall and processor seconds of a command, which must succeed."""
    kept = {k: v for k, v in os.environ.items() if k not in DROPPED}
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, cwd=folder, env=kept, check=True, stdout=subprocess.DEVNULL)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall": round(wall, 1), "processor": round(spent, 1)}


def bytes_in(folder: Path) -> int:
    """Of all files, each counted once."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir())


def measure(tool: str, wheel: Path, extra: str) -> dict:
    """Times of every part, and how large the environment has become."""
    with tempfile.TemporaryDirectory(prefix="audiolitefocus-install-") as scratch:
        environment, empty = Path(scratch) / "environment", Path(scratch) / "empty"
        empty.mkdir()
        create, install = TOOLS[tool](environment)
        clip = [str(environment / "bin" / "audiolitefocus"), *CLIP, "-o"]
        times = {"environment": timed(create, empty)}
        times["torch"] = timed([*install, "-r", str(CONSTRAINTS)], empty)
        torch_bytes = bytes_in(environment)
        times["wheel"] = timed([*install, "-c", str(CONSTRAINTS), f"{wheel}{extra}"], empty)
        times["first clip"] = timed([*clip, "first.wav"], empty)
        times["second clip"] = timed([*clip, "second.wav"], empty)
        sounds = [(empty / name).read_bytes() for name in ("first.wav", "second.wav")]
        assert sounds[0] == sounds[1] and len(sounds[0]) > 2 * 2.56 * 16000
        return {"torch_bytes": torch_bytes, "bytes": bytes_in(environment), "seconds": times}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("wheel", type=Path, help="built by: python -m build")
    parser.add_argument("--tools", nargs="+", choices=TOOLS, default=["pip"])
    parser.add_argument("--extra", help="of the package, for example web")
    chosen = parser.parse_args()
    extra = f"[{chosen.extra}]" if chosen.extra else ""
    results = {tool: measure(tool, chosen.wheel.resolve(), extra) for tool in chosen.tools}
    for tool, result in results.items():
        gigabytes = [result[name] / 1e9 for name in ("torch_bytes", "bytes")]
        print("{}: PyTorch {:.2f} of {:.2f} GB".format(tool, *gigabytes))
        for part, seconds in result["seconds"].items():
            print(f"  {part:12} {seconds['wall']:6} s, of a processor {seconds['processor']} s")
    print(json.dumps({"wheel": chosen.wheel.name + extra, **machine("cpu"), "results": results}))


if __name__ == "__main__":
    main()
