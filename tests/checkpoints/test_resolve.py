"""From what a user names to a bundle: names, folders, the hub, devices and dtypes."""

import errno
import subprocess
import sys

import pytest
import torch

from audiolitefocus import AudioLDM2Pipeline, convert_checkpoint
from audiolitefocus.audio.files import read_sound
from audiolitefocus.checkpoints.resolve import resolve_bundle
from audiolitefocus.config import demo_folder
from audiolitefocus.runtime import choose_device, choose_dtype
from tests.support.checkpoints import linked
from tests.support.hub_server import COMMIT, REPO, files_of, fill_cache


def test_the_demo_needs_no_download():
    assert resolve_bundle("demo") == demo_folder()


def test_a_folder_is_itself(tiny_bundle):
    assert resolve_bundle(tiny_bundle) == tiny_bundle


@pytest.mark.parametrize("name", ["nonesuch", "./no/where", "a/b/c", "/no/such", "", "~/models"])
def test_unknown_models_are_named_with_what_there_is(name):
    with pytest.raises(ValueError, match="none of the names demo, audioldm2"):
        resolve_bundle(name)


def test_a_repository_is_converted_once(tmp_path, diffusers_folder):
    fill_cache(tmp_path, files_of(diffusers_folder))
    options = {"cache_dir": tmp_path, "local_files_only": True, "device": "cpu"}
    pipe = AudioLDM2Pipeline.from_pretrained(REPO, **options)
    assert pipe.folder.name == pipe.config.provenance["revision"] == COMMIT
    assert pipe.config.name == REPO
    clip = pipe("a bell", audio_length_in_s=0.64, num_inference_steps=1).audios
    assert clip.shape == (1, 10240)
    written = (pipe.folder / "config.json").stat().st_mtime_ns
    again = AudioLDM2Pipeline.from_pretrained(REPO, **options)
    assert again.folder == pipe.folder
    assert (again.folder / "config.json").stat().st_mtime_ns == written


def test_loading_a_bundle_does_not_import_the_converter():
    script = (
        "import sys; from audiolitefocus import AudioLDM2Pipeline\n"
        "AudioLDM2Pipeline.from_pretrained('demo', device='cpu')\n"
        "assert 'audiolitefocus.checkpoints.convert' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_dtypes():
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert choose_dtype(None, cuda) == choose_dtype("auto", cpu) == torch.float32
    assert choose_dtype("auto", cuda) == choose_dtype("bfloat16", cpu) == torch.bfloat16
    for wrong in ("int8", torch.int8, "half", 16):
        with pytest.raises(ValueError, match="float32, bfloat16, float16"):
            choose_dtype(wrong, cpu)


def test_devices():
    assert choose_device("cpu") == choose_device(torch.device("cpu")) == torch.device("cpu")
    assert choose_device("auto").type in ("cuda", "mps", "cpu")
    for wrong in ("tpu", "gpu0", "meta"):
        with pytest.raises(ValueError, match="auto, cuda, mps, cpu"):
            choose_device(wrong)
    with pytest.raises(ValueError, match="not present"):
        choose_device("cuda:63")


def test_a_checkpoint_file_is_not_a_model(tmp_path):
    (tmp_path / "audioldm2.pth").touch()
    with pytest.raises(ValueError, match="is a file: convert it first: audiolitefocus convert"):
        resolve_bundle(tmp_path / "audioldm2.pth")


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


@pytest.mark.parametrize(
    "name", ["unet.safetensors", "t5/model.safetensors", "config.json", "clap/config.json"]
)
def test_a_git_lfs_pointer_is_called_that(name, tiny_bundle, tmp_path):
    bundle = linked(tiny_bundle, tmp_path / "bundle")
    (bundle / name).unlink()
    (bundle / name).write_bytes(POINTER)
    with pytest.raises(ValueError, match=f"{name} is a Git LFS pointer.*git lfs pull"):
        AudioLDM2Pipeline.from_pretrained(bundle, device="cpu").encode_prompt("rain")


def test_a_git_lfs_pointer_to_a_pickle_or_a_sound_is_called_that(tmp_path):
    for name in ("x.pth", "x.wav"):
        (tmp_path / name).write_bytes(POINTER)
    with pytest.raises(ValueError, match="x.pth is a Git LFS pointer"):
        convert_checkpoint(tmp_path / "x.pth", tmp_path / "bundle")
    with pytest.raises(ValueError, match="x.wav is a Git LFS pointer"):
        read_sound(tmp_path / "x.wav", 16000)


@pytest.mark.parametrize("kind", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_a_cache_that_cannot_be_written_is_explained(kind, tmp_path, diffusers_folder, monkeypatch):
    def refuse(*_, **__):
        raise OSError(kind, "no", str(tmp_path / "models--x"))

    fill_cache(tmp_path, files_of(diffusers_folder))
    options = {"cache_dir": tmp_path, "local_files_only": True}
    for place in ("checkpoints.convert.convert_checkpoint", "checkpoints.hub.snapshot_download"):
        with monkeypatch.context() as patch:
            patch.setattr(f"audiolitefocus.{place}", refuse)
            with pytest.raises(OSError, match="cache cannot be written.*models--x.*HF_HOME"):
                resolve_bundle(REPO, **options)
