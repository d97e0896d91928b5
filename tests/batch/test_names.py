"""Names of sound files: which are kept, which are refused, and those made from prompts."""

import os
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audiolitefocus.batch.names import MAX_BYTES, check_name, key, slug

many = settings(max_examples=300, deadline=None, derandomize=True)
WINDOWS = set('<>:"/\\|?*') | {chr(n) for n in range(32)}
PORTS = {f"{port}{number}" for port in ("com", "lpt") for number in range(10)}
DEVICES = {"con", "prn", "aux", "nul", *PORTS}


def assert_allowed_everywhere(name: str) -> None:
    """The rules of Linux, macOS and Windows, written down a second time."""
    assert name and not WINDOWS & set(name) and name not in (".", "..")
    assert not name.startswith((" ", ".")) and not name.endswith((" ", "."))
    assert name.split(".")[0].lower() not in DEVICES
    assert len(name.encode()) <= MAX_BYTES + len(".wav") and len(name) < 250


@many
@given(st.text() | st.text(alphabet="aB.: /\\|con1\0\n雨é"))
def test_a_name_is_kept_as_it_is_or_refused(name):
    try:
        kept = check_name(name)
    except ValueError as error:
        assert len(str(error).splitlines()) == 1
        return
    assert kept in (name, f"{name}.wav")
    assert_allowed_everywhere(kept)


@many
@given(st.text(min_size=1))
def test_a_name_made_from_a_prompt_is_allowed_everywhere(text):
    name = slug(text)
    assert_allowed_everywhere(name)
    assert check_name(f"{name}-1.wav") == f"{name}-1.wav"


@many
@given(st.text(alphabet=st.characters(categories=["L", "N", "M"]), min_size=1, max_size=12))
def test_names_from_prompts_keep_letters_of_every_script(text):
    expected = unicodedata.normalize("NFKC", text).lower()
    if all(unicodedata.category(c)[0] in "LNM" for c in expected) and expected not in DEVICES:
        assert slug(text) in (expected, f"{expected}-clip")


@pytest.mark.parametrize(
    "name", ["雨.wav", "YUE3XnVFodMI_230000.wav", "Big Bell", "x.FLAC", "a.b.ogg", "-x", "été.wav"]
)
def test_given_names_are_kept(name, tmp_path):
    kept = check_name(name)
    assert kept.startswith(name)
    (tmp_path / kept).touch()
    assert os.listdir(tmp_path) == [kept]


@pytest.mark.parametrize(
    "name, reason",
    [
        ("../x", "hidden"),
        ("x/../y", "not a path"),
        ("a/b.wav", "not a path"),
        ("a\\b", "not a path"),
        ("a:b", "':'"),
        ("a\nb", "not a path"),
        ("CON", "device"),
        ("lpt1.wav", "device"),
        (".x", "hidden"),
        ("x.", "dot"),
        (" x", "space"),
        ("", "empty"),
        ("x" * 201, "200 bytes"),
        ("雨" * 70, "200 bytes"),
    ],
)
def test_other_names_are_refused_with_the_reason(name, reason):
    with pytest.raises(ValueError, match=reason):
        check_name(name)


def test_names_that_some_system_takes_for_the_same():
    assert key("Rain") == key("rAIN") and key("é") == key("e\u0301") and key("ß") == key("SS")
    assert key("rain") != key("rain-2")


def test_names_made_from_prompts():
    assert slug("A Bell, over rain!") == "a-bell-over-rain" and slug("雨の音") == "雨の音"
    assert slug("../../etc/passwd") == "etc-passwd" and slug("🎸") == "clip"
    assert slug("CON") == "con-clip" and len(slug("dog " * 99)) <= 48
