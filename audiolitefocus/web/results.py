"""The right half of the page: what is being made, what was made, and what was made before."""

import gradio as gr

from audiolitefocus.web.making import Update
from audiolitefocus.web.shelf import Kept

SLOTS = 4  # candidates that are shown
HISTORY = 12  # clips of one visitor that are shown


class Results:
    """The components, put where this is called, and what they show.

    Methods that show something return changes by component, for an event whose outputs are `parts`.
    """

    def __init__(self) -> None:
        self._build_preview()
        self.sounds: list[gr.Audio] = []
        self.pictures: list[gr.Image] = []
        for number in range(SLOTS):
            self._build_slot(first=number == 0)
        with gr.Row():
            self.reuse = gr.Button("Use as recording", size="sm", visible=False)
        self.files = gr.File(
            label="Sounds, and how to make them again",
            file_count="multiple",
            visible=False,
            interactive=False,
            elem_id="files",
        )
        self._build_history()
        self.parts = [self.preview, *self.sounds, *self.pictures, self.reuse, self.files]
        self.parts += [self.history, self.made, self.gallery]

    def _build_preview(self) -> None:
        self.preview = gr.Image(
            label="What it is so far",
            alt_text="What it is so far",
            visible=False,
            buttons=[],
            format="png",
            height=200,
        )

    def _build_slot(self, *, first: bool) -> None:
        """A place for one candidate: its sound, and its spectrogram."""
        sound = gr.Audio(
            label="Result",
            interactive=False,
            type="filepath",
            visible=first,
            buttons=["download"],
        )
        picture = gr.Image(
            show_label=False,
            visible=False,
            buttons=["fullscreen"],
            format="png",
            alt_text="Spectrogram: time to the right, frequency upwards",
        )
        self.sounds.append(sound)
        self.pictures.append(picture)

    def _build_history(self) -> None:
        self.history = gr.State([])
        self.made = gr.Markdown("Made on this page; choose one to see it again:", visible=False)
        self.gallery = gr.Gallery(
            show_label=False,
            columns=3,
            height="auto",
            fit_columns=False,
            object_fit="contain",
            elem_id="history",
            allow_preview=False,
            visible=False,
            interactive=False,
            buttons=[],
            format="png",
        )

    def show(self, kept: Kept, history: list[Kept]) -> dict:
        """A clip in the places for candidates, and the history, of which it may be new."""
        history = history[:HISTORY]
        thumbnails = [(old.pictures[0], f"{old.prompt} ({old.seed})") for old in history]
        shown = self.hide_preview() | {
            self.reuse: gr.update(visible=True),
            self.files: gr.update(value=[*kept.sounds, *kept.recipes], visible=True),
            self.history: history,
            self.made: gr.update(visible=True),
            self.gallery: gr.update(value=thumbnails, visible=True),
        }
        for number, (sound, picture) in enumerate(zip(self.sounds, self.pictures, strict=True)):
            if number >= len(kept.sounds):
                shown[sound] = shown[picture] = gr.update(value=None, visible=False)
                continue
            label = "Result"
            if kept.scores is not None:
                label = f"{number + 1} of {len(kept.sounds)}, CLAP {kept.scores[number]:.3f}"
            shown[sound] = gr.update(value=kept.sounds[number], label=label, visible=True)
            shown[picture] = gr.update(value=kept.pictures[number], visible=True)
        return shown

    def show_preview(self, update: Update) -> dict:
        """The picture of an update, if it has one."""
        if update.picture is None:
            return {}
        return {self.preview: gr.update(value=update.picture, visible=True)}

    def hide_preview(self) -> dict:
        """Nothing is being made."""
        return {self.preview: gr.update(value=None, visible=False)}
