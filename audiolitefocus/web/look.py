"""How the page looks: colours, fonts and short pieces of HTML."""

import html

import gradio as gr

ERROR_SECONDS = 15  # that an error is shown

# help texts in a grey that can be read; the rest undoes what does not fit this page
CSS = """
:root { --block-info-text-color: #52525b; }
.dark { --block-info-text-color: #d4d4d8; }
.form > .block > .container { display: flex; flex-direction: column; height: 100%; }
.form > .block > .container > :last-child { margin-top: auto; }
.info-text { overflow-wrap: anywhere; }
#status { min-height: 3.2em; }
.bar { height: 0.5em; margin-top: 0.5em; border-radius: 1em; overflow: hidden; }
.bar { background: var(--border-color-primary); }
.bar div { height: 100%; background: var(--color-accent); }
#history .grid-wrap { min-height: 0; height: auto; max-height: none; }
#history .thumbnail-item { aspect-ratio: 5 / 3; }
#history .caption-label { left: 0; right: 0; bottom: 0; max-width: 100%; }
#files .label-clear-button { display: none; }
@media (max-width: 720px) { #results { min-height: 100vh; } }
.title h1 { margin-bottom: 0; }
footer { opacity: 0.7; }
"""
# on a narrow screen the results are below the form
SHOW_RESULTS = """() => {
    const results = document.querySelector("#results");
    if (results.getBoundingClientRect().top > window.innerHeight) results.scrollIntoView();
}"""


def theme() -> gr.themes.Base:
    """Gradio's own with the system's fonts, which need no download."""
    sans = ("system-ui", "-apple-system", "Segoe UI", "sans-serif")
    mono = ("ui-monospace", "Consolas", "monospace")
    return gr.themes.Default(font=sans, font_mono=mono, primary_hue="orange")


def status(text: str, fraction: float | None = None) -> str:
    """A line of text, and a bar where a fraction is given."""
    bar = ""
    if fraction is not None:
        percent = f"{100 * fraction:.0f}"
        bar = (
            f"<div class='bar' role='progressbar' aria-valuenow='{percent}'>"
            f"<div style='width: {percent}%'></div></div>"
        )
    return f"<div role='status'>{html.escape(text)}</div>{bar}"


def one_line(error: Exception) -> gr.Error:
    """An error as the page shows it; it may hold what the visitor wrote."""
    text = html.escape(" ".join(str(error).split()), quote=False)
    return gr.Error(text, duration=ERROR_SECONDS, print_exception=False)
