"""The page: a form on the left, and on the right what is made. Talks to nobody but its visitors."""

import os
import secrets
import signal
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when Gradio is imported
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import gradio as gr  # noqa: E402

from audiolitefocus.options import OPTIONS, SOUND  # noqa: E402
from audiolitefocus.output import AudioOutput  # noqa: E402
from audiolitefocus.pipeline import AudioLDM2Pipeline  # noqa: E402
from audiolitefocus.web import attention_tab  # noqa: E402
from audiolitefocus.web.form import USES, component, read_options  # noqa: E402
from audiolitefocus.web.limits import NOT_SERVED, Limits  # noqa: E402
from audiolitefocus.web.look import CSS, SHOW_RESULTS, one_line, status, theme  # noqa: E402
from audiolitefocus.web.making import PageJob, follow, plan  # noqa: E402
from audiolitefocus.web.results import SLOTS, Results  # noqa: E402
from audiolitefocus.web.shelf import Kept, Shelf, own_cache  # noqa: E402
from audiolitefocus.web.worker import Cancelled, Closed, Full, Worker  # noqa: E402

CACHE_SECONDS = (3600, 24 * 3600)  # Gradio's copies: looked through every hour, kept for a day
ANSWERED = (ValueError, OSError, MemoryError, Full, Closed)  # errors that a visitor can mend
OPEN = ("Sampling",)  # groups of options that are not folded away
USED = ("strength", "inpaint", "refresh")  # with some uses of a recording
FIRST = ("audio_length_in_s", "num_waveforms_per_prompt", "seed")
EXAMPLES = [  # for the bundled model
    ["a bell over rain", 2.56, "dpm++", 25, 7.0],
    ["a rising chirp", 5.12, "dpm++", 25, 7.0],
    ["a fast metronome", 5.12, "dpm++", 25, 7.0],
    ["a low engine hum over wind", 10.24, "dpm++", 25, 7.0],
]
EXAMPLE_FIELDS = ("audio_length_in_s", "sampler", "num_inference_steps", "guidance_scale")


class Page:
    """The page of one pipeline.

    Args:
        limits: what one visitor may ask for.
    """

    def __init__(self, pipe: AudioLDM2Pipeline, limits: Limits | None = None):
        self.pipe, self.limits = pipe, limits or Limits()
        waiting, seconds = self.limits.waiting, self.limits.seconds
        self.worker = Worker(pipe, waiting=waiting, batch=1, seconds=seconds)
        self.worker.start()
        self.shelf = Shelf(pipe)
        own_cache()
        self._jobs: dict[str | None, PageJob] = {}
        self.blocks = self._build()

    # The layout

    def _build(self) -> gr.Blocks:
        blocks = gr.Blocks(
            title="audiolitefocus", analytics_enabled=False, delete_cache=CACHE_SECONDS
        )
        with blocks:
            gr.Markdown(
                f"# audiolitefocus\nText to audio with `{self.pipe.config.name}` on "
                f"{self.pipe.device.type}, at most {self.limits.seconds:g} s at a time.",
                elem_classes="title",
            )
            with gr.Tab("Make"), gr.Row():
                with gr.Column(scale=5, min_width=320):
                    self._build_form()
                with gr.Column(scale=6, min_width=320, elem_id="results"):
                    self.results = Results()
            with gr.Tab("Where attention goes"):
                attention_tab.build(self.pipe, self.worker, self.limits)
            self._connect()
            blocks.unload(self.leave)
        return blocks

    def _build_form(self) -> None:
        self.prompt = gr.Textbox(
            label="Prompt",
            placeholder="The sound to make",
            lines=2,
            max_lines=4,
            autofocus=True,
            elem_id="prompt",
        )
        with gr.Row():
            self.go = gr.Button("Make it", variant="primary", scale=3, min_width=120)
            self.halt = gr.Button("Stop", scale=1, min_width=80)
        self.status = gr.HTML(status("Ready."), elem_id="status")
        with gr.Row():
            self.fields = {name: component(name, min_width=120) for name in FIRST}
        self._build_recording()
        groups: dict[str, list[str]] = {}
        for name, option in OPTIONS.items():
            if option.rule is not SOUND and name not in (*self.fields, *NOT_SERVED):
                groups.setdefault(option.group, []).append(name)
        for caption, names in groups.items():
            with gr.Accordion(caption, open=caption in OPEN), gr.Row():
                self.fields |= {name: component(name, min_width=140) for name in names}
        entered = [self.prompt, *(self.fields[name] for name in EXAMPLE_FIELDS)]
        gr.Examples(EXAMPLES, entered, label="Examples that the bundled model knows")

    def _build_recording(self) -> None:
        with gr.Accordion("Recording", open=False):
            self.recording = gr.Audio(
                sources=["upload", "microphone"],
                type="filepath",
                label="Recording",
                buttons=["download"],  # Gradio's others share it on the web
                elem_id="recording",
            )
            self.use = gr.Radio(list(USES), value="Vary", label="What to do with it")
            with gr.Row():
                self.fields["strength"] = component("strength", min_width=140)
                for name in ("inpaint", "refresh"):
                    self.fields[name] = component(name, min_width=140, visible=False)

    def _connect(self) -> None:
        """What follows from what a visitor does."""
        results = self.results
        entered = [self.prompt, self.recording, self.use, results.history, *self.fields.values()]
        shown = [self.status, *results.parts]
        private: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        made = gr.on(
            [self.go.click, self.prompt.submit],
            self.make,
            entered,
            shown,
            concurrency_limit=None,  # the worker has the queue
            **private,
        )
        made.success(None, js=SHOW_RESULTS, **private)
        self.halt.click(self.leave, None, None, queue=False, **private)
        self.use.change(
            _fields_of_use, self.use, [self.fields[n] for n in USED], queue=False, **private
        )
        results.reuse.click(lambda path: path, results.sounds[0], self.recording, **private)
        results.gallery.select(self.show_again, results.history, shown, **private)

    # What happens

    def make(self, request: gr.Request, prompt, recording, use, history, *values) -> Iterator[dict]:
        """Make a clip, and show how far it is."""
        session, job = request.session_hash, None
        try:
            chosen = dict(zip(self.fields, values, strict=True))
            job = self._submit(session, prompt, read_options(chosen, recording, use))
            for event in follow(job, self.worker):
                if isinstance(event, AudioOutput):
                    kept = self.shelf.keep(job, event)
                    yield self._shown(kept, [kept, *history])
                else:
                    told = {self.status: status(event.text, event.fraction)}
                    yield told | self.results.show_preview(event)
        except Cancelled:
            yield {self.status: status("Stopped.")} | self.results.hide_preview()
        except ANSWERED as error:
            yield {self.status: status("Ready.")} | self.results.hide_preview()
            raise one_line(error) from None
        finally:
            if job is not None:
                self.worker.cancel(job)
                if self._jobs.get(session) is job:
                    del self._jobs[session]

    def _submit(self, session: str | None, prompt: str, options) -> PageJob:
        if options.num_waveforms_per_prompt > SLOTS:
            raise ValueError(
                f"candidates {options.num_waveforms_per_prompt}: this page shows {SLOTS} at most"
            )
        if options.seed is None:
            options = replace(options, seed=secrets.randbits(32))
        job = plan(self.pipe, prompt, options, self.limits)
        self.worker.submit(job)
        self._jobs[session] = job
        return job

    def leave(self, request: gr.Request) -> None:
        """Stop what this visitor waits for."""
        if (job := self._jobs.get(request.session_hash)) is not None:
            self.worker.cancel(job)
            job.on_error(Cancelled())  # which a job that waited would not hear of otherwise

    def show_again(self, history: list[Kept], selected: gr.SelectData) -> dict:
        """Show a clip of the history."""
        kept = history[selected.index]
        if not os.path.exists(kept.sounds[0]):
            raise one_line(ValueError("this clip is no longer kept: make it again with its seed"))
        return self._shown(kept, history)

    def _shown(self, kept: Kept, history: list[Kept]) -> dict:
        about = {self.status: status(f"{kept.prompt} (seed {kept.seed})")}
        return about | self.results.show(kept, history)


def _fields_of_use(use: str) -> list:
    """Shows the options that count for this use of a recording."""
    return [gr.update(visible=name in USES[use][1]) for name in USED]


def launch(
    pipe: AudioLDM2Pipeline | str = "demo",
    *,
    host: str | None = None,
    port: int | None = None,
    limits: Limits | None = None,
    block: bool = True,
) -> Page:
    """Show the page until the process should end: by Ctrl-C or, in its main thread, SIGTERM.

    Args:
        pipe: a pipeline, or the name of a model.
        host, port: by default Gradio's, which a Space sets in the environment.
        limits: what one visitor may ask for.
        block: False returns at once, while the page is served by a thread.
    """
    if isinstance(pipe, str):
        pipe = AudioLDM2Pipeline.from_pretrained(pipe)
    pipe.text  # noqa: B018  # loaded now, so that the first clip is not the slow one
    page = Page(pipe, limits)
    page.blocks.queue(api_open=False)
    if block and threading.current_thread() is threading.main_thread():
        # else a process that SIGTERM ends leaves its temporary folders behind
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        page.blocks.launch(
            server_name=host,
            server_port=port,
            share=False,
            ssr_mode=False,
            max_file_size=page.limits.body_bytes,
            allowed_paths=[page.shelf.root],
            enable_monitoring=False,
            footer_links=["settings"],
            run_history=False,
            theme=theme(),
            css=CSS,
            prevent_thread_lock=not block,
        )
    finally:
        if block:
            page.worker.close()
    return page


if __name__ == "__main__":
    launch()
