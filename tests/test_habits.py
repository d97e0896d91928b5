"""What diffusers' pipelines have and ours too: callbacks, interrupts, a bar, files and the hub."""

import shutil
import threading
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from torch import nn

from audiolitefocus import AudioLDM2Pipeline
from audiolitefocus.checkpoints import hub
from audiolitefocus.checkpoints.convert import original_keys
from tests.support.checkpoints import digests
from tests.support.hub_server import files_of

QUICK = {"audio_length_in_s": 0.64, "seed": 0, "output_type": "latent", "sampler": "dpm++"}
STEPS = 4


def call(pipe, **changes):
    return pipe("rain", **{**QUICK, "num_inference_steps": STEPS, **changes}).audios


@pytest.mark.parametrize("sampler", ["dpm++", "ddim"])
def test_a_callback_that_changes_nothing_sees_every_step(pipe, sampler):
    seen = []

    def look(given, step, timestep, tensors):
        assert given is pipe and list(tensors) == ["latents"]
        seen.append((step, timestep, tensors["latents"].clone()))
        return tensors

    found = call(pipe, callback_on_step_end=look, sampler=sampler)
    older = []
    expected = call(pipe, callback=lambda *step: older.append(step), sampler=sampler)
    assert torch.equal(found, expected) and torch.equal(seen[-1][2], found)
    assert [step[:2] for step in seen] == [step[:2] for step in older]
    assert [step for step, _, _ in seen] == list(range(STEPS))


@pytest.mark.parametrize("returned", [None, {}])
def test_a_callback_may_return_nothing(pipe, returned):
    found = call(pipe, callback_on_step_end=lambda *_: returned)
    assert torch.equal(found, call(pipe))


def test_returned_latents_take_the_place_of_the_current_ones(pipe):
    """The first latents of one clip, put into another, make the one: DDIM looks no further back."""
    options, first, replaced = {"sampler": "ddim", "eta": 0.0, "seed": None}, [], []

    def keep(pipe, step, timestep, tensors):
        first.append(tensors["latents"])

    def take(pipe, step, timestep, tensors):
        replaced.append(tensors["latents"])
        return {"latents": first[0].double()} if step == 0 else tensors

    one, two = (torch.Generator().manual_seed(seed) for seed in (1, 2))
    expected = call(pipe, **options, generator=one, callback_on_step_end=keep)
    found = call(pipe, **options, generator=two, callback_on_step_end=take)
    assert not torch.equal(replaced[0], first[0])
    assert found.dtype == torch.float32 and torch.equal(found, expected)


@pytest.mark.parametrize("sampler", ["dpm++", "ddim"])
def test_latents_returned_after_the_last_step_are_the_result(pipe, sampler):
    def halve(pipe, step, timestep, tensors):
        return {"latents": tensors["latents"] / 2} if step == STEPS - 1 else tensors

    found = call(pipe, callback_on_step_end=halve, sampler=sampler)
    assert torch.equal(found, call(pipe, sampler=sampler) / 2)


@pytest.mark.parametrize(
    "returned, message",
    [
        ([1], "must be a dict or None"),
        ({"latents": torch.zeros(1, 8, 8, 8)}, r"latents \(1, 8, 8, 8\): must be \(1, 8, 16, 8\)"),
        ({"latents": [0]}, r"latents \[0\]: must be"),
        ({"latents": torch.full((1, 8, 16, 8), torch.nan)}, "not finite"),
    ],
)
def test_what_cannot_be_latents_is_named(pipe, returned, message):
    with pytest.raises(ValueError, match=message):
        call(pipe, callback_on_step_end=lambda *_: returned)


def test_an_interrupt_in_a_callback_ends_its_call_with_what_is_there(pipe):
    seen = []

    def stop(pipe, step, timestep, tensors):
        seen.append(tensors["latents"])
        assert not pipe.interrupt
        pipe.interrupt = step == 1
        return tensors

    found = call(pipe, callback_on_step_end=stop)
    assert len(seen) == 2 and torch.equal(found, seen[1])
    audios = call(pipe, callback_on_step_end=stop, output_type="pt")
    assert torch.equal(audios, pipe.decode(seen[1], audios.shape[1]))
    assert not pipe.interrupt and torch.equal(call(pipe), call(pipe))  # nothing to reset


def test_an_interrupt_ends_one_call_from_inside_and_all_from_outside(pipe):
    """Three calls at once: one ends itself, then the main thread ends the two others."""
    started, stopped = threading.Barrier(4, timeout=60), threading.Event()
    steps = {name: 0 for name in ("own", "a", "b")}

    def run(name):
        def after(pipe, step, timestep, tensors):
            steps[name] += 1
            if step == 0:
                started.wait()
            if name == "own":
                pipe.interrupt = True
            else:
                stopped.wait(60)

        call(pipe, callback_on_step_end=after)

    threads = [threading.Thread(target=run, args=(name,)) for name in steps]
    for thread in threads:
        thread.start()
    started.wait()
    threads[0].join(60)
    assert steps["own"] == 1 and not pipe.interrupt
    pipe.interrupt = True
    stopped.set()
    for thread in threads:
        thread.join(60)
    assert steps == {"own": 1, "a": 1, "b": 1}


def test_an_interrupt_before_a_call_is_without_effect(pipe):
    pipe.interrupt = True
    assert not pipe.interrupt
    assert torch.equal(call(pipe), call(pipe))


def test_a_progress_bar_is_shown_if_asked_for(tiny_bundle, capsys):
    pipe = AudioLDM2Pipeline.from_pretrained(tiny_bundle, device="cpu")
    call(pipe)
    assert capsys.readouterr().err == ""
    pipe.set_progress_bar_config(desc="rain", mininterval=0)
    pipe(["rain", "sea"], **QUICK, num_inference_steps=STEPS)
    shown = capsys.readouterr().err
    assert "rain" in shown and f"{2 * STEPS}/{2 * STEPS}" in shown
    pipe.set_progress_bar_config(disable=True)
    call(pipe)
    assert capsys.readouterr().err == ""
    with pytest.raises(ValueError, match="tqdm has no option 'colours'"):
        pipe.set_progress_bar_config(colours=3)


def test_return_dict_false_is_a_tuple(pipe):
    expected = call(pipe)
    found = pipe("rain", **QUICK, num_inference_steps=STEPS, return_dict=False)
    assert isinstance(found, tuple) and len(found) == 1 and torch.equal(found[0], expected)
    for kind in ("np", "pt", "blocks"):
        options = {**QUICK, "output_type": kind}
        (audios,) = pipe("rain", **options, num_inference_steps=1, return_dict=False)
        assert len(audios) == 1


def test_components_are_the_networks_by_diffusers_names(pipe, tiny_pipeline):
    theirs = {n: c for n, c in tiny_pipeline.components.items() if isinstance(c, nn.Module)}
    assert pipe.components.keys() == theirs.keys()
    assert all(isinstance(network, nn.Module) for network in pipe.components.values())
    assert (
        pipe.components["unet"] is pipe.unet and pipe.components["text_encoder"] is pipe.text.clap
    )


def test_a_single_file_is_converted_once(original_file, diffusers_folder, tmp_path, monkeypatch):
    tokenizers = tmp_path / "tokenizers"
    for ours, theirs in (("clap", "tokenizer"), ("t5", "tokenizer_2")):
        shutil.copytree(diffusers_folder / theirs, tokenizers / ours)
    source = shutil.copy(original_file, tmp_path / "audioldm2.pth")
    options = {"tokenizers": tokenizers, "cache_dir": tmp_path / "cache", "device": "cpu"}
    pipe = AudioLDM2Pipeline.from_single_file(source, **options)
    assert pipe.config.name == "audioldm2.pth" and pipe.config.provenance["kind"] == "original"
    assert torch.isfinite(call(pipe)).all()
    monkeypatch.setattr(original_keys, "read_tensors", lambda path: pytest.fail("read again"))
    assert AudioLDM2Pipeline.from_single_file(source, **options).folder == pipe.folder
    with open(source, "ab") as file:  # another file by the same name
        file.write(b"more")
    with pytest.raises(pytest.fail.Exception, match="read again"):
        AudioLDM2Pipeline.from_single_file(source, **options)
    with pytest.raises(ValueError, match="nonesuch.ckpt: no such file"):
        AudioLDM2Pipeline.from_single_file(tmp_path / "nonesuch.ckpt")


class Uploads:
    """Stands in for HfApi: what it was asked to do, and the files that were there then."""

    error: Exception | None = None
    asked: list = []

    def __init__(self, token=None):
        self.asked.append(("token", token))

    def create_repo(self, repo_id, *, private, exist_ok):
        if self.error:
            raise self.error
        self.asked.append(("create", repo_id, private, exist_ok))
        return SimpleNamespace(repo_id=f"me/{repo_id}")

    def upload_folder(self, *, repo_id, folder_path, commit_message, create_pr):
        self.asked.append(
            ("upload", repo_id, commit_message, create_pr, set(files_of(folder_path)))
        )
        return SimpleNamespace(commit_url="https://hub/commit", pr_url=None)


def test_a_model_is_pushed_as_it_is_saved(pipe, tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "HfApi", Uploads)
    monkeypatch.setattr(Uploads, "asked", [])
    url = pipe.push_to_hub("tiny", private=True, token="hf_mine", variant="fp16")
    assert url == "https://hub/commit"
    pipe.save_pretrained(tmp_path / "model", variant="fp16")
    assert Uploads.asked == [
        ("token", "hf_mine"),
        ("create", "tiny", True, True),
        ("upload", "me/tiny", "Upload AudioLDM2Pipeline", False, set(files_of(tmp_path / "model"))),
    ]


@pytest.mark.parametrize(
    "kind, raised, word",
    [(GatedRepoError, PermissionError, "terms"), (RepositoryNotFoundError, OSError, "private")],
)
def test_a_push_that_is_refused_says_what_to_do(pipe, monkeypatch, kind, raised, word):
    response = SimpleNamespace(headers={}, request=None, status_code=403)
    monkeypatch.setattr(hub, "HfApi", Uploads)
    monkeypatch.setattr(Uploads, "error", kind("no", response=response))
    with pytest.raises(raised, match=f"'me/tiny'.*{word}"):
        pipe.push_to_hub("me/tiny")


def test_saving_replaces_nothing(pipe, tmp_path):
    target = tmp_path / "model"
    target.mkdir()
    pipe.save_pretrained(target)  # an empty folder will do
    before = files_of(target)
    with pytest.raises(ValueError, match="model exists: choose another folder"):
        pipe.save_pretrained(target)
    with pytest.raises(ValueError, match="is not a folder"):
        pipe.save_pretrained(tmp_path / "no" / "model")
    with pytest.raises(ValueError, match="'max_shard_size': every network is one file"):
        pipe.save_pretrained(tmp_path / "other", max_shard_size="1GB")
    assert files_of(target) == before and list(tmp_path.iterdir()) == [target]


def test_a_model_without_tokenizers_is_not_saved(tiny_bundle, tmp_path):
    bundle = shutil.copytree(tiny_bundle, tmp_path / "bare")
    (bundle / "t5" / "tokenizer_config.json").unlink()
    pipe = AudioLDM2Pipeline.from_pretrained(bundle, device="cpu")
    with pytest.raises(ValueError, match="t5 has no tokenizer, without which diffusers"):
        pipe.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_saved_model_is_loaded_by_its_folder(pipe, tmp_path):
    """Converted into the cache once, and the same networks."""
    pipe.save_pretrained(tmp_path / "model")
    options = {"cache_dir": tmp_path / "cache", "device": "cpu"}
    again = AudioLDM2Pipeline.from_pretrained(tmp_path / "model", **options)
    weights = ("vae", "vocoder", "projection", "clap", "t5", "gpt2", "unet")
    ours, theirs = digests(pipe.folder), digests(again.folder)
    assert {name.split("/")[0].split(".")[0] for name in ours} == set(weights) and ours == theirs
    made = (again.folder / "config.json").stat().st_mtime_ns
    assert AudioLDM2Pipeline.from_pretrained(tmp_path / "model", **options).folder == again.folder
    assert (again.folder / "config.json").stat().st_mtime_ns == made
