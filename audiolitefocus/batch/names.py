"""Names of sound files: given ones are kept, those made from a prompt are safe on every system."""

import re
import unicodedata

from audiolitefocus.audio.formats import SOUND_SUFFIXES

RESERVED = re.compile("con|prn|aux|nul|conin\\$|conout\\$|(com|lpt)[0-9¹²³]")  # of Windows
SEPARATORS = '<>:"/\\|?*'  # what one system or another does not allow
MAX_BYTES = 200  # of names, which end at 255 with what is added to them while they are written
SLUG_CHARACTERS, SLUG_BYTES = 48, 144


def check_name(name: str) -> str:
    """A name that was given, with ".wav" if it does not end as a sound file.

    Raises:
        ValueError: a name that Linux, macOS or Windows do not allow or read in another way.
    """
    fault = None
    if not name or name != name.strip() or name.endswith("."):
        fault = "must not be empty, or begin or end with a space or end with a dot"
    elif name.startswith("."):
        fault = "files that begin with a dot are hidden"
    elif found := [c for c in name if c in SEPARATORS or unicodedata.category(c)[0] == "C"]:
        fault = f"must not hold {found[0]!r}: it is a name, not a path"
    elif RESERVED.fullmatch(name.split(".")[0].strip().lower()):
        fault = "is the name of a device on Windows"
    elif len(name.encode()) > MAX_BYTES:
        fault = f"is longer than {MAX_BYTES} bytes"
    if fault:
        raise ValueError(f"name {name!r}: {fault}")
    return name if name.lower().endswith(SOUND_SUFFIXES) else f"{name}.wav"


def slug(text: str) -> str:
    """A name made from a text: its letters and digits, of every script, and hyphens."""
    kept = (
        c if unicodedata.category(c)[0] in "LNM" else " "
        for c in unicodedata.normalize("NFKC", text).lower()
    )
    words = "-".join("".join(kept).split())[:SLUG_CHARACTERS]
    words = words.encode()[:SLUG_BYTES].decode(errors="ignore").strip("-") or "clip"
    return f"{words}-clip" if RESERVED.fullmatch(words) else words


def key(stem: str) -> str:
    """The same for names that some system takes for the same: another case or composition."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", stem).casefold())
