"""Families by the nearest known sound, and the real sounds of a Debian package."""

import csv
import io
import tarfile

import numpy as np
import pytest
import soundfile

from audiolitefocus.audio.files import write_sound
from scripts.demo.world.sounds import draw
from scripts.evaluate import real_sounds
from scripts.evaluate.judge import Judge


class Levels:
    """Embeds a sound as the level of each third of it."""

    name, rate = "levels", 16000

    def embed(self, waveform) -> np.ndarray:
        return np.array([part.abs().mean() for part in waveform.chunk(3)])


def ramp(places: list[float]) -> np.ndarray:
    return np.repeat(np.array(places, dtype=np.float32), 1000)


@pytest.fixture
def known(tmp_path):
    folder = tmp_path / "known"
    for family, places in {"early": [0.9, 0.1, 0.1], "late": [0.1, 0.1, 0.9]}.items():
        (folder / family).mkdir(parents=True)
        for number in range(3):
            levels = [place - 0.02 * number for place in places]
            write_sound(folder / family / f"{number}.wav", ramp(levels), 16000)
    return folder


def test_a_sound_is_of_the_family_of_the_nearest(known, tmp_path):
    judge = Judge.read(known, Levels(), tmp_path / "cache")
    assert judge.families.tolist() == ["early"] * 3 + ["late"] * 3
    assert judge.paths[4] == known / "late" / "1.wav"
    new = np.array([[0.5, 0.2, 0.1], [0.0, 0.4, 0.5]])
    assert judge.family_of(new).tolist() == ["early", "late"]


def test_a_sound_does_not_judge_itself(known, tmp_path):
    write_sound(known / "late" / "3.wav", ramp([0.9, 0.1, 0.11]), 16000)  # under a wrong name
    judge = Judge.read(known, Levels(), tmp_path / "cache")
    own = np.arange(len(judge.paths))
    assert judge.family_of(judge.embedded).tolist() == judge.families.tolist()
    found = judge.family_of(judge.embedded, own)
    assert found[6] == "early" and (found[3:6] == "late").all()


def test_one_family_alone_is_refused(known, tmp_path):
    with pytest.raises(ValueError, match="give two folders or more"):
        Judge.read(known / "late", Levels(), tmp_path / "cache")


def package(path, names: list[str]):
    """A Debian package with short sounds of these names."""
    archive, sound = io.BytesIO(), io.BytesIO()
    soundfile.write(sound, ramp([0.5, -0.5]), 44100, format="FLAC")
    with tarfile.open(fileobj=archive, mode="w:xz") as files:
        for name in names:
            entry = tarfile.TarInfo(f"./usr/share/sonic-pi/samples/{name}")
            entry.size = len(sound.getvalue())
            files.addfile(entry, io.BytesIO(sound.getvalue()))
    parts = {"debian-binary": b"2.0", "data.tar.xz": archive.getvalue()}  # the first is odd
    content = b"!<arch>\n"
    for name, part in parts.items():
        header = f"{name:16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(part):<10}`\n"
        content += header.encode() + part + b"\n" * (len(part) % 2)
    path.write_bytes(content)
    return path


def test_sounds_are_taken_from_a_package_by_their_names(tmp_path, monkeypatch):
    strokes = [f"tabla_{name}.flac" for name in real_sounds.STROKES]
    others = ["tabla_re.flac", "loop_tabla.flac", "bd_808.flac", "README.md"]
    deb = package(tmp_path / "a.deb", strokes + others)
    with pytest.raises(ValueError, match="is not the package that this needs: download https:"):
        real_sounds.write_sounds(deb, tmp_path / "out")
    monkeypatch.setattr(real_sounds, "DIGEST", real_sounds.sha256(deb))
    monkeypatch.setattr(real_sounds, "SYNTHESISED", 1)
    assert real_sounds.write_sounds(deb, tmp_path / "out") == (10, 2 + len(real_sounds.FAMILIES))
    names = {path.name for path in (tmp_path / "out" / "judged").iterdir()}
    assert {"tabla", "bd", "demo rain"} <= names and "loop" not in names
    kept = (tmp_path / "out" / "keep.txt").read_text().splitlines()
    assert len(set(kept)) == 100 and set(kept) <= {draw(seed).caption for seed in range(200)}
    rows = list(csv.DictReader((tmp_path / "out" / "train" / "metadata.csv").open()))
    assert len(rows) == 10 and {row["caption"] for row in rows} == {"a tabla"}
    info = soundfile.info(tmp_path / "out" / "train" / rows[0]["file_name"])
    assert info.samplerate == 16000 and info.channels == 1
