"""What users of diffusers expect of a pipeline beside its calls, mixed into `AudioLDM2Pipeline`."""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from torch import nn

from audiolitefocus.atomic import atomic_folder
from audiolitefocus.checkpoints.hub import upload
from audiolitefocus.checkpoints.resolve import convert_local
from audiolitefocus.habits import ATTRIBUTES, SAVING, refuse
from audiolitefocus.steps import RunningCalls, check_bar_options

# diffusers' names of the networks -> ours, of the pipeline and of its text side
NETWORKS = {"unet": "unet", "vae": "vae", "vocoder": "vocoder"}
TEXT_NETWORKS = {
    "projection_model": "projection",
    "text_encoder": "clap",
    "text_encoder_2": "t5",
    "language_model": "gpt2",
}


class DiffusersHabits:
    """Methods and attributes of diffusers' pipelines that have the same meaning here."""

    _calls: RunningCalls
    _bar: Mapping[str, Any]

    @classmethod
    def from_single_file(
        cls,
        path: str | os.PathLike,
        *,
        tokenizers: str | os.PathLike | None = None,
        cache_dir: str | os.PathLike | None = None,
        local_files_only: bool = False,
        token: str | bool | None = None,
        **loading: Any,
    ) -> Self:
        """Load an original checkpoint, a .pth or .ckpt. It is converted into the hub's cache once.

        Args:
            tokenizers: a folder with clap/ and t5/ tokenizers, which the file lacks. By default
                they are fetched from the hub.
            cache_dir, local_files_only, token: of the hub.
            loading: dtype, device and offload, as for `from_pretrained`.

        Raises:
            ValueError, OSError: no such file, or as `from_pretrained`.
        """
        if not Path(path).is_file():
            raise ValueError(f"{path}: no such file; for folders and names use from_pretrained")
        hub: Any = {"cache_dir": cache_dir, "local_files_only": local_files_only, "token": token}
        bundle = convert_local(Path(path), tokenizers=tokenizers, **hub)
        return cls.from_pretrained(bundle, **loading)  # type: ignore[attr-defined]

    @property
    def components(self) -> dict[str, nn.Module]:
        """The networks, by diffusers' names. The text towers are loaded for it."""
        ours = {theirs: getattr(self, name) for theirs, name in NETWORKS.items()}
        text = self.text  # type: ignore[attr-defined]
        return ours | {theirs: getattr(text, name) for theirs, name in TEXT_NETWORKS.items()}

    @property
    def interrupt(self) -> bool:
        """Set it to True to end a call after its current step.

        It returns what is decoded from there. Set in a callback, that is the call which the
        callback belongs to; in a thread that is in no call, every call of the pipeline that is in
        progress. Calls that begin later are not concerned: there is nothing to reset.
        """
        return self._calls.interrupt

    @interrupt.setter
    def interrupt(self, value: bool) -> None:
        self._calls.interrupt = value

    def set_progress_bar_config(self, *, disable: bool = False, **options: Any) -> None:
        """Show a tqdm bar with these options in later calls, or none with disable=True.

        Raises:
            ValueError: an option that tqdm does not have.
        """
        check_bar_options(options)
        self._bar = {"disable": disable, **options}

    def save_pretrained(
        self, save_directory: str | os.PathLike, *, variant: str | None = None, **others: Any
    ) -> None:
        """Write the model in diffusers layout, which `from_pretrained` here and there reads.

        All weights are in the dtype of the UNet. The folder appears whole or not at all.

        Args:
            save_directory: a folder that does not exist yet, or is empty.
            variant: stands in the names of weights files, as "fp16" in model.fp16.safetensors.

        Raises:
            ValueError: a folder with something in it; a model without tokenizers, that was pruned,
                or with an order of contexts that diffusers does not have.
            OSError: the folder cannot be written.
        """
        from audiolitefocus.checkpoints.export import export_diffusers  # needs the converter

        refuse(others, SAVING, "save_pretrained")
        target = Path(save_directory)
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise ValueError(f"{target} exists: choose another folder, or remove it first")
        networks = {{**NETWORKS, **TEXT_NETWORKS}[n]: net for n, net in self.components.items()}
        with atomic_folder(target, force=target.exists()) as folder:
            export_diffusers(
                folder,
                self.folder,  # type: ignore[attr-defined]
                self.config,  # type: ignore[attr-defined]
                networks,
                dtype=networks["unet"].conv_in.weight.dtype,  # type: ignore[union-attr, arg-type]
                variant=variant,
            )

    def push_to_hub(
        self,
        repo_id: str,
        *,
        variant: str | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
        commit_message: str | None = None,
        create_pr: bool = False,
    ) -> str:
        """Upload the model in diffusers layout to the hub; its repository is made if need be.

        Args:
            variant: as for `save_pretrained`.
            private, token, commit_message, create_pr: as in huggingface_hub.

        Returns:
            The URL of the commit, or of the pull request.

        Raises:
            ValueError, OSError: as `save_pretrained`; or access refused, or no connection.
        """
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place) / "model"
            self.save_pretrained(folder, variant=variant)
            return upload(
                folder,
                repo_id,
                private=private,
                token=token,
                commit_message=commit_message,
                create_pr=create_pr,
            )

    def __getattr__(self, name: str):
        advice = f"; {ATTRIBUTES[name]}" if name in ATTRIBUTES else ""
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}{advice}")

    def __setattr__(self, name: str, value: object) -> None:
        if name in ATTRIBUTES:
            getattr(self, name)
        super().__setattr__(name, value)
