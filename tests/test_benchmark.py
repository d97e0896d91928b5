"""The benchmark: who is timed, what is counted, and what is kept of it."""

import json
import subprocess
import sys

import benchmark
import pytest
from contenders import BATCH, attention_of, flops
from report import Result, markdown, record

from audiolitefocus.attention import LiteFocus

LEVEL_1_ATTENTIONS, LEVEL_1_CHANNELS = 20, 256  # of audioldm2-full


def test_flops_saved_by_a_query_that_sees_its_row_alone():
    rows, length = 8, 16
    tokens = rows * length
    per_attention = 2 * 2 * BATCH * LEVEL_1_CHANNELS  # a product for scores, one for values
    saved = LEVEL_1_ATTENTIONS * per_attention * (tokens**2 - rows * length**2)
    assert flops("dense", 1.28) - flops("litefocus:0", 1.28) == saved
    assert flops("diffusers", 1.28) == flops("naive", 1.28) == flops("dense", 1.28)


def test_contenders_attend_as_their_names_say():
    assert attention_of("auto", 10.24) == "dense"
    assert attention_of("auto", 80) == LiteFocus.for_duration(80)
    assert attention_of("litefocus:0:2", 80) == LiteFocus(sparse_ratio=0, levels=(1, 2))
    assert attention_of("authors", 80).duplicates


def test_the_table_tells_how_many_times_faster_than_the_baseline_of_the_same_run():
    def run(baseline: float, ours: float) -> dict:
        results = [Result("diffusers", "float32", 80.0, times=[baseline])]
        results += [Result("auto", "bfloat16", 80.0, flops=600, times=[ours, 9 * ours, ours])]
        return record(results, {}, {"bfloat16": 1000.0})

    assert run(6.0, 2.0)["results"][1]["share_of_peak"] == 0.3
    table = markdown([run(6.0, 2.0), run(5.0, 1.0)])  # a later run replaces an earlier one
    assert "| 80 s | bfloat16 | - | 1.00 s, 5.00x |" in table.splitlines()


def test_clips_of_the_demo_model(tmp_path):
    command = [sys.executable, benchmark.__file__, "--what", "pipeline", "--seconds", "0.64"]
    command += ["--steps", "1", "--repeats", "1", "--dtypes", "float32"]
    command += ["--contenders", "dense", "litefocus:0", "diffusers"]
    command += ["--output", str(tmp_path / "made.json")]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found = json.loads((tmp_path / "made.json").read_text())
    assert found == json.loads(done.stdout.splitlines()[-1])
    medians = {result["contender"]: result["median"] for result in found["results"]}
    assert medians["dense"] > 0 and medians["litefocus:0"] > 0 and medians["diffusers"] is None
    assert found["what"] == "pipeline" and found["peak_flops"]["float32"] > 1e9


def test_a_contender_nobody_knows(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "--contenders", "flash"])
    with pytest.raises(SystemExit):
        benchmark.arguments()
    assert "attention 'flash'" in capsys.readouterr().err
