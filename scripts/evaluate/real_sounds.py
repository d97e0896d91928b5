"""Ten real sounds to fine-tune on, and real sounds of other families to judge clips by.

apt-get download sonic-pi-samples
python -m scripts.evaluate.real_sounds sonic-pi-samples_*_all.deb --out out/real

The sounds are Sonic Pi's, as Debian 12 packs them: recordings from freesound.org under CC0, whose
sources are listed in the package's usr/share/sonic-pi/samples/README.md. Their names begin with a
family. OUT/train has ten strokes of a tabla and metadata.csv; OUT/keep.txt has captions of the demo
model's world, which it should not forget meanwhile; OUT/judged has a folder for each family, the
other strokes among them, and for the families of that world as they are synthesised. All are as
that world is recorded: 2.56 s, mono, 16 kHz, as loud, over the noise floor of its room. So nothing
is told apart by these, and the demo model's autoencoder, which has never seen digital silence, can
encode them.
"""

import argparse
import csv
import io
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from audiolitefocus.atomic import atomic_file
from audiolitefocus.audio.files import write_sound
from audiolitefocus.audio.samples import load_recording
from audiolitefocus.checkpoints.bundle import sha256
from scripts.demo.world.sounds import FAMILIES, HELD_OUT, RATE, ROOM, draw, level, sound

DIGEST = "25f2312d2fae005e6ad0f4726b8ed3084e776006a5a132083506e960224ac79d"
ADDRESS = (
    "https://deb.debian.org/debian/pool/main/s/sonic-pi/sonic-pi-samples_3.2.2~repack-8_all.deb"
)
FAMILY, CAPTION = "tabla", "a tabla"
STROKES = ("dhec", "ghe1", "ghe3", "ghe7", "na", "na_s", "tas1", "te1", "te_m", "tun1")
BOTH = ("loop_tabla",)  # left out: another family by its name, and a tabla
SYNTHESISED, SECONDS = 8, 2.56  # sounds of each of the demo model's families
KEPT = 100  # captions of its world


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("package", type=Path, help="sonic-pi-samples_3.2.2~repack-8_all.deb")
    parser.add_argument("--out", type=Path, required=True, help="folder for the sounds")
    chosen = parser.parse_args()
    try:
        trained, judged = write_sounds(chosen.package, chosen.out)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"{trained} sounds to train on in {chosen.out / 'train'}")
    print(f"{judged} sounds to judge by in {chosen.out / 'judged'}")


def write_sounds(package: Path, folder: Path) -> tuple[int, int]:
    """Write all sounds; returns how many there are to train on and to judge by.

    Raises:
        ValueError: another file than the package of that version.
    """
    if not package.is_file() or sha256(package) != DIGEST:
        raise ValueError(f"{package} is not the package that this needs: download {ADDRESS}")
    train, judged = folder / "train", folder / "judged"
    strokes = {f"{FAMILY}_{name}" for name in STROKES}
    counts = [0, 0]
    for name, content in recordings(package):
        if name in BOTH:
            continue
        place = train if name in strokes else judged / name.partition("_")[0]
        place.mkdir(parents=True, exist_ok=True)
        waveform = load_recording(io.BytesIO(content), RATE).numpy()
        write_sound(place / f"{name}.wav", in_the_room(waveform, sum(counts)), RATE)
        counts[place != train] += 1
    with atomic_file(train / "metadata.csv") as part, part.open("w", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["file_name", "caption"])
        rows.writerows([f"{name}.wav", CAPTION] for name in sorted(strokes))
    captions = dict.fromkeys(draw(seed).caption for seed in range(2 * KEPT))
    with atomic_file(folder / "keep.txt") as part:
        part.write_text("\n".join([*captions][:KEPT]) + "\n", encoding="utf-8")
    for family in FAMILIES:
        place = judged / f"demo {family}"
        place.mkdir(exist_ok=True)
        for number in range(SYNTHESISED):
            waveform = sound(family, seed=HELD_OUT + number).render(SECONDS)
            write_sound(place / f"{number}.wav", waveform, RATE)
            counts[1] += 1
    return counts[0], counts[1]


def in_the_room(waveform: np.ndarray, seed: int) -> np.ndarray:
    """The beginning of a sound, (40960,), as the demo model's world is recorded."""
    count = round(SECONDS * RATE)
    waveform = level(waveform[:count])
    noise = ROOM * np.random.default_rng(seed).standard_normal(count)
    return (noise + np.pad(waveform, (0, count - len(waveform)))).astype(np.float32)


def recordings(package: Path) -> Iterator[tuple[str, bytes]]:
    """Names, without an ending, and contents of the package's sounds."""
    with tarfile.open(fileobj=io.BytesIO(data_of(package))) as files:
        for entry in files:
            path = Path(entry.name)
            if path.suffix == ".flac" and (file := files.extractfile(entry)) is not None:
                yield path.stem, file.read()


def data_of(package: Path) -> bytes:
    """The archive data.tar in a Debian package, compressed: see deb(5) and ar(5)."""
    with package.open("rb") as file:
        file.seek(len(b"!<arch>\n"))
        while header := file.read(60):
            name, size = header[:16], int(header[48:58])
            content = file.read(size + size % 2)  # entries begin at even places
            if name.startswith(b"data.tar"):
                return content[:size]
    raise ValueError(f"{package} has no data.tar")


if __name__ == "__main__":
    main()
