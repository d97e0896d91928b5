"""The server over HTTP: the clip that the library makes, and every way of being refused."""

import base64
import io
import json
import socket
import threading

import httpx
import numpy as np
import pytest
import soundfile

pytest.importorskip("fastapi", reason="needs the extra web")

from fastapi.testclient import TestClient  # noqa: E402
from starlette.applications import Starlette  # noqa: E402
from starlette.responses import StreamingResponse  # noqa: E402
from starlette.routing import Route  # noqa: E402

from audiolitefocus.web import gate as gate_module  # noqa: E402
from audiolitefocus.web import worker as worker_module  # noqa: E402
from audiolitefocus.web.limits import Limits  # noqa: E402
from audiolitefocus.web.server import GENERATE, make_app  # noqa: E402
from tests.support.serving import serving, wait_for  # noqa: E402

QUICK = {"input": "a bell over rain", "num_inference_steps": 2, "sampler": "dpm++"}
QUICK |= {"audio_length": 0.64, "seed": 3}
OPTIONS = {"num_inference_steps": 2, "sampler": "dpm++", "audio_length_in_s": 0.64, "seed": 3}
ONE_STEP = 1.01 / 32768  # 16-bit samples are rounded
BATCH_TOLERANCE = 1e-4 + ONE_STEP  # rounding of batched products; 8.3e-5 was seen
KEY = "a-key-of-some-length"


def clip_of(demo, **changes) -> np.ndarray:
    """What the library makes of QUICK."""
    return demo("a bell over rain", **{**OPTIONS, **changes}).audios[0]


def samples_of(content: bytes) -> np.ndarray:
    return soundfile.read(io.BytesIO(content), dtype="float32")[0]


def error_of(response) -> dict:
    """The error, whose shape is OpenAI's."""
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and "\n" not in error["message"]
    return error


# Sounds


@pytest.mark.parametrize("name", ["wav", "flac"])
def test_the_clip_is_the_one_that_the_library_makes(client, demo, name):
    response = client.post(GENERATE, json={**QUICK, "response_format": name})
    assert response.status_code == 200 and response.headers["content-type"] == f"audio/{name}"
    assert response.headers["x-seed"] == "3"
    np.testing.assert_allclose(samples_of(response.content), clip_of(demo), atol=ONE_STEP)


@pytest.mark.parametrize(("name", "kind"), [("ogg", "VORBIS"), ("mp3", "MPEG_LAYER_III")])
def test_lossy_formats_have_the_clips_length(client, name, kind):
    response = client.post(GENERATE, json={**QUICK, "response_format": name})
    about = soundfile.info(io.BytesIO(response.content))
    assert (about.subtype, about.frames, about.samplerate) == (kind, 10240, 16000)


def test_a_random_seed_comes_back_and_makes_the_clip_again(client):
    first = client.post(GENERATE, json={**QUICK, "seed": None})
    again = client.post(GENERATE, json={**QUICK, "seed": int(first.headers["x-seed"])})
    assert first.content == again.content


def test_a_streamed_clip_has_the_bytes_of_the_whole_one(client):
    whole = client.post(GENERATE, json=QUICK)
    assert client.post(GENERATE, json={**QUICK, "stream": True}).content == whole.content
    raw = client.post(GENERATE, json={**QUICK, "stream": True, "response_format": "pcm"})
    assert raw.headers["content-type"] == "audio/pcm; rate=16000; channels=1"
    assert raw.content == whole.content[44:]


def test_a_long_clip_comes_in_blocks_while_it_is_decoded(client):
    asked = {**QUICK, "audio_length": 30.0, "num_inference_steps": 1, "stream": True}
    with client.stream("POST", GENERATE, json=asked) as response:
        parts = list(response.iter_raw())
    assert "content-length" not in response.headers and len(parts) > 3
    assert len(samples_of(b"".join(parts))) == 480_000


def test_the_best_candidate_comes_with_its_score(client, demo):
    response = client.post(GENERATE, json={**QUICK, "num_waveforms_per_prompt": 2})
    expected = demo("a bell over rain", **{**OPTIONS, "num_waveforms_per_prompt": 2})
    np.testing.assert_allclose(samples_of(response.content), expected.audios[0], atol=ONE_STEP)
    assert float(response.headers["x-clap-score"]) == pytest.approx(
        float(expected.scores[0]), abs=1e-3
    )


def test_a_recording_is_continued_sample_for_sample(client):
    first = client.post(GENERATE, json=QUICK).content
    body = {**QUICK, "continue_audio": base64.b64encode(first).decode(), "audio_length": 1.28}
    longer = samples_of(client.post(GENERATE, json=body).content)
    assert len(longer) == 20480
    np.testing.assert_array_equal(longer[:10240], samples_of(first))


# Beside sounds


def test_health_and_models(client):
    health = client.get("/health").json()
    assert health == {
        "status": "ok",
        "model": "demo",
        "device": "cpu",
        "running": health["running"],
        "waiting": 0,
    }
    assert [model["id"] for model in client.get("/v1/models").json()["data"]] == ["demo"]


def test_the_openapi_page_has_the_options(client):
    page = client.get("/openapi.json").json()["paths"][GENERATE]["post"]
    schema = page["requestBody"]["content"]["application/json"]["schema"]
    assert schema["properties"]["num_inference_steps"]["maximum"] == 1000
    assert set(page["responses"]["200"]["content"]) >= {"audio/wav", "audio/mpeg"}


# Refusals


def test_an_invalid_request_is_an_error_in_openais_shape(client):
    response = client.post(GENERATE, json={**QUICK, "guidance_scale": -1})
    assert response.status_code == 400
    assert error_of(response) == {
        "message": "guidance_scale -1: must be a number from 0 to 1000",
        "type": "invalid_request_error",
        "param": "guidance_scale",
        "code": None,
    }


JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize(
    ("content", "headers", "status", "words"),
    [
        (b"{}", {"Content-Type": "text/plain"}, 415, "Content-Type: application/json"),
        (b"", JSON, 400, "not JSON"),
        (b"[1]", JSON, 400, "no JSON object"),
        (b'{"input": "\xff"}', JSON, 400, "not UTF-8"),
        (b'{"input": "\\ud800"}', JSON, 400, "not valid Unicode"),
        (b'{"a":' * 3000 + b"1" + b"}" * 3000, JSON, 400, "the body is"),
        (b"[" * 20_000, JSON, 400, "too many entries"),
        (b'{"seed": NaN, "input": "x"}', JSON, 400, "seed nan"),
        (b"{}", {**JSON, "Content-Length": "99999999"}, 413, "bytes at most"),
    ],
)
def test_a_hostile_body_is_refused(client, content, headers, status, words):
    response = client.post(GENERATE, content=content, headers=headers)
    assert response.status_code == status and words in error_of(response)["message"]


def test_a_body_that_does_not_say_its_size_is_cut_off(demo):
    limits = Limits(body_bytes=10_000)
    with TestClient(make_app(demo, model="demo", limits=limits)) as client:
        parts = (b" " * 1000 for _ in range(100))
        response = client.post(GENERATE, content=parts, headers=JSON)
        assert response.status_code == 413 and error_of(response)["type"] == "invalid_request_error"


def test_other_paths_and_methods_have_errors_of_the_same_shape(client):
    assert error_of(client.get("/v2"))["code"] == "not_found"
    assert client.get(GENERATE).status_code == 405


def test_a_fault_inside_says_nothing_of_it(demo, monkeypatch):
    def broken(*arguments):
        raise RuntimeError("secret /path")

    monkeypatch.setattr(worker_module, "make_together", broken)
    with TestClient(make_app(demo, model="demo"), raise_server_exceptions=False) as client:
        response = client.post(GENERATE, json=QUICK)
    assert response.status_code == 500 and error_of(response)["type"] == "server_error"
    assert "secret" not in response.text


def test_memory_that_runs_out_is_a_507_with_what_helps(demo, monkeypatch):
    def greedy(*arguments):
        raise MemoryError("out of memory on cpu; what helps: a shorter --duration")

    monkeypatch.setattr(worker_module, "make_together", greedy)
    with TestClient(make_app(demo, model="demo")) as client:
        response = client.post(GENERATE, json=QUICK)
    assert response.status_code == 507 and "what helps" in error_of(response)["message"]


def test_the_key_is_needed_where_there_is_one(demo):
    with TestClient(make_app(demo, model="demo", key=KEY)) as client:
        for given in ({}, {"Authorization": f"Bearer {KEY}x"}, {"Authorization": f"Basic {KEY}"}):
            for response in (
                client.post(GENERATE, json=QUICK, headers=given),
                client.get("/v1/models", headers=given),
            ):
                assert response.status_code == 401
                assert error_of(response)["code"] == "invalid_api_key"
        right = {"Authorization": f"Bearer {KEY}"}
        assert client.post(GENERATE, json=QUICK, headers=right).status_code == 200
        assert client.get("/health").status_code == 200


# Many clients, over sockets


@pytest.fixture
def held(monkeypatch):
    """Set to let the worker go on; it waits before each batch."""
    gate, make = threading.Event(), worker_module.make_together

    def waiting(*arguments):
        assert gate.wait(30)
        return make(*arguments)

    monkeypatch.setattr(worker_module, "make_together", waiting)
    yield gate
    gate.set()


def in_background(address: str, body: dict) -> tuple[threading.Thread, list]:
    """A request in a thread of its own, and the list that its response comes into."""
    found: list = []
    send = lambda: found.append(httpx.post(address + GENERATE, json=body, timeout=60))  # noqa: E731
    thread = threading.Thread(target=send)
    thread.start()
    return thread, found


def health_of(address: str) -> dict:
    return httpx.get(address + "/health").json()


def test_requests_that_wait_are_made_together_and_are_the_clips_of_the_library(demo, held):
    with serving(make_app(demo, model="demo")) as address:
        first = in_background(address, {**QUICK, "num_inference_steps": 1})
        wait_for(lambda: health_of(address)["running"] == 1)
        clips = [in_background(address, {**QUICK, "seed": seed}) for seed in range(4)]
        wait_for(lambda: health_of(address)["waiting"] == 4)
        held.set()
        first[0].join()
        for seed, (thread, found) in enumerate(clips):
            thread.join()
            expected = clip_of(demo, seed=seed)
            np.testing.assert_allclose(samples_of(found[0].content), expected, atol=BATCH_TOLERANCE)


def test_a_full_queue_is_a_429_with_retry_after(demo, held):
    app = make_app(demo, model="demo", limits=Limits(waiting=2, batch=1))
    with serving(app) as address:
        runs = in_background(address, QUICK)
        wait_for(lambda: health_of(address)["running"] == 1)
        waiting = [in_background(address, QUICK) for _ in range(2)]
        wait_for(lambda: health_of(address)["waiting"] == 2)
        refused = httpx.post(address + GENERATE, json=QUICK)
        assert refused.status_code == 429 and int(refused.headers["retry-after"]) >= 1
        assert error_of(refused)["type"] == "rate_limit_error"
        held.set()
        for thread, found in (runs, *waiting):
            thread.join()
            assert found[0].status_code == 200


def test_too_many_open_requests_are_refused_before_they_are_read(demo, monkeypatch):
    monkeypatch.setattr("audiolitefocus.web.server.SPARE", 0)
    app = make_app(demo, model="demo", limits=Limits(waiting=1, batch=1))
    with serving(app) as address:
        slow = [_half_a_request(address) for _ in range(2)]
        wait_for(lambda: httpx.post(address + GENERATE, json=QUICK).status_code == 429)
        for connection in slow:
            connection.close()
        wait_for(lambda: httpx.post(address + GENERATE, json=QUICK).status_code == 200)


def test_a_body_that_trickles_in_is_given_up(demo, monkeypatch):
    monkeypatch.setattr(gate_module, "BODY_SECONDS", 0.2)
    with serving(make_app(demo, model="demo")) as address:
        with _half_a_request(address) as connection:
            answer = b"".join(iter(lambda: connection.recv(4096), b""))  # until it is closed
    assert answer.startswith(b"HTTP/1.1 408")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["type"] == "invalid_request_error"


def _half_a_request(address: str) -> socket.socket:
    host, port = address.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)))
    head = f"POST {GENERATE} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    connection.sendall(f'{head}Content-Length: 1000\r\n\r\n{{"input": "ra'.encode())
    return connection


LONG = {**QUICK, "num_inference_steps": 900}


def test_a_client_that_goes_away_stops_the_work(demo):
    with serving(make_app(demo, model="demo")) as address:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(address + GENERATE, json=LONG, timeout=0.5)
        wait_for(lambda: health_of(address)["running"] == 0)
        assert httpx.post(address + GENERATE, json=QUICK, timeout=60).status_code == 200


def test_a_client_that_goes_away_while_it_waits_leaves_the_queue(demo, held):
    with serving(make_app(demo, model="demo", limits=Limits(batch=1))) as address:
        runs = in_background(address, QUICK)
        wait_for(lambda: health_of(address)["running"] == 1)
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(address + GENERATE, json=QUICK, timeout=0.5)
        wait_for(lambda: health_of(address)["waiting"] == 0)
        held.set()
        runs[0].join()
        assert runs[1][0].status_code == 200


def test_a_client_that_takes_nothing_is_dropped(monkeypatch):
    monkeypatch.setattr(gate_module, "SEND_SECONDS", 0.3)

    async def parts():
        for _ in range(400):  # more than sockets hold
            yield bytes(1 << 16)

    app = Starlette(routes=[Route("/sound", lambda request: StreamingResponse(parts()))])
    app.add_middleware(gate_module.Gate, path="/sound", most=1)
    with serving(app) as address:
        host, port = address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(b"GET /sound HTTP/1.1\r\nHost: x\r\n\r\n")
            wait_for(lambda: httpx.get(address + "/sound").status_code == 200)
            with pytest.raises((ConnectionError, EOFError)):
                _read_whole(connection)


def _read_whole(connection: socket.socket) -> None:
    """Read to the last chunk; raise EOFError where the answer ends before."""
    end = b""
    while not end.endswith(b"0\r\n\r\n"):
        part = connection.recv(1 << 16)
        if not part:
            raise EOFError
        end = (end + part)[-16:]


def test_a_clip_that_breaks_off_is_not_taken_for_a_whole_one(demo, monkeypatch):
    blocks = type(demo).blocks

    def breaking(*arguments, **keywords):
        yield next(blocks(*arguments, **keywords))
        raise RuntimeError("the decoder broke")

    monkeypatch.setattr(type(demo), "blocks", breaking)
    with serving(make_app(demo, model="demo")) as address:
        body = {**QUICK, "audio_length": 30.0, "num_inference_steps": 1, "stream": True}
        with pytest.raises(httpx.RemoteProtocolError):
            httpx.post(address + GENERATE, json=body, timeout=60)


def test_stopping_finishes_what_is_being_made(demo, held):
    with serving(make_app(demo, model="demo")) as address:
        thread, found = in_background(address, QUICK)
        wait_for(lambda: health_of(address)["running"] == 1)
        threading.Timer(0.5, held.set).start()
    thread.join()
    assert found[0].status_code == 200 and len(samples_of(found[0].content)) == 10240
