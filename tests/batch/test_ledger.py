"""Plans on disk: the clips of plans in memory, read again and again, each finished once."""

import gc
import json
import random

import numpy as np
import pytest
import soundfile

from audiolitefocus import GenerationOptions
from audiolitefocus.batch.ledger import PAGE_ROWS, Ledger
from audiolitefocus.batch.prompts import plan_prompts, read_prompts
from audiolitefocus.batch.requests import ClipRequest

QUICK = GenerationOptions(audio_length_in_s=0.64, num_inference_steps=2)


@pytest.fixture
def ledger(tmp_path):
    opened = Ledger(tmp_path / "ledger")
    yield opened
    opened.close()


def clips_of(file, folder, ledger, options=QUICK) -> list[ClipRequest]:
    ledger.plan(plan_prompts(file, folder, options, ledger.notes()))
    return [clip for _, clip in ledger.missing()]


def lines(count: int) -> list[str]:
    """Lines in which texts, names made from them and names given meet one another."""
    chance, texts = random.Random(0), ["rain", "Rain", "rain!", "sea & wind", "雨", "# 1"]
    kinds = [
        lambda n, text: text,
        lambda n, text: f"{text}|{n}",
        lambda n, text: json.dumps({"prompt": text, "seed": n % 3, "steps": 1 + n % 2}),
        lambda n, text: f"{text}|rain-{n % 3}-{n}.flac",
    ]
    return [chance.choice(kinds)(n, chance.choice(texts)) for n in range(count)]


@pytest.mark.parametrize("seed", [None, 1])
@pytest.mark.filterwarnings("ignore:.*starting with #")
def test_a_plan_on_disk_has_the_clips_of_a_list(seed, write_prompts, tmp_path, ledger):
    options = GenerationOptions.make(QUICK, {"seed": seed})
    file = write_prompts(*lines(600))
    expected = read_prompts(file, tmp_path / "out", options)
    assert clips_of(file, tmp_path / "out", ledger, options) == expected
    assert len({clip.path for clip in expected}) == len(expected) > 500


def test_an_array_and_recordings_are_planned_too(tmp_path, ledger, monkeypatch):
    monkeypatch.chdir(tmp_path)
    soundfile.write("in.wav", np.zeros(1600), 16000)
    entries = ["a", {"prompt": "b", "init_audio": "in.wav", "reuse": "deepcache:3"}]
    (tmp_path / "prompts").write_text(json.dumps(entries))
    options = GenerationOptions()
    expected = read_prompts(tmp_path / "prompts", tmp_path / "out", options)
    assert clips_of(tmp_path / "prompts", tmp_path / "out", ledger, options) == expected
    assert expected[1].recording_sha256 and expected[1].recording_seconds == 0.1


@pytest.mark.parametrize(
    "last, message",
    [
        ("y|A", "line 3: name 'A' is taken by line 1"),
        ('{"prompt": "x", "steps": 0}', "line 3: steps 0"),
        ('{"prompt": "x", "name": "in", "continue": "in.wav"}', "is a recording that clips"),
    ],
)
def test_a_bad_line_is_found_while_planning(last, message, tmp_path, ledger, monkeypatch):
    monkeypatch.chdir(tmp_path)
    soundfile.write("in.wav", np.zeros(1600), 16000)
    (tmp_path / "prompts").write_text(f"x|a\n\n{last}")
    with pytest.raises(ValueError, match=message):
        clips_of(tmp_path / "prompts", tmp_path, ledger)


def test_what_is_missing_stays_the_same_while_results_are_written(write_prompts, tmp_path, ledger):
    file = write_prompts(*[f"rain|{n}" for n in range(1000)])
    ledger.plan(plan_prompts(file, tmp_path, QUICK, ledger.notes()))
    for number in range(0, 1000, 3):
        ledger.keep(number)
    expected = [number for number in range(1000) if number % 3]
    reader, seen = Ledger(tmp_path / "ledger"), []
    for number, clip in reader.missing():  # another connection, as of another process
        assert clip.path.name == f"{number}.wav"
        assert ledger.finish(number, "broken" if number == 500 else None)
        assert not ledger.finish(number, None)  # once is enough
        seen.append(number)
    assert seen == expected == [number for number, _ in reader.missing()]
    reader.close()
    assert (ledger.made, ledger.kept, ledger.failed) == (665, 334, 1)
    assert list(ledger.failures()) == ["broken"]


def test_a_full_disk_is_an_error_of_one_line(write_prompts, tmp_path, ledger):
    file = write_prompts(*[f"rain|{n}" for n in range(200)])
    ledger.database.execute("PRAGMA max_page_count = 20")  # as SQLite fails on a full disk
    with pytest.raises(OSError, match="the plan of the run in .*: database or disk is full"):
        ledger.plan(plan_prompts(file, tmp_path, QUICK, ledger.notes()))


def test_clips_without_an_answer_are_failures(write_prompts, tmp_path, ledger):
    file = write_prompts("a|a", "b|b")
    ledger.plan(plan_prompts(file, tmp_path, QUICK, ledger.notes()))
    ledger.finish(0, None)
    assert ledger.failed == 1
    assert list(ledger.failures()) == ["b.wav: no worker answered for it"]


def test_no_more_than_a_page_of_clips_is_in_memory(write_prompts, tmp_path, ledger):
    file = write_prompts(*[f"the sound number {n} of many" for n in range(3000)])
    alive = []

    def watched(clips):
        for number, clip in enumerate(clips):
            if number % 500 == 499:
                alive.append(sum(type(o) is GenerationOptions for o in gc.get_objects()))
            yield clip

    ledger.plan(watched(plan_prompts(file, tmp_path, QUICK, ledger.notes())))
    assert sum(1 for _ in watched(ledger.missing())) == 3000
    assert len(alive) == 12 and max(alive) - min(alive) <= PAGE_ROWS
