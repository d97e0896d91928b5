"""Load a server of the demo model: many clients, slow ones, some that go away, hostile bodies.

The server runs in a process of its own, with a small queue; clients that are told to come again do.
Every request must end as it should: a clip of the right length that is decodable, or an error of
the right status; afterwards nothing runs or waits, and memory has stopped growing. Anything else
ends the script with an error. Figures for people, then one line of JSON.
"""

import argparse
import asyncio
import contextlib
import io
import json
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median

import httpx
import soundfile

from scripts.benchmark.bodies import HOSTILE
from scripts.benchmark.timing import machine

GENERATE = "/v1/audio/generate"
QUEUE = 8
MAX_SECONDS = 30  # of sound, that the server is told to allow
PATIENCE = 600.0  # seconds for one request, waiting and coming again included
PAUSE = 0.05  # seconds between the reads of a slow client
TURNS = 3  # times that the whole load is sent; memory is compared after the first and the last
GROWTH = 64 << 20  # bytes of memory that may come after the first turn


@dataclass
class Tally:
    """What has happened so far."""

    ended: Counter = field(default_factory=Counter)
    seconds: dict[str, list[float]] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)

    async def count(self, kind: str, client: Callable[[], Awaitable[None]]) -> None:
        """Run a client, and keep how it ended and how long it took."""
        start = time.perf_counter()
        try:
            await asyncio.wait_for(client(), PATIENCE)
        except Exception as error:
            self.wrong.append(f"{kind}: {type(error).__name__}: {error}")
        self.ended[kind] += 1
        self.seconds.setdefault(kind, []).append(time.perf_counter() - start)


class Load:
    """The clients of one server."""

    def __init__(self, address: str, tally: Tally, chance: random.Random):
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        self.http = httpx.AsyncClient(base_url=address, timeout=PATIENCE, limits=limits)
        self.tally, self.chance, self.again = tally, chance, 0

    def body(self, **changes) -> dict:
        """One of a few kinds of requests, so that some can share a batch."""
        seconds = self.chance.choice((0.64, 2.56, 2.56, 5.12))
        return {
            "input": self.chance.choice(("rain", "a bell over rain", "a rising chirp")),
            "audio_length": seconds,
            "num_inference_steps": 5,
            "sampler": "dpm++",
            "seed": self.chance.randrange(1000),
            **changes,
        }

    async def whole(self) -> None:
        """A client that waits for its clip, and comes again as long as the queue is full."""
        body = self.body(response_format=self.chance.choice(("wav", "flac", "ogg", "mp3")))
        while (response := await self.http.post(GENERATE, json=body)).status_code == 429:
            self.again += 1
            await asyncio.sleep(float(response.headers["retry-after"]) * self.chance.random())
        check_sound(response.status_code, response.content, body)

    async def slow(self) -> None:
        """A client that takes a streamed clip in small bites."""
        body = self.body(stream=True, audio_length=MAX_SECONDS)
        content, status = b"", 429
        while status == 429:
            async with self.http.stream("POST", GENERATE, json=body) as response:
                status = response.status_code
                async for bite in response.aiter_bytes(16_384):
                    content = b"" if status == 429 else content + bite
                    await asyncio.sleep(PAUSE)
        check_sound(status, content, body)

    async def dropped(self) -> None:
        """A client that goes away: before it is connected, while it waits or in the middle."""
        patience = self.chance.uniform(0.01, 1.5)
        body = self.body(audio_length=MAX_SECONDS, num_inference_steps=500)
        with contextlib.suppress(httpx.ReadTimeout, httpx.ConnectTimeout):
            response = await self.http.post(GENERATE, json=body, timeout=patience)
            assert response.status_code == 429, response.text

    async def left(self) -> None:
        """A client that goes away in the middle of a streamed clip."""
        body = self.body(stream=True, audio_length=MAX_SECONDS)
        async with self.http.stream("POST", GENERATE, json=body) as response:
            async for bite in response.aiter_bytes(16_384):
                assert bite and response.status_code in (200, 429)
                return

    async def hostile(self, name: str) -> None:
        """A body that must be refused, with a JSON error of one status or, when it is busy, 429."""
        content, headers, status = HOSTILE[name]
        body = content() if callable(content) else content
        try:
            response = await self.http.post(GENERATE, content=body, headers=headers)
        except (httpx.WriteError, httpx.ReadError):
            if status != 413:  # the server may hang up on what it does not want to read
                raise
            return
        assert response.status_code in (status, 429), f"{response.status_code}: {response.text}"
        assert response.json()["error"]["message"]

    async def turn(self, clients: int) -> None:
        """All kinds of clients at once; half of them wait for their clips."""
        kinds = [("whole", self.whole)] * clients
        kinds += [("slow", self.slow)] * (clients // 8)
        kinds += [("dropped", self.dropped)] * (clients // 2)
        kinds += [("left", self.left)] * (clients // 8)
        for name in HOSTILE:
            kinds += [("hostile", partial(self.hostile, name))] * max(1, clients // 16)
        self.chance.shuffle(kinds)
        await asyncio.gather(*(self.tally.count(kind, client) for kind, client in kinds))

    async def idle(self) -> dict:
        """What /health says once nothing runs or waits."""
        for _ in range(600):
            health = (await self.http.get("/health")).json()
            if not health["running"] and not health["waiting"]:
                return health
            await asyncio.sleep(0.1)
        raise AssertionError(f"the server is still busy: {health}")


def check_sound(status: int, content: bytes, body: dict) -> None:
    """Raise AssertionError unless this is a whole clip."""
    assert status == 200, f"{status}: {content[:200]!r}"
    about = soundfile.info(io.BytesIO(content))
    assert about.frames == int(body["audio_length"] * about.samplerate), about.frames
    assert len(soundfile.read(io.BytesIO(content))[0]) == about.frames


@contextlib.contextmanager
def server() -> Iterator[tuple[str, int]]:
    """A server in a process of its own: its address and process id."""
    command = [sys.executable, "-m", "audiolitefocus", "serve", "--model", "demo", "--port", "0"]
    command += ["--device", "cpu", "--queue", str(QUEUE), "--max-seconds", str(MAX_SECONDS)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    try:
        address = process.stdout.readline().removeprefix("listening on ").strip()
        threading.Thread(target=process.stdout.read, daemon=True).start()  # or the log fills it
        yield address, process.pid
    finally:
        process.terminate()
        process.wait(60)


def memory_of(process: int, name: str) -> int:
    """Bytes of a process by Linux's /proc: VmRSS now, VmHWM at most."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))


async def run(clients: int, seed: int) -> dict:
    """Load a server in turns; figures, and everything that went wrong."""
    tally, memory = Tally(), []
    with server() as (address, process):
        load = Load(address, tally, random.Random(seed))
        loaded, start = memory_of(process, "VmRSS"), time.perf_counter()
        for _ in range(TURNS):
            await load.turn(clients)
            await load.idle()
            memory.append(memory_of(process, "VmRSS"))
        took, peak = time.perf_counter() - start, memory_of(process, "VmHWM")
        await load.http.aclose()
    if (grown := memory[-1] - memory[0]) > GROWTH:
        tally.wrong.append(f"memory grew by {grown} bytes after the first turn")
    sounds = tally.ended["whole"] + tally.ended["slow"]
    return {
        "clients": clients,
        "turns": TURNS,
        "queue": QUEUE,
        **machine("cpu"),
        "ended": dict(tally.ended),
        "told_to_come_again": load.again,
        "seconds": round(took, 1),
        "clips_per_second": round(sounds / took, 2),
        "median_seconds": {kind: round(median(t), 2) for kind, t in tally.seconds.items()},
        "longest_seconds": {kind: round(max(t), 2) for kind, t in tally.seconds.items()},
        "loaded_bytes": loaded,
        "after_turns_bytes": memory,
        "peak_bytes": peak,
        "wrong": tally.wrong,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=32, help="that wait for a clip, at once")
    parser.add_argument("--seed", type=int, default=0, help="of what they ask for")
    chosen = parser.parse_args()
    figures = asyncio.run(run(chosen.clients, chosen.seed))
    for name, value in figures.items():
        print(f"{name:20} {value}")
    print(json.dumps(figures))
    if figures["wrong"]:
        sys.exit(f"error: {len(figures['wrong'])} requests did not end as they should")


if __name__ == "__main__":
    main()
