"""The networks of a model, loaded, on their devices: what a pipeline calls."""

import os
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Self

import torch
from einops import rearrange

from audiolitefocus.attention.settings import Attention, LiteFocus, attention_text
from audiolitefocus.checkpoints.bundle import cast, load_component, load_config
from audiolitefocus.checkpoints.resolve import resolve_bundle
from audiolitefocus.checkpoints.towers import load_text_encoder
from audiolitefocus.config import BundleConfig
from audiolitefocus.diffusion.network import Evaluate, Network
from audiolitefocus.habits import LOADING, refuse
from audiolitefocus.lora import TakesAdapters
from audiolitefocus.models.text_encoder import TextEncoder
from audiolitefocus.models.unet import UNet
from audiolitefocus.models.vae import VAE
from audiolitefocus.models.vocoder import HiFiGAN
from audiolitefocus.options import GenerationOptions
from audiolitefocus.parallel.copies import further_networks
from audiolitefocus.reuse.settings import check_reuse, choose_reuse
from audiolitefocus.runtime import (
    Devices,
    Offloader,
    choose_devices,
    choose_dtype,
    compiled_or_eager,
    oom_as_memory_error,
)


class LoadedModel(TakesAdapters):
    """A model's networks.

    Attributes:
        folder, config: of its bundle.
        unet, vae, vocoder: its networks; the text towers, `text`, are loaded when first needed.
        devices: the first holds all networks, further ones a copy of the UNet each.
        on_device: brings networks there while they run, with `offload`.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        config: BundleConfig,
        unet: UNet,
        vae: VAE,
        vocoder: HiFiGAN,
        devices: torch.device | Sequence[torch.device],
        *,
        offload: bool = False,
    ):
        self.folder, self.config = Path(folder), config
        self.devices = (devices,) if isinstance(devices, torch.device) else tuple(devices)
        self.unet, self.vae, self.vocoder = unet, vae, vocoder
        self.on_device = Offloader(self.device, offload=offload)
        self._text: TextEncoder | None = None
        self._loading = threading.Lock()
        self._evaluate: Evaluate = unet.evaluate
        self._further = further_networks(unet, self.devices)

    @classmethod
    def from_pretrained(
        cls,
        model: str | os.PathLike,
        *,
        dtype: torch.dtype | str | None = None,
        torch_dtype: torch.dtype | str | None = None,
        device: Devices = "auto",
        offload: bool = False,
        variant: str | None = None,
        revision: str | None = None,
        cache_dir: str | os.PathLike | None = None,
        local_files_only: bool = False,
        token: str | bool | None = None,
        **others,
    ) -> Self:
        """Load a model.

        Args:
            model: a converted folder, a name of `config.MODELS` ("demo", "audioldm2", ...), or a
                folder or hub repository in diffusers layout, which is converted into the hub's
                cache once.
            dtype, torch_dtype: of UNet, VAE and vocoder, but for the layers where half precision is
                audible; default float32. Text and the arithmetic of sampling are float32.
            device: "auto" (CUDA, else MPS, else CPU), "cuda", "mps", "cpu" or a torch.device; or
                several, as ["cuda:0", "cuda:1"], which share calls by their option `parallel`: all
                have the UNet, the first one the rest.
            offload: keep every network on the CPU but while it runs: slower, and the device holds
                no more than the largest of them (the text towers count as one).
            variant: of weights files in diffusers layout to prefer to others, as "fp16"; their
                dtype is not that of the pipeline.
            revision, cache_dir, local_files_only, token: for the hub, as in huggingface_hub.

        Raises:
            ValueError, OSError: in one line, what is wrong with the model, dtype or device, and
                what to do.
        """
        refuse(others, LOADING, "from_pretrained")
        devices = choose_devices(device, offload=offload)
        chosen = choose_dtype(torch_dtype if dtype is None else dtype, devices[0])
        folder = resolve_bundle(
            model,
            variant=variant,
            revision=revision,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            token=token,
        )
        home = torch.device("cpu") if offload else devices[0]
        with oom_as_memory_error(f"out of memory on {home} while {folder} was loaded"):
            unet, vae, vocoder = (
                load_component(folder, name, dtype=chosen, device=home)
                for name in ("unet", "vae", "vocoder")
            )
            return cls(folder, load_config(folder), unet, vae, vocoder, devices, offload=offload)

    @property
    def device(self) -> torch.device:
        """The device that calls begin and end on, the first."""
        return self.devices[0]

    def to(
        self,
        device: Devices | torch.dtype = None,
        dtype: torch.dtype | str | None = None,
    ) -> Self:
        """Move the networks to a device, and UNet, VAE and vocoder to a dtype. Not during a call.

        Several devices as in `from_pretrained`.

        Raises:
            ValueError: a device that is not present, or no dtype of `from_pretrained`.
        """
        if isinstance(device, torch.dtype):
            device, dtype = None, device
        offload = self.on_device.offload
        devices = self.devices if device is None else choose_devices(device, offload=offload)
        chosen = None if dtype is None else choose_dtype(dtype, devices[0])
        self._place(devices, offload=offload, dtype=chosen)
        return self

    def enable_model_cpu_offload(
        self, gpu_id: int | None = None, device: torch.device | str | None = None
    ) -> None:
        """Keep every network on the CPU but while it runs, as `from_pretrained(offload=True)`."""
        own = self.devices if gpu_id is None else f"cuda:{gpu_id}"
        self._place(choose_devices(device or own, offload=True), offload=True)

    def _place(
        self, devices: Sequence[torch.device], *, offload: bool, dtype: torch.dtype | None = None
    ) -> None:
        self.devices = tuple(devices)
        self.on_device = Offloader(self.device, offload=offload)
        home = torch.device("cpu") if offload else self.device
        for network in (self.unet, self.vae, self.vocoder):
            cast(network, dtype, home)
        self._further = further_networks(self.unet, self.devices)
        if self._text is not None:
            self._text.to(home)

    @property
    def text(self) -> TextEncoder:
        """The text towers, loaded when they are first needed."""
        with self._loading:
            if self._text is None:
                text = load_text_encoder(self.folder, self.config)
                self._text = text if self.on_device.offload else text.to(self.device)
            return self._text

    @property
    def sampling_rate(self) -> int:
        """Of the waveforms, in Hz."""
        return self.config.vocoder.sampling_rate

    def choose_attention(self, attention: Attention, seconds: float) -> Attention:
        """ "dense" or settings for a clip of this length; what "auto" means is decided here."""
        if attention != "auto":
            return self.unet.check_attention(attention)
        trained = self.config.trained_seconds
        if seconds <= trained:
            return "dense"
        return LiteFocus.for_duration(
            seconds, trained_seconds=trained, rule=self.config.attention_rule
        )

    def compile(self, mode: str | None = None, *, backend: str = "inductor") -> Self:
        """Compile the UNet with torch.compile.

        A new clip length, number of clips or attention is compiled once, when it first comes up,
        and T5's tokens are padded to few lengths. What cannot be compiled runs as without this,
        with one warning.

        Args:
            mode, backend: of torch.compile; the mode is by default "reduce-overhead" (CUDA graphs)
                on CUDA, "default" elsewhere.
        """
        torch.compiler.allow_in_graph(rearrange)  # else its Python is traced, slowly
        graphs = self.device.type == "cuda" and not self.on_device.offload  # which moves weights
        mode = mode or ("reduce-overhead" if graphs else "default")
        first, *self._further = (
            replace(n, evaluate=compiled_or_eager(n.unet.evaluate, mode=mode, backend=backend))
            for n in self.networks()
        )
        self._evaluate = first.evaluate
        return self

    def networks(self) -> list[Network]:
        """The UNet on every device."""
        return [Network(self.unet, self._evaluate), *self._further]

    def unets(self) -> list[UNet]:
        """The UNet, and its copies on other devices."""
        return list(dict.fromkeys(network.unet for network in self.networks()))

    def check_attention(self, options: GenerationOptions, seconds: float) -> Attention:
        """Settings for clips of this length. Raises ValueError if they, or reuse, do not fit."""
        attention = self.choose_attention(options.attention, seconds)
        check_reuse(
            choose_reuse(options.reuse, options.sampler, options.steps_taken),
            self.unet.units(),
            sampler=options.sampler,
            steps=options.steps_taken,
            attention=attention_text(attention),
            unet_sha256=self.config.files.get("unet.safetensors"),
        )
        return attention
