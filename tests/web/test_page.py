"""The page in a real browser, headless: what a visitor does, and what comes back."""

import io
import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

gr = pytest.importorskip("gradio", reason="needs the extra web")
playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")

import httpx  # noqa: E402

from audiolitefocus.web.limits import Limits  # noqa: E402
from audiolitefocus.web.page import launch  # noqa: E402

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed"),
]

PATIENCE = 60_000  # milliseconds
PCM_STEP = 1.01 / 32768  # 16-bit samples are rounded
TONE = 440.0  # Hz
QUICK = {"num_inference_steps": 4, "audio_length_in_s": 1.28}


@pytest.fixture(scope="module")
def address(demo):
    """A page of the demo model, whose visitors may ask for 20 s at most."""
    limits = Limits(seconds=20.0, body_bytes=1_000_000)
    page = launch(demo, host="127.0.0.1", limits=limits, block=False)
    yield page.blocks.local_url
    page.blocks.close()
    page.worker.close()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """A browser whose microphone hears a tone of `TONE` Hz."""
    heard = tmp_path_factory.mktemp("microphone") / "tone.wav"
    tone = 0.5 * np.sin(2 * np.pi * TONE * np.arange(4 * 16000) / 16000)
    soundfile.write(heard, tone, 16000)
    flags = ["--no-sandbox", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    flags.append(f"--use-file-for-fake-audio-capture={heard}")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield browser
        browser.close()


class Tab:
    """A visitor's tab."""

    def __init__(self, page, address: str):
        self.page, self.address = page, address
        self.requests: list[str] = []
        page.set_default_timeout(PATIENCE)
        page.on("request", lambda request: self.requests.append(request.url))
        page.goto(address)
        page.locator("#prompt textarea").wait_for()

    def fill(self, **fields) -> None:
        for name, value in fields.items():
            self.page.locator(f"#{name} input, #{name} textarea").fill(str(value))

    def make(self, prompt: str, **fields) -> None:
        """Press the button, without waiting for the clip."""
        self.fill(prompt=prompt, **{"steps": 4, "duration": 1.28, **fields})
        self.page.get_by_role("button", name="Make it").click()

    def wait_for_status(self, words: str) -> None:
        script = "words => document.querySelector('#status').innerText.includes(words)"
        self.page.wait_for_function(script, arg=words)

    def files(self) -> dict[str, bytes]:
        """What the list of files offers, fetched as a browser does, by ending."""
        self.page.locator("#files a").first.wait_for()
        links = [link.get_attribute("href") for link in self.page.locator("#files a").all()]
        return {Path(link).suffix: httpx.get(link).raise_for_status().content for link in links}

    def wait_for_error(self, words: str) -> None:
        self.page.get_by_text(words).first.wait_for()


@pytest.fixture
def tab(browser, address):
    page = browser.new_page(viewport={"width": 1300, "height": 1000})
    yield Tab(page, address)
    page.close()


def samples_of(content: bytes) -> np.ndarray:
    return soundfile.read(io.BytesIO(content), dtype="float32")[0]


def test_a_clip_comes_back_as_the_library_makes_it_with_its_recipe(tab, demo):
    tab.make("a bell over rain", seed=7)
    tab.wait_for_status("a bell over rain (seed 7)")
    files = tab.files()
    expected = demo("a bell over rain", seed=7, **QUICK).audios[0]
    np.testing.assert_allclose(samples_of(files[".wav"]), expected, atol=PCM_STEP)
    recipe = json.loads(files[".json"])
    assert (recipe["prompt"], recipe["seed"], recipe["num_inference_steps"]) == (
        "a bell over rain",
        7,
        4,
    )
    spectrogram = tab.page.get_by_alt_text("Spectrogram").first
    spectrogram.wait_for()
    assert spectrogram.evaluate("image => image.decode().then(() => image.naturalWidth)") > 600
    # all that the page loads comes from this machine
    assert {url.split("/")[2] for url in tab.requests if url.startswith("http")} == {
        tab.address.split("/")[2]
    }


def test_a_recording_is_inpainted_where_it_is_said_and_stays_elsewhere(tab, tmp_path):
    noise = (0.1 * np.random.default_rng(0).standard_normal(32000)).astype(np.float32)
    soundfile.write(tmp_path / "mine.wav", noise, 16000)
    kept = soundfile.read(tmp_path / "mine.wav", dtype="float32")[0]
    tab.page.get_by_role("button", name="Recording", exact=False).first.click()
    tab.page.get_by_label("Replace a part").click()
    tab.page.locator("#recording input[type=file]").set_input_files(tmp_path / "mine.wav")
    tab.page.locator("#recording").get_by_label("Play", exact=False).first.wait_for()
    tab.fill(inpaint="0.5:1")
    tab.make("a rising chirp", seed=1)
    tab.wait_for_status("a rising chirp (seed 1)")
    files = tab.files()
    found = samples_of(files[".wav"])
    np.testing.assert_array_equal(found[:8000], kept[:8000])
    np.testing.assert_array_equal(found[16000:], kept[16000:])
    assert not np.array_equal(found[8000:16000], kept[8000:16000])
    recipe = json.loads(files[".json"])
    assert recipe["init_audio"] == "mine.wav" and recipe["inpaint"] == [0.5, 1.0]


def loudest_frequency(samples: np.ndarray, rate: int = 16000) -> float:
    """In Hz."""
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return float(spectrum.argmax() * rate / len(samples))


def test_what_the_microphone_hears_is_continued(tab):
    tab.page.get_by_role("button", name="Recording", exact=False).first.click()
    recording = tab.page.locator("#recording")
    recording.get_by_label("Record audio").click()
    recording.get_by_role("button", name="Record", exact=True).click()
    recording.get_by_role("button", name="Stop", exact=True).wait_for()
    tab.page.wait_for_timeout(1500)  # of sound
    recording.get_by_role("button", name="Stop", exact=True).click()
    recording.get_by_label("Play", exact=True).wait_for()
    tab.page.get_by_label("Continue", exact=True).click()
    tab.make("rain", seed=1, duration=7.68)
    tab.wait_for_status("rain (seed 1)")
    files = tab.files()
    made, recipe = samples_of(files[".wav"]), json.loads(files[".json"])
    assert len(made) == int(7.68 * 16000) and recipe["continue_audio"].endswith(".wav")
    assert loudest_frequency(made[4000:16000]) == pytest.approx(TONE, abs=2)


def test_a_recording_can_be_cut_to_what_is_selected_on_its_waveform(tab, tmp_path):
    noise = (0.1 * np.random.default_rng(0).standard_normal(32000)).astype(np.float32)
    soundfile.write(tmp_path / "mine.wav", noise, 16000)
    tab.page.get_by_role("button", name="Recording", exact=False).first.click()
    recording = tab.page.locator("#recording")
    recording.locator("input[type=file]").set_input_files(tmp_path / "mine.wav")
    recording.get_by_label("Trim audio to selection").click()
    recording.get_by_role("button", name="Trim", exact=True).click()
    recording.get_by_label("Trim audio to selection").wait_for()
    tab.make("rain", seed=1)
    tab.wait_for_status("rain (seed 1)")
    # what is selected at first is the second quarter, about
    assert 0.2 < len(samples_of(tab.files()[".wav"])) / 32000 < 0.3


def test_on_a_narrow_screen_the_results_come_into_view(browser, address):
    page = browser.new_page(viewport={"width": 390, "height": 800})
    tab = Tab(page, address)
    tab.make("rain", seed=1)
    tab.wait_for_status("rain (seed 1)")
    page.wait_for_function(
        "document.querySelector('#results').getBoundingClientRect().top < innerHeight / 2"
    )
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.close()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"duration": 0}, "duration 0.0: must be a number from 0.04 to 3600"),
        ({"duration": 21}, "21 s: one request may ask for 20 s of sound at most"),
        ({"seed": "x"}, "seed 'x': must be a whole number"),
        ({"candidates": 9}, "candidates 9: this page shows 4 at most"),
    ],
)
def test_an_error_is_the_librarys_one_line(tab, fields, words):
    tab.make("rain", **fields)
    tab.wait_for_error(words)


def test_what_a_visitor_writes_is_shown_as_text(tab):
    tab.make("<img src=x onerror=document.title='broken'>", seed=1)
    tab.wait_for_status("<img src=x")
    assert tab.page.title() == "audiolitefocus"


def test_candidates_stand_best_first_and_the_history_brings_clips_back(tab):
    tab.make("rain", seed=1, candidates=2)
    tab.wait_for_status("rain (seed 1)")
    labels = tab.page.get_by_text("of 2, CLAP").all_inner_texts()
    scores = [float(label.split()[-1]) for label in labels]
    assert len(scores) == 2 and scores == sorted(scores, reverse=True)
    tab.make("wind", seed=2, candidates=1)
    tab.wait_for_status("wind (seed 2)")
    thumbnails = tab.page.locator("#history .thumbnail-item")
    thumbnails.nth(1).wait_for()
    assert thumbnails.count() == 2
    thumbnails.nth(1).click()
    tab.wait_for_status("rain (seed 1)")


def test_two_tabs_wait_for_each_other_and_get_their_own_clips(browser, address, demo):
    pages = [browser.new_page() for _ in range(2)]
    tabs = [Tab(page, address) for page in pages]
    for seed, tab in enumerate(tabs):
        tab.make("rain", seed=seed, steps=10)
    for seed, tab in enumerate(tabs):
        tab.wait_for_status(f"rain (seed {seed})")
        expected = demo("rain", seed=seed, **{**QUICK, "num_inference_steps": 10}).audios[0]
        np.testing.assert_allclose(samples_of(tab.files()[".wav"]), expected, atol=PCM_STEP)
    for page in pages:
        page.close()


def test_stop_ends_the_work_and_progress_is_shown_before(tab):
    tab.make("rain", steps=850, duration=10.24)
    tab.wait_for_status("s left")
    tab.page.get_by_alt_text("What it is so far").first.wait_for()
    tab.page.get_by_role("button", name="Stop").click()
    tab.wait_for_status("Stopped.")
    tab.make("rain", seed=3)
    tab.wait_for_status("rain (seed 3)")


def test_closing_the_tab_ends_the_work(browser, address):
    page = browser.new_page()
    left = Tab(page, address)
    left.make("rain", steps=850, duration=20)
    left.wait_for_status("s left")
    page.close()
    page = browser.new_page()
    start = time.monotonic()
    other = Tab(page, address)
    other.make("wind", seed=1)
    other.wait_for_status("wind (seed 1)")
    assert time.monotonic() - start < 30  # the other clip would take minutes
    page.close()


def test_where_attention_goes_is_drawn(tab):
    tab.page.get_by_role("tab", name="Where attention goes").click()
    tab.page.locator("#look-num_inference_steps input").fill("2")
    tab.page.get_by_role("button", name="Look").click()
    picture = tab.page.get_by_alt_text("Attention maps")
    picture.wait_for()
    assert picture.evaluate("image => image.decode().then(() => image.naturalWidth)") == 372
    tab.page.get_by_text("12.5%").locator(
        "visible=true"
    ).first.wait_for()  # by chance, with eight rows


@pytest.mark.parametrize(
    "recording",
    [
        {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}},
        {"path": str(Path(__file__).resolve()), "meta": {"_type": "gradio.FileData"}},
        "/etc/passwd",
        ["/etc/passwd"],
    ],
)
def test_a_recording_that_was_not_uploaded_is_refused(address, recording):
    config = httpx.get(f"{address}config").json()
    parts = {part["id"]: part for part in config["components"]}
    make = next(event for event in config["dependencies"] if event["api_name"] == "make")
    data = [parts[number]["props"].get("value") for number in make["inputs"]]
    kinds = [parts[number]["type"] for number in make["inputs"]]
    data[0], data[kinds.index("audio")] = "rain", recording
    session = {"session_hash": "hostile"}
    body = {"data": data, "fn_index": make["id"], **session}
    httpx.post(f"{address}gradio_api/queue/join", json=body).raise_for_status()
    with httpx.stream("GET", f"{address}gradio_api/queue/data", params=session) as events:
        messages = (json.loads(line[6:]) for line in events.iter_lines() if line)
        ended = next(event for event in messages if event["msg"] == "process_completed")
    assert not ended["success"] and "root:" not in json.dumps(ended)


def test_files_of_the_server_and_large_uploads_are_refused(address, tmp_path):
    for path in ("/etc/passwd", str(Path(__file__).resolve()), "/proc/self/environ"):
        assert httpx.get(f"{address}gradio_api/file={path}").status_code in (403, 404)
    large = {"files": ("large.wav", bytes(1_500_000))}
    assert httpx.post(f"{address}gradio_api/upload", files=large).status_code == 413
