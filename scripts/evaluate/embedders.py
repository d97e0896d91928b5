"""Networks that embed sounds: vectors for the Fréchet distance, class probabilities for KL.

Any audio model of transformers will do, and the judge in `scripts.evaluate.aisfx`. A clip that is
longer than the network's input is embedded in windows, which count by their lengths. Embeddings are
kept in a folder, by what the sound file holds.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import transformers

from audiolitefocus.atomic import atomic_file
from audiolitefocus.audio.files import read_sound
from audiolitefocus.checkpoints.bundle import sha256
from audiolitefocus.models.text_encoder import TextEncoder
from audiolitefocus.pipeline import AudioLDM2Pipeline
from scripts.evaluate.aisfx import Aisfx

WINDOW_SECONDS = 10.0  # of networks that take any length
AST_FRAMES = 100  # a second


class Embedder(Protocol):
    """`embed` gives one vector of a waveform (samples,) at `rate`; `name` says by which network,
    with which weights.
    """

    name: str
    rate: int

    def embed(self, waveform: torch.Tensor) -> np.ndarray: ...


class Clap:
    """The CLAP of a bundle: embeddings of unit length."""

    def __init__(self, pipe: AudioLDM2Pipeline):
        self.encoder: TextEncoder = pipe.text
        self.rate = pipe.config.vocoder.sampling_rate
        weights = pipe.folder / "clap" / "model.safetensors"
        self.name = f"clap-{sha256(weights)[:12]}"

    def embed(self, waveform: torch.Tensor) -> np.ndarray:
        with torch.inference_mode():
            return self.encoder.embed_audio(waveform, self.rate).cpu().numpy()

    def embed_texts(self, texts: list[str]) -> np.ndarray:
        """(n, d)"""
        with torch.inference_mode():
            embedded = {text: self.encoder.embed_text([text])[0] for text in dict.fromkeys(texts)}
        return torch.stack([embedded[text] for text in texts]).cpu().numpy()


class Network:
    """An audio model of transformers: "embedder", or "classifier" for class probabilities.

    Args:
        source: a folder, or a repository on the hub.

    Raises:
        ValueError: transformers cannot load it as that.
    """

    def __init__(self, source: str, task: str, device: torch.device | str = "cpu"):
        kind = {
            "embedder": transformers.AutoModel,
            "classifier": transformers.AutoModelForAudioClassification,
        }[task]
        self.task, self.device = task, device
        try:
            self.extractor = transformers.AutoFeatureExtractor.from_pretrained(
                source, trust_remote_code=False
            )
            model = kind.from_pretrained(source, dtype=torch.float32, trust_remote_code=False)
        except Exception as error:  # transformers raises many kinds, in many lines
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ValueError(f"{task} {source!r} cannot be loaded: {reason}") from None
        self.model = model.eval().to(device)
        self.rate = self.extractor.sampling_rate
        self.name = f"{task}-{identity(source, self.model)}"

    @property
    def window(self) -> int:
        """Samples of the longest input."""
        extractor = self.extractor
        if isinstance(extractor, transformers.ASTFeatureExtractor):
            return extractor.max_length * self.rate // AST_FRAMES
        for name in ("nb_max_samples", "n_samples"):  # CLAP's and Whisper's
            if hasattr(extractor, name):
                return getattr(extractor, name)
        return round(WINDOW_SECONDS * self.rate)

    def embed(self, waveform: torch.Tensor) -> np.ndarray:
        windows = waveform.split(self.window)
        embedded = [self._embed(window) for window in windows]
        return np.average(embedded, axis=0, weights=[len(window) for window in windows])

    @torch.inference_mode()
    def _embed(self, window: torch.Tensor) -> np.ndarray:
        least = self.rate // 10  # what is left over at the end may be shorter than one frame
        window = torch.nn.functional.pad(window, (0, max(0, least - len(window))))
        options = {}
        if isinstance(self.extractor, transformers.ClapFeatureExtractor):
            fused = self.model.config.audio_config.enable_fusion
            options["truncation"] = "fusion" if fused else "rand_trunc"
        features = self.extractor(
            window.numpy(), sampling_rate=self.rate, return_tensors="pt", **options
        ).to(self.device)
        if self.task == "classifier":
            embedded = self.model(**features).logits.softmax(-1)
        elif hasattr(self.model, "get_audio_features"):
            embedded = self.model.get_audio_features(**features)
            embedded = getattr(embedded, "pooler_output", embedded)
        else:
            output = self.model(**features)
            pooled = getattr(output, "pooler_output", None)
            embedded = output.last_hidden_state.mean(1) if pooled is None else pooled
        return embedded[0].float().cpu().numpy()


def load_embedder(source: str, device: torch.device | str = "cpu") -> Embedder:
    """ "aisfx", the outside judge, or a `Network`. Raises ValueError as they do."""
    return Aisfx(device) if source == "aisfx" else Network(source, "embedder", device)


def identity(source: str, model: transformers.PreTrainedModel) -> str:
    """Which weights these are: a digest of a folder's files, or a repository and its commit."""
    if not Path(source).is_dir():
        return f"{source.replace('/', '-')}-{str(model.config._commit_hash)[:12]}"
    digest = hashlib.sha256()
    for path in sorted(Path(source).iterdir()):
        if path.suffix in (".json", ".safetensors", ".bin"):
            digest.update(f"{path.name} {sha256(path)}".encode())
    return digest.hexdigest()[:12]


def embed_all(embedder: Embedder, sounds: Iterable[Path], cache: Path) -> np.ndarray:
    """The vectors of each of the sound files, (n, d); kept in `cache`."""
    folder = cache / embedder.name
    folder.mkdir(parents=True, exist_ok=True)
    embedded = []
    for path in sounds:
        kept = folder / f"{sha256(path)}.npy"
        if not kept.is_file():
            waveform = read_sound(path, embedder.rate)
            with atomic_file(kept) as beside, beside.open("wb") as file:
                np.save(file, embedder.embed(waveform).astype(np.float32))
        embedded.append(np.load(kept))
    return np.stack(embedded)
