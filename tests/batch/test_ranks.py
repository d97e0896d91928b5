"""Processes that share a job over the loopback: every clip once, whoever dies."""

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch.distributed as dist

from audiolitefocus.batch.ranks import Ranks


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def store(port: int, rank: int) -> dist.TCPStore:
    return dist.TCPStore("127.0.0.1", port, 2, rank == 0, timedelta(seconds=20))


def work(port: int, rank: int, folder: Path, die_at: int) -> None:
    """Take numbers up to 40 and leave a file for each; die with one in hand, without a word."""
    ranks = Ranks(store(port, rank), rank, 2, patience=1.0)
    chosen = ranks.agree(lambda: list(range(40)))
    done = []
    while (number := ranks.take()) < len(chosen):
        if len(done) == die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        with open(folder / str(number), "x") as file:  # fails if it is there
            file.write(str(rank))
        done.append(number)
        ranks.advance(1)
        time.sleep(0.01)
    reports = ranks.gather({"done": done})
    if ranks.first:
        (folder / "reports").write_text(json.dumps([ranks.advance(0), reports]))


def together(folder: Path, die_at: tuple[int, int]) -> list[int | None]:
    """Two processes; how they exit."""
    context, port = multiprocessing.get_context("spawn"), free_port()
    processes = [
        context.Process(target=work, args=(port, rank, folder, die_at[rank])) for rank in (0, 1)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=60)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    return codes


def test_every_number_goes_to_one_process(tmp_path):
    assert together(tmp_path, (-1, -1)) == [0, 0]
    progress, reports = json.loads((tmp_path / "reports").read_text())
    assert sorted(reports[0]["done"] + reports[1]["done"]) == list(range(40))
    assert progress == 40 and all(report["done"] for report in reports)


def test_the_others_go_on_when_one_dies_and_know_what_is_missing(tmp_path):
    assert together(tmp_path, (-1, 3)) == [0, -signal.SIGKILL]
    progress, reports = json.loads((tmp_path / "reports").read_text())
    assert len(reports) == 1 and progress == 39  # 3 of the dead one's are there, the 4th is not
    assert len(list(tmp_path.iterdir())) == 39 + 1


def test_nobody_hangs_when_the_first_one_dies(tmp_path):
    codes = together(tmp_path, (3, -1))
    assert codes[0] == -signal.SIGKILL and codes[1] == 1


def test_alone(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    ranks = Ranks.join()
    assert ranks.first and ranks.agree(lambda: [3]) == [3]
    assert [ranks.take(), ranks.take()] == [0, 1]
    assert ranks.gather({"a": 1}) == [{"a": 1}]


def test_each_of_several_takes_its_own_cuda_device(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    shared = Ranks(dist.HashStore(), 3, 4)
    assert shared.device("auto") == shared.device("cuda") == "cuda:3"
    assert shared.device("cpu") == "cpu" and shared.device("cuda:1") == "cuda:1"
    assert Ranks(dist.HashStore()).device("auto") == "auto"


def launch(folder: Path, port: int, rank: int, *options: str) -> subprocess.Popen:
    """`audiolitefocus generate` as one of two processes that torchrun would start."""
    environment = {
        **os.environ,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    command = [sys.executable, "-m", "audiolitefocus", "generate", "--prompts", "prompts.txt"]
    command += [
        "--out",
        "out",
        "--model",
        "demo",
        "--device",
        "cpu",
        "--duration",
        "0.64",
        *options,
    ]
    return subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        text=True,
        stdout=-1,
        stderr=-1,
        start_new_session=True,
    )


def made_by(output: str) -> list[str]:
    return [line.split(" (seed")[0] for line in output.splitlines() if "(seed" in line]


@pytest.fixture
def prompts(tmp_path) -> Path:
    (tmp_path / "prompts.txt").write_text("\n".join(f"bell {n}|{n}" for n in range(8)))
    return tmp_path


def test_two_processes_make_every_clip_once_also_after_one_was_killed(prompts):
    port = free_port()
    first, second = (launch(prompts, port, rank, "--steps", "8") for rank in (0, 1))
    deadline = time.monotonic() + 60
    while not list(prompts.glob("out/*.json")) and time.monotonic() < deadline:
        time.sleep(0.02)
    for process in (first, second):  # as torchrun does with those that are left
        process.kill()
    finished = {path.stem for path in prompts.glob("out/*.json")}
    assert first.wait(10) == second.wait(10) == -signal.SIGKILL and 0 < len(finished) < 8
    port = free_port()
    processes = [launch(prompts, port, rank, "--steps", "8") for rank in (0, 1)]
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    again = [Path(path).stem for out, _ in outputs for path in made_by(out)]
    assert sorted(again) == sorted({str(n) for n in range(8)} - finished)
    assert f"{8 - len(finished)} made, {len(finished)} there already" in outputs[0][0]
    assert len(list(prompts.glob("out/*.wav"))) == 8
