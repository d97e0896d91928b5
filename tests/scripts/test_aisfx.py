"""The outside judge against the package that its weights come from."""

import numpy as np
import pytest
import torch

from scripts.evaluate import aisfx
from tests.support.compare import seeded

FLOAT32 = 1e-5


@pytest.fixture(scope="module")
def theirs():
    """The package's own modules and network, with its weights."""
    pytest.importorskip("aisfx", reason="pip install --no-deps aisfx")
    from aisfx import preprocessing
    from aisfx.models.cnn2d import EmbeddingNet
    from aisfx.spectrogram import spectrogram_librosa

    network = EmbeddingNet("max", 3, 1, 64)
    tensors, _ = torch.load(aisfx.weights_file(), weights_only=False)
    own = {k: v for k, v in tensors.items() if k.startswith("embedding_net.")}
    network.load_state_dict({k.removeprefix("embedding_net."): v for k, v in own.items()})
    return preprocessing, spectrogram_librosa, network.eval()


def test_a_sound_is_embedded_as_by_the_package(theirs, tmp_path):
    import soundfile

    preprocessing, librosa, network = theirs
    time = torch.arange(4 * aisfx.RATE) / aisfx.RATE
    waveform = 0.2 * torch.randn(len(time), generator=seeded()) * (-time).exp()
    soundfile.write(tmp_path / "a.wav", waveform.numpy(), aisfx.RATE, subtype="FLOAT")
    spectrogram = librosa.compute_spectrogram(
        tmp_path / "a.wav", float(aisfx.RATE), aisfx.WINDOW, aisfx.HOP, aisfx.BANDS, 0.0, 22050.0
    )
    spectrogram = preprocessing.spectrogram_normalize(spectrogram.T)
    found = aisfx.spectrogram(waveform)
    np.testing.assert_allclose(found, spectrogram, atol=FLOAT32)
    blocks = preprocessing.blocking(spectrogram, aisfx.FRAMES, aisfx.STEP, True)
    assert len(blocks) == 2
    np.testing.assert_allclose(aisfx.split_blocks(found), blocks, atol=FLOAT32)
    judge = aisfx.Aisfx()
    with torch.no_grad():
        expected = network(torch.tensor(blocks).float())
        assert torch.equal(judge.network(torch.tensor(blocks).float()), expected)
    np.testing.assert_allclose(judge.embed(waveform), expected.mean(0), atol=1e-4)
