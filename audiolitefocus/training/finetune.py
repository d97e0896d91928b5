"""From a folder of sounds to an adapter, or to a bundle: what `audiolitefocus finetune` does."""

import dataclasses
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from audiolitefocus.atomic import atomic_file
from audiolitefocus.audio.length import ClipLength
from audiolitefocus.display import spectrogram_png
from audiolitefocus.pipeline import AudioLDM2Pipeline
from audiolitefocus.runtime import choose_device
from audiolitefocus.training.bundle import write_bundle
from audiolitefocus.training.data import read_examples
from audiolitefocus.training.encoded import encode_examples
from audiolitefocus.training.kept import check_kept, digest, make_kept
from audiolitefocus.training.loop import Finetune, check_folder
from audiolitefocus.training.memory import Memory, training_memory
from audiolitefocus.training.pictures import draw_losses
from audiolitefocus.training.settings import Finetuning
from audiolitefocus.validation import check_choice

Say = Callable[[str], object]


def finetune(
    data: Path,
    model: str,
    folder: Path,
    settings: Finetuning,
    *,
    device: str = "auto",
    mixed_precision: str = "no",
    prompts: Sequence[str] = (),
    keep: Sequence[str] = (),
    say: Say = print,
    on_update: Callable[[int, float], object] = lambda update, loss: None,
) -> Path:
    """Fine-tune a model on sounds and their captions. A run that was cut off goes on.

    Args:
        data: see `data.read_examples`.
        model: as for `AudioLDM2Pipeline.from_pretrained`.
        folder: for everything that is written; made if it is missing.
        mixed_precision: "no", "bf16" or "fp16", as in accelerate.
        prompts: of clips to make whenever a state is saved, into `folder/samples`.
        keep: prompts of what the model must not forget (`kept.make_kept`).
        say: called with lines for people, by the first of several processes.
        on_update: called after every update with their number and the loss, by the first as well.

    Returns:
        The adapter's folder, which is `folder`; or with `settings.full` that of the new bundle.

    Raises:
        ValueError, OSError: sounds, captions, model or settings that cannot be used, or the extra
            `train` is not installed; before anything is trained.
    """
    # 1. Sounds, model, folder
    check_kept(keep, settings)
    examples = read_examples(data)
    accelerator = _accelerator(device, mixed_precision)
    pipe = _untrained(model, accelerator.device)
    settings = dataclasses.replace(
        settings, seconds=settings.seconds or (pipe.config.trained_seconds,)
    )
    folder.mkdir(parents=True, exist_ok=True)
    about = {
        "model": pipe.config.name,
        "unet": pipe.config.files.get("unet.safetensors"),
        "mixed_precision": mixed_precision,
        "processes": accelerator.num_processes,
        "keep": digest(keep) if keep else None,
        **settings.to_json(),
    }
    check_folder(folder, about)
    if not accelerator.is_main_process:
        say = on_update = _silent

    # 2. What it takes
    say(f"{len(examples)} sounds" + (f", {len(keep)} prompts to keep" if keep else ""))
    say(str(_memory(pipe, settings, mixed_precision, taught=bool(keep))))

    # 3. Latents and conditions, once
    longest, place = max(settings.seconds), folder / "encoded"
    encoded = encode_examples(pipe, examples, longest, place)
    kept = make_kept(pipe, keep, longest, place)

    # 4. Train
    training = Finetune(pipe, encoded, settings, folder, accelerator, kept)
    if training.done:
        say(f"going on after {training.done} of {settings.steps} updates")

    def after(update: int, loss: float) -> None:
        on_update(update, loss)
        if update % settings.save_every == 0 or update == settings.steps:
            _make_samples(training, prompts, update)

    training.run(after)

    # 5. Results
    result = folder / "bundle" if settings.full else folder
    if accelerator.is_main_process:
        if training.losses:
            draw_losses(training.losses, folder / "loss.png")
        if settings.full:
            write_bundle(training, result)
    accelerator.wait_for_everyone()
    return result


def _accelerator(device: str, mixed_precision: str):
    missing = [name for name in ("accelerate", "peft", "matplotlib") if find_spec(name) is None]
    if missing:
        raise ValueError(f"{', '.join(missing)} missing: pip install 'audiolitefocus[train]'")
    from accelerate import Accelerator

    check_choice("mixed_precision", mixed_precision, ("no", "bf16", "fp16"))
    return Accelerator(cpu=choose_device(device).type == "cpu", mixed_precision=mixed_precision)


def _untrained(model: str, device: torch.device) -> AudioLDM2Pipeline:
    """Raises ValueError for a model that has been distilled."""
    pipe = AudioLDM2Pipeline.from_pretrained(model, device=device)
    if pipe.config.distilled is not None:
        raise ValueError(
            f"{pipe.config.name} has been distilled: train the model that it was made of, and "
            f"distil the result"
        )
    return pipe


def _memory(
    pipe: AudioLDM2Pipeline, settings: Finetuning, mixed_precision: str, *, taught: bool
) -> Memory:
    longest = max(settings.seconds)
    attention = pipe.choose_attention(settings.attention, longest)
    frames = ClipLength(longest, pipe.config).latent_frames
    itemsize = 4 if mixed_precision == "no" else 2
    return training_memory(
        pipe.config, settings, attention, frames, itemsize=itemsize, taught=taught
    )


def _silent(*_: object) -> None:
    """Stands for what the first process alone says."""


def _make_samples(training: Finetune, prompts: Sequence[str], update: int) -> None:
    """A clip of each prompt, always from the same noise, and its spectrogram."""
    if not prompts or not training.accelerator.is_main_process:
        return
    place = training.folder / "samples"
    place.mkdir(exist_ok=True)
    few: dict[str, Any] = (
        {} if training.settings.distill else {"sampler": "dpm++", "num_inference_steps": 25}
    )
    with training.updates.averaged():
        made = training.pipe(
            list(prompts),
            **few,
            audio_length_in_s=training.settings.seconds[0],
            seed=0,
        )
    for path, audio in zip(made.save(place / f"{update:06d}.wav"), made.audios, strict=True):
        with atomic_file(path.with_suffix(".png")) as part:
            part.write_bytes(spectrogram_png(audio, made.sampling_rate))
