"""Places elsewhere: files appear whole, what is there counts, and others are refused."""

import sys
from pathlib import Path

import fsspec
import numpy as np
import pytest
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from audiolitefocus import AudioOutput, GenerationOptions
from audiolitefocus.batch.clips import is_missing, save_clip
from audiolitefocus.batch.requests import ClipRequest
from audiolitefocus.batch.stores import Elsewhere, Folder, open_store

CLIP = ClipRequest("a", Path("a.wav"), GenerationOptions(seed=1, audio_length_in_s=0.64))
SOUND = AudioOutput(np.full((1, 160), 0.5, np.float32), 16000)


@pytest.fixture
def memory():
    """A place in memory, empty before and after."""
    MemoryFileSystem.store.clear()
    yield open_store("memory://bucket/clips")
    MemoryFileSystem.store.clear()


def publish(store, pipe, clip=CLIP) -> None:
    with store.on_disk([clip]) as (local,):
        save_clip(pipe, local, SOUND)
        store.publish(local.path)


def missing(store, pipe, clip=CLIP, *, force=False) -> bool:
    with store.on_disk([clip]) as (local,):
        return is_missing(pipe.config, local, force=force)


def test_folders_are_paths_and_urls_of_files():
    assert open_store("clips") == Folder(Path("clips")) == open_store(Path("clips"))
    assert open_store("file:///data/clips") == Folder(Path("/data/clips"))


def test_a_clip_is_published_once_and_found_there(pipe, memory):
    assert missing(memory, pipe)
    publish(memory, pipe)
    names = sorted(Path(name).name for name in memory.files.find(memory.root))
    assert names == ["a.json", "a.wav"]
    assert not missing(memory, pipe) and missing(memory, pipe, force=True)
    assert memory.shown(CLIP.path) == "memory://bucket/clips/a.wav"


def test_files_of_others_are_in_the_way(pipe, memory):
    memory.files.pipe_file(f"{memory.root}/a.wav", b"a recording")
    with pytest.raises(ValueError, match="was not made by this program"):
        missing(memory, pipe, force=True)


@pytest.mark.parametrize("sibling, there", [(None, True), ("a.flac", False)])
def test_a_recipe_that_a_killed_worker_left_is_not_in_the_way(sibling, there, pipe, memory):
    publish(memory, pipe)
    memory.files.rm_file(f"{memory.root}/a.wav")
    if sibling:
        memory.files.pipe_file(f"{memory.root}/{sibling}", b"its sound")
        with pytest.raises(ValueError, match="a.json exists, and was not made"):
            missing(memory, pipe)
    else:
        assert missing(memory, pipe)


@pytest.mark.parametrize("protocol, order", [("s3", "put"), ("sftp", "rename")])
def test_files_appear_whole_and_the_recipe_first(protocol, order, pipe, tmp_path, monkeypatch):
    """By the calls that a file system gets; what s3fs does with them is not tested here."""
    calls = []

    class Watched(LocalFileSystem):
        cachable = False  # fsspec would give the same one again

        def put_file(self, source, target, **options):
            calls.append(("put", Path(target).name))
            super().put_file(source, target, **options)

        def mv(self, source, target, **options):
            assert Path(source).stat().st_size > 0
            calls.append(("rename", Path(target).name))
            super().mv(source, target, **options)

    monkeypatch.setattr(fsspec.core, "url_to_fs", lambda url: (Watched(), str(tmp_path)))
    store = Elsewhere(f"{protocol}://x/y")
    store.create()
    publish(store, pipe)
    publish(store, pipe)  # over what is there
    named = [name for call, name in calls if call == order]
    assert named == ["a.json", "a.wav"] * 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "a.wav"]


def test_a_transfer_that_fails_leaves_no_part(pipe, memory, monkeypatch):
    def broken(*_):
        raise OSError("connection lost")

    with monkeypatch.context() as patch:
        patch.setattr(MemoryFileSystem, "mv", broken)
        with pytest.raises(OSError, match="connection lost"):
            publish(memory, pipe)
    assert not memory.files.find(memory.root)


def test_a_place_without_permission_is_found_at_once(memory, monkeypatch):
    class NoCredentials(Exception):
        pass

    def refuse(*_):
        raise NoCredentials("unable to\nlocate credentials")

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", refuse)
    with pytest.raises(OSError, match="memory://bucket/clips cannot be written to: unable to loc"):
        memory.create()


def test_a_mark_is_seen_until_it_is_taken_away(tmp_path, memory):
    for store in (memory, Folder(tmp_path)):
        store.create()
        store.mark(".x.part")
        assert store.has(".x.part") and not store.has(".y.part")
        store.unmark(".x.part")
        store.unmark(".x.part")
        assert not store.has(".x.part")


@pytest.mark.parametrize(
    "url, message",
    [
        ("nothing://x", "must be a folder or begin with one of abfs://, "),
        ("s3://bucket/x", "s3fs"),
        ("https://example.org/x", "must be a folder or begin with"),
        ("simplecache::s3://bucket/x", "must be a folder or begin with"),
    ],
)
def test_places_that_cannot_be_written_to_are_refused(url, message, monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)  # as if it were not installed
    with pytest.raises(ValueError, match=message):
        open_store(url)
