"""What is built is whole: the wheel, the source distribution, and a command installed from it."""

import os
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest
import soundfile

pytest.importorskip("hatchling", reason="hatchling builds the package")

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("audiolitefocus", "docs", "scripts", "tests", "weights/demo")
FILES = ("README.md", "LICENSE", "CHANGELOG.md", "Makefile", "constraints.txt", "pyproject.toml")


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """A folder with the source distribution, and the wheel that is built from it alone."""
    folder = tmp_path_factory.mktemp("built")
    build(ROOT, "sdist", folder)
    with tarfile.open(next(folder.glob("*.tar.gz"))) as archive:
        archive.extractall(folder, filter="data")
    build(next(folder.glob("audiolitefocus-*/")), "wheel", folder)
    return folder


def build(source: Path, target: str, folder: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "--target", target, "-d", str(folder)]
    subprocess.run(command, cwd=source, check=True, capture_output=True)


def wheel_in(folder: Path) -> Path:
    return next(folder.glob("*.whl"))


def files_of(folder: Path) -> set[str]:
    """Files that are not made by running something, relative to the folder."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix()
        for path in found
        if "__pycache__" not in path.parts and path.suffix != ".pyc"
    }


def test_the_wheel_has_the_package_and_the_demo_model_and_nothing_else(built):
    expected = {f"audiolitefocus/{name}" for name in files_of(ROOT / "audiolitefocus")}
    expected |= {f"audiolitefocus/demo/{name}" for name in files_of(ROOT / "weights/demo")}
    with zipfile.ZipFile(wheel_in(built)) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
        assert names == expected and "audiolitefocus/py.typed" in names
        model = wheel.read("audiolitefocus/demo/unet.safetensors")
    assert model == (ROOT / "weights/demo/unet.safetensors").read_bytes()


def test_the_wheel_says_what_it_needs_and_brings_the_command(built):
    from audiolitefocus import __version__

    with zipfile.ZipFile(wheel_in(built)) as wheel:
        about = {Path(name).name: name for name in wheel.namelist() if ".dist-info/" in name}
        metadata = message_from_bytes(wheel.read(about["METADATA"]))
        commands = wheel.read(about["entry_points.txt"]).decode()
        assert "LICENSE" in about
    assert (metadata["Name"], metadata["Version"]) == ("audiolitefocus", __version__)
    assert {"plot", "web", "test", "dev"} <= set(metadata.get_all("Provides-Extra"))
    plain = [need for need in metadata.get_all("Requires-Dist") if "extra ==" not in need]
    assert any(need.startswith("torch") for need in plain)
    assert not any(need.startswith(("gradio", "fastapi", "pytest")) for need in plain)
    assert "audiolitefocus = audiolitefocus.cli:main" in commands


def test_the_source_distribution_can_run_its_own_tests(built):
    source = next(built.glob("audiolitefocus-*/"))
    for folder in FOLDERS:
        assert files_of(ROOT / folder) <= files_of(source / folder), folder
    assert all((source / name).is_file() for name in FILES)
    assert (source / ".ci/run").stat().st_mode & 0o100


@pytest.mark.slow
def test_an_installed_wheel_makes_a_clip_without_the_checkout(built, tmp_path):
    environment, empty = tmp_path / "environment", tmp_path / "empty"
    empty.mkdir()
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    # the packages that it needs, but not the checkout, which these have as an editable install
    packages = next((environment / "lib").glob("python*/site-packages"))
    for path in Path(soundfile.__file__).parent.iterdir():
        if "audiolitefocus" not in path.name and path.name != "__pycache__":
            (packages / path.name).symlink_to(path)
    install = [sys.executable, "-m", "pip", "--python", str(environment), "install", "--no-deps"]
    subprocess.run([*install, "--no-index", "--quiet", str(wheel_in(built))], check=True)
    variables = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}

    def command(*arguments: str) -> str:
        program = environment / "bin" / "audiolitefocus"
        result = subprocess.run(
            [program, *arguments], cwd=empty, env=variables, capture_output=True, text=True
        )
        assert result.returncode == 0, result.stderr
        return result.stdout

    assert "audiolitefocus" in command("--version")
    command("generate", "rain", "--model", "demo", "--duration", "0.64", "--steps", "2")
    [sound] = empty.glob("*.wav")
    assert soundfile.info(sound).frames == 10240
    assert "demo" in command("info", "demo")
