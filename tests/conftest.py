"""Options, and the tiny checkpoints that many tests share."""

from pathlib import Path

import pytest
import torch

# Files that take longest, which begin first: else a process waits for one of them at the end.
LONGEST = (
    "test_ray.py",
    "test_page.py",
    "test_kills.py",
    "test_demo_sounds.py",
    "test_benchmark.py",
    "test_loop.py",
    "test_held.py",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run the slow tests")
    parser.addoption("--weights", type=Path, metavar="FOLDER", help="a bundle of trained weights")


def pytest_configure(config: pytest.Config) -> None:
    if not config.getoption("--slow"):
        torch.set_num_threads(1)  # on tiny tensors, threads wait for each other most of the time


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in LONGEST)
    absent = {
        "slow": not config.getoption("--slow") and "give --slow",
        "cuda": not torch.cuda.is_available() and "no NVIDIA GPU here",
        "cuda_build": not torch.version.cuda and "PyTorch is not built for CUDA",
        "weights": config.getoption("--weights") is None and "give --weights FOLDER",
    }
    for item in items:
        for marker, reason in absent.items():
            if reason and item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def weights(request: pytest.FixtureRequest) -> Path:
    """The bundle given with --weights."""
    return request.config.getoption("--weights")


@pytest.fixture(scope="session")
def tiny_pipeline():
    """An `AudioLDM2Pipeline` of diffusers, tiny, with random weights."""
    from tests.support.checkpoints import diffusers_pipeline

    return diffusers_pipeline()


@pytest.fixture(scope="session")
def diffusers_folder(tiny_pipeline, tmp_path_factory) -> Path:
    """`tiny_pipeline` on disk. Read only."""
    folder = tmp_path_factory.mktemp("source") / "tiny-audioldm2"
    tiny_pipeline.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def original_file(tiny_pipeline, tmp_path_factory) -> Path:
    """The same networks as an original checkpoint, with all the keys nobody needs. Read only."""
    from tests.support.original_layout import original_checkpoint

    path = tmp_path_factory.mktemp("source") / "tiny-audioldm2.pth"
    torch.save({"state_dict": original_checkpoint(tiny_pipeline), "epoch": 1}, path)
    return path


@pytest.fixture(scope="session")
def tiny_bundle(diffusers_folder, tmp_path_factory) -> Path:
    """`diffusers_folder` converted, with the heads that its config says. Read only."""
    from audiolitefocus.checkpoints.convert import convert_checkpoint

    folder = tmp_path_factory.mktemp("bundles") / "tiny"
    convert_checkpoint(diffusers_folder, folder, heads="config")
    return folder


@pytest.fixture(scope="session")
def pipe(tiny_bundle):
    """A pipeline on `tiny_bundle`."""
    from audiolitefocus import AudioLDM2Pipeline

    return AudioLDM2Pipeline.from_pretrained(tiny_bundle, device="cpu")
