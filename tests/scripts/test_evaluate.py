"""scripts/evaluate.py: how networks embed sounds, and whole evaluations with tiny ones."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from audiolitefocus import AudioLDM2Pipeline
from audiolitefocus.audio.files import read_sound, write_sound
from scripts.demo.world import sounds
from scripts.evaluate import evaluate
from scripts.evaluate.embedders import Clap, Network, embed_all
from scripts.evaluate.results import markdown

FLOAT32 = 1e-5
QUICK = ("--device", "cpu", "--steps", "2", "--sampler", "dpm++", "--resamples", "100")


@pytest.fixture(scope="module")
def classifier(tmp_path_factory) -> str:
    """A tiny audio spectrogram transformer with random weights for 0.64 s."""
    folder = tmp_path_factory.mktemp("classifier")
    torch.manual_seed(0)
    config = transformers.ASTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        frequency_stride=16,
        time_stride=16,
        max_length=64,
        num_mel_bins=32,
        num_labels=5,
        initializer_range=0.5,
    )
    transformers.ASTForAudioClassification(config).save_pretrained(folder)
    extractor = transformers.ASTFeatureExtractor(num_mel_bins=32, max_length=64)
    extractor.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def pipe() -> AudioLDM2Pipeline:
    return AudioLDM2Pipeline.from_pretrained("demo", device="cpu")


def noisy(folder: Path, level: float, count: int = 12) -> Path:
    """Tones and bells under noise of some level."""
    folder.mkdir()
    random = np.random.default_rng(0)
    for seed in range(count):
        clean = sounds.sound("tone" if seed % 2 else "bell", seed=seed).render(0.64)
        waveform = clean + level * random.standard_normal(len(clean))
        write_sound(folder / f"{seed}.wav", waveform.astype(np.float32), sounds.RATE)
    return folder


def evaluated(*arguments: str) -> list:
    return evaluate.run(evaluate.options([*map(str, arguments), *QUICK]))


def test_probabilities_of_windows_are_averaged_by_length(classifier):
    network = Network(classifier, "classifier")
    waveform = torch.randn(25600, generator=torch.Generator().manual_seed(0))
    first, second, rest = (network.embed(part) for part in waveform.split(network.window))
    assert network.window == 10240 and first.sum() == pytest.approx(1, abs=FLOAT32)
    expected = (first + second + 0.5 * rest) / 2.5
    np.testing.assert_allclose(network.embed(waveform), expected, atol=FLOAT32)
    assert np.abs(first - rest).max() > 0.01


def test_a_classifier_is_the_one_of_transformers(classifier):
    waveform = torch.randn(10240, generator=torch.Generator().manual_seed(1))
    pipeline = transformers.pipeline("audio-classification", model=classifier, top_k=5)
    found = {row["label"]: row["score"] for row in pipeline(waveform.numpy())}
    ours = Network(classifier, "classifier").embed(waveform)
    np.testing.assert_allclose(ours, [found[f"LABEL_{i}"] for i in range(5)], atol=FLOAT32)


def test_any_audio_model_embeds(classifier, tmp_path, pipe):
    waveform = torch.randn(16000, generator=torch.Generator().manual_seed(1))
    assert Network(classifier, "embedder").embed(waveform).shape == (16,)
    config = transformers.Wav2Vec2Config(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        conv_dim=(8, 8),
        conv_stride=(10, 16),
        conv_kernel=(10, 16),
        num_feat_extract_layers=2,
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
    )
    transformers.Wav2Vec2Model(config).save_pretrained(tmp_path)
    transformers.Wav2Vec2FeatureExtractor().save_pretrained(tmp_path)
    assert Network(str(tmp_path), "embedder").embed(waveform).shape == (16,)


def test_clap_scores_are_the_pipelines_own(pipe, tmp_path):
    clap, path = Clap(pipe), write_sound(tmp_path / "a.wav", torch.randn(8000) / 9, 16000)
    embedded = embed_all(clap, [path], tmp_path / "embeddings")
    with torch.inference_mode():
        expected = pipe.text.similarity(["rain"], read_sound(path, 16000)[None], 16000)
    assert clap.embed_texts(["rain"])[0] @ embedded[0] == pytest.approx(
        expected.item(), abs=FLOAT32
    )


def test_embeddings_are_kept_by_content(classifier, tmp_path, monkeypatch):
    network = Network(classifier, "classifier")
    paths = [write_sound(tmp_path / f"{n}.wav", torch.randn(8000) / 9, 16000) for n in range(2)]
    first = embed_all(network, paths, tmp_path / "embeddings")
    monkeypatch.setattr(network, "embed", lambda waveform: 1 / 0)
    paths[0] = paths[0].rename(tmp_path / "renamed.wav")
    np.testing.assert_array_equal(embed_all(network, paths, tmp_path / "embeddings"), first)
    write_sound(paths[1], torch.randn(8000) / 9, 16000)
    with pytest.raises(ZeroDivisionError):
        embed_all(network, paths, tmp_path / "embeddings")


def test_what_cannot_be_loaded_is_an_error_of_one_line(tmp_path):
    with pytest.raises(ValueError, match="classifier .* cannot be loaded: [^\n]*$"):
        Network(str(tmp_path), "classifier")


def test_a_folder_against_itself_and_against_noise(classifier, tmp_path):
    clean = noisy(tmp_path / "clean", 0.0)
    cells = {}
    for level in (0.0, 0.01, 0.1):
        made = clean if level == 0 else noisy(tmp_path / str(level), level)
        (cells[level],) = evaluated(
            "--reference",
            clean,
            "--sounds",
            made,
            "--classifier",
            classifier,
            "--out",
            tmp_path / f"out-{level}",
        )
    same = cells[0.0]
    assert same.fad.value == pytest.approx(0, abs=FLOAT32) and same.clap is None
    assert same.kl.value == same.kl.low == same.kl.high == pytest.approx(0, abs=FLOAT32)
    for metric in ("fad", "kl"):
        values = [getattr(cells[level], metric).value for level in (0.0, 0.01, 0.1)]
        assert values == sorted(values) and values[1] > 10 * FLOAT32
    assert cells[0.1].fad.low > 0


def test_a_grid_from_prompts_goes_on_where_it_stopped(classifier, tmp_path, monkeypatch):
    out = tmp_path / "out"
    grid = ("--reference", "demo-world", "--clips", "3", "--batch-size", "2", "--out", out)
    grid += ("--classifier", classifier, "--seconds", "0.32", "--attention")
    (dense,) = evaluated(*grid, "dense")
    kept = {path: path.stat().st_mtime_ns for path in out.rglob("*.wav")}
    assert len(kept) == 6 and dense.clips == 3  # clips and references

    embedded = []
    embed = Clap.embed
    monkeypatch.setattr(Clap, "embed", lambda self, w: embedded.append(len(w)) or embed(self, w))
    cells = evaluated(*grid, "dense", "litefocus:0", "cross-frequency:0.5")
    assert [cell.attention for cell in cells] == ["dense", "litefocus:0", "cross-frequency:0.5"]
    assert cells[0] == dense and len(embedded) == 6
    assert all(path.stat().st_mtime_ns == kept[path] for path in kept)
    ratio = json.loads((out / "cross-frequency-0-5-0.32" / "10000000.json").read_text())
    assert ratio["attention_ran"] == "cross-frequency:0.5"
    for cell in cells[1:]:
        for metric, difference in cell.over_dense.items():
            apart = getattr(cell, metric).value - getattr(dense, metric).value
            assert difference.value == pytest.approx(apart, abs=FLOAT32)

    rows = list(csv.DictReader((out / "clips-dense-0.32.csv").open()))
    assert [row["caption"] for row in rows] == [
        sounds.draw(sounds.HELD_OUT + i).caption for i in range(3)
    ]
    assert np.mean([float(row["kl"]) for row in rows]) == pytest.approx(dense.kl.value, abs=1e-4)
    assert f"| FAD | 3 clips of 0.32 s |\n|---|---|\n| dense | {dense.fad} |" in markdown(cells)


def test_results_with_other_settings_are_not_mixed(classifier, tmp_path):
    clean = noisy(tmp_path / "clean", 0.0, count=3)
    common = ("--sounds", clean, "--out", tmp_path / "out", "--reference")
    evaluated(*common, clean, "--classifier", classifier)
    with pytest.raises(ValueError, match=r"other settings \(reference\)"):
        evaluated(*common, noisy(tmp_path / "other", 0.1, count=3), "--classifier", classifier)


@pytest.mark.parametrize(
    "arguments,message",
    [
        (("--attention", "sparse"), "attention 'sparse'"),
        (("--attention", "cross-frequency:0"), "no key is left"),
        (("--seconds", "0"), "duration 0.0"),
        (("--clips", "1"), "clips 1: at least 2"),
        (("--sounds", "nowhere"), "nowhere is not a folder"),
        (("--classifier", "/no/such/one"), "classifier '/no/such/one' cannot be loaded"),
        (("--reference", "nowhere"), "reference 'nowhere': give a folder"),
    ],
)
def test_invalid_arguments_are_an_error_of_one_line(tmp_path, arguments, message):
    options = ("--reference", "demo-world", "--clips", "2", "--seconds", "0.32")
    with pytest.raises(ValueError, match=message):
        evaluated(*options, "--out", tmp_path / "out", *arguments)


def test_the_script_itself(classifier, tmp_path, monkeypatch, capsys):
    clean = noisy(tmp_path / "clean", 0.0, count=3)
    options = ["--sounds", clean, *QUICK, "--out", tmp_path / "out", "--classifier", classifier]

    def run(reference):
        arguments = ["evaluate", "--reference", reference, *options]
        monkeypatch.setattr("sys.argv", [str(argument) for argument in arguments])
        evaluate.main()

    run(clean)
    printed = capsys.readouterr().out
    assert "| FAD | 3 clips |" in printed
    assert json.loads(printed.splitlines()[-1])[0]["clips"] == 3
    with pytest.raises(SystemExit, match="^error: reference"):
        run(tmp_path / "nowhere")
