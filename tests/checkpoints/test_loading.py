"""From what a user names to a bundle: names, folders, the hub, devices and dtypes."""

import pytest
import torch

from audiolitefocus import AudioLDM2Pipeline
from audiolitefocus.checkpoints.resolve import resolve_bundle
from audiolitefocus.config import demo_folder
from audiolitefocus.runtime import choose_device, choose_dtype
from tests.checkpoints.test_hub import cache, files_of, hub  # noqa: F401  (fixtures)
from tests.support.hub_server import REPO


def test_the_demo_needs_no_download():
    assert resolve_bundle("demo") == demo_folder()


def test_a_folder_is_itself(tiny_bundle):
    assert resolve_bundle(tiny_bundle) == tiny_bundle


@pytest.mark.parametrize("name", ["nonesuch", "./no/where", "a/b/c", "/no/such", "", "~/models"])
def test_unknown_models_are_named_with_what_there_is(name):
    with pytest.raises(ValueError, match="none of the names demo, audioldm2"):
        resolve_bundle(name)


def test_a_repository_is_fetched_and_converted_once(hub, cache, diffusers_folder):  # noqa: F811
    commit = hub.add(REPO, files_of(diffusers_folder))
    options = {"cache_dir": cache, "device": "cpu"}
    pipe = AudioLDM2Pipeline.from_pretrained(REPO, **options)
    assert pipe.folder.name == commit and pipe.config.provenance["revision"] == commit
    assert pipe.config.name == REPO
    clip = pipe("a bell", audio_length_in_s=0.64, num_inference_steps=1).audios
    assert clip.shape == (1, 10240)
    written = (pipe.folder / "config.json").stat().st_mtime_ns
    asked = len(hub.bodies())
    again = AudioLDM2Pipeline.from_pretrained(REPO, **options)
    assert again.folder == pipe.folder and len(hub.bodies()) == asked
    assert (again.folder / "config.json").stat().st_mtime_ns == written
    offline = AudioLDM2Pipeline.from_pretrained(REPO, local_files_only=True, **options)
    assert offline.folder == pipe.folder


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
