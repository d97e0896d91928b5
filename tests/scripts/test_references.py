"""Reference sets of scripts/evaluate.py: folders, AudioCaps' layout, and the synthetic world."""

import json
from pathlib import Path

import numpy as np
import pytest

from audiolitefocus.audio.files import read_sound, write_sound
from scripts.demo.world import sounds
from scripts.evaluate.references import Reference, read_references


def sound(path: Path) -> Path:
    return write_sound(path, np.full(1600, 0.1, np.float32), 16000)


def read(source, tmp_path, *, count=None, **options) -> list[Reference]:
    return read_references(str(source), cache=tmp_path, count=count, **options)


def table(path: Path, *rows: str, header="audiocap_id,youtube_id,start_time,caption") -> Path:
    path.write_text("\n".join((header, *rows)) + "\n", encoding="utf-8")
    return path


def test_a_folder_with_the_prompts_beside_its_sounds(tmp_path):
    for name in ("b.wav", "a.flac", "c.ogg"):
        sound(tmp_path / name)
    (tmp_path / "a.json").write_text(json.dumps({"prompt": "rain"}))
    (tmp_path / "b.json").write_text("[1]")
    (tmp_path / "notes.txt").write_text("not a sound")
    found = read(tmp_path, tmp_path)
    assert [(r.name, r.caption) for r in found] == [("a", "rain"), ("b", None), ("c", None)]
    assert [r.name for r in read(tmp_path, tmp_path, count=2)] == ["a", "b"]


def test_audiocaps_by_every_usual_name(tmp_path):
    folder = tmp_path / "clips"
    folder.mkdir()
    names = "7.wav", "-id_B.flac", "YidC.wav", "idD_40.wav", "YidE_50.wav", "idF_30_40.wav"
    for name in (*names, "idG_10000_20000.wav"):
        sound(folder / name)
    ids = ("idA", "-id_B", "idC", "idD", "idE", "idF", "idG", "gone")
    starts = (0, 20, 30, 40, 50, 30, 10, 0)
    rows = [
        f'{number},{name},{start},"{name}, said"'
        for number, name, start in zip(range(7, 99), ids, starts, strict=False)
    ]
    rows.append("99,idC,30,said another way")
    found = read(table(tmp_path / "test.csv", *rows), tmp_path, sounds=folder)
    assert [r.caption for r in found] == [f"{name}, said" for name in ids[:-1]]
    assert [r.path.name for r in found] == [*names, "idG_10000_20000.wav"]


def test_synthetic_sounds_are_held_out_and_kept(tmp_path):
    found = read("demo-world", tmp_path, count=3, seconds=0.5)
    assert [r.caption for r in found] == [
        sounds.draw(sounds.HELD_OUT + i).caption for i in range(3)
    ]
    waveform = read_sound(found[1].path, 16000).numpy()
    expected = sounds.draw(sounds.HELD_OUT + 1).render(0.5)
    np.testing.assert_allclose(waveform, expected, atol=1 / 32768)  # 16 bit
    before = [r.path.stat().st_mtime_ns for r in found]
    again = read("demo-world", tmp_path, count=4, seconds=0.5)
    assert [r.path.stat().st_mtime_ns for r in again[:3]] == before


@pytest.mark.parametrize(
    "rows,header,message",
    [
        (["1,x,0,rain"], "id,youtube,start,text", "lacks the columns caption, start_time"),
        (["1,x,soon,rain"], "audiocap_id,youtube_id,start_time,caption", "line 2: not a row"),
        (["1,x,0"], "audiocap_id,youtube_id,start_time,caption", "line 2: not a row"),
        (["1,x,0,rain"], "audiocap_id,youtube_id,start_time,caption", "none of the 1 sounds"),
    ],
)
def test_tables_that_make_no_sense(tmp_path, rows, header, message):
    with pytest.raises(ValueError, match=message):
        read(table(tmp_path / "t.csv", *rows, header=header), tmp_path)


def test_sources_that_make_no_sense(tmp_path):
    (tmp_path / "text.csv").write_bytes(b"\xff\xfe\x00")
    for source, message in (
        ("nowhere", "give a folder"),
        (tmp_path, "0 sounds; two are the least"),
        ("demo-world", "say how many --clips"),
        (tmp_path / "text.csv", "no CSV in UTF-8"),
    ):
        with pytest.raises(ValueError, match=message):
            read(source, tmp_path)


def test_two_files_of_one_name(tmp_path):
    sound(tmp_path / "a.wav"), sound(tmp_path / "a.flac")
    with pytest.raises(ValueError, match="a.flac with another ending"):
        read(tmp_path, tmp_path)
