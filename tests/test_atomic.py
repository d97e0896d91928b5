"""Writing beside the target and renaming: what appears, what stays, and with which permissions."""

import os
import stat

import pytest

from audiolitefocus.atomic import atomic_file, atomic_files, atomic_folder, check_room


@pytest.fixture
def umask():
    before = os.umask(0o027)
    yield
    os.umask(before)


def mode(path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_permissions_are_those_of_the_umask(tmp_path, umask):
    with atomic_file(tmp_path / "x") as part:
        part.write_text("x")
    with atomic_folder(tmp_path / "bundle") as folder:
        (folder / "t5").mkdir()
        (folder / "t5" / "weights").touch(mode=0o600)
    assert mode(tmp_path / "x") == mode(tmp_path / "bundle" / "t5" / "weights") == 0o640
    assert mode(tmp_path / "bundle") == mode(tmp_path / "bundle" / "t5") == 0o750


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_leaves_what_was_there(error, tmp_path):
    first, second, bundle = tmp_path / "a", tmp_path / "b", tmp_path / "bundle"
    first.write_text("before")
    with pytest.raises(error), atomic_files(first, second) as parts:
        parts[0].write_text("after")
        raise error
    with pytest.raises(error), atomic_folder(bundle) as folder:
        (folder / "config.json").touch()
        raise error
    assert os.listdir(tmp_path) == ["a"] and first.read_text() == "before"


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_a_bundle_is_put_back_if_the_new_one_fails(error, tmp_path, monkeypatch):
    bundle, replace = tmp_path / "bundle", os.replace
    with atomic_folder(bundle) as folder:
        (folder / "config.json").write_text('{"format": 1, "unet": 1}')

    def failing(source, target):
        if target == bundle and source.suffix == ".part":
            raise error("no")
        replace(source, target)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(error), atomic_folder(bundle, force=True):
        pass
    assert os.listdir(tmp_path) == ["bundle"] and os.listdir(bundle) == ["config.json"]


def test_names_as_long_as_a_file_system_takes(tmp_path):
    for name in ("x" * 251 + ".wav", "\N{GUITAR}" * 60):
        with atomic_file(tmp_path / name) as part:
            part.write_text(name)
        assert (tmp_path / name).read_text() == name


def test_a_bundle_that_was_moved_aside_comes_back_to_its_own_place(tmp_path):
    left = tmp_path / ".a.b.01234567.old"
    left.mkdir()
    for name, comes_back in (("a", False), ("a.b", True)):
        with atomic_folder(tmp_path / name, force=True):
            assert left.exists() != comes_back
    assert not left.exists()


@pytest.mark.parametrize("config", [None, '{"name": "my package"}', "[]", ""])
def test_a_folder_that_is_not_a_bundle_is_never_replaced(config, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / ("config.json" if config else "chapter")).write_text(config or "")
    before = os.listdir(tmp_path / "thesis")
    with pytest.raises(ValueError, match="not a bundle"):
        with atomic_folder(tmp_path / "thesis", force=True):
            pytest.fail("the block ran")
    assert os.listdir(tmp_path / "thesis") == before


def test_room_on_the_disk(tmp_path):
    check_room(tmp_path, 1)
    with pytest.raises(OSError, match="bytes free, and 1,000,000,000,000,000,000 needed"):
        check_room(tmp_path, 10**18)
