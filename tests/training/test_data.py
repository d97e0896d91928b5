"""Tables of sounds and captions."""

import json

import pytest

from audiolitefocus.training.data import read_examples


def test_a_folder_is_read_in_the_order_of_its_table(sounds):
    examples = read_examples(sounds)
    assert [e.path.name for e in examples] == ["0.wav", "1.wav", "2.wav", "3.wav"]
    assert examples[2].caption == "tone number 2"
    assert read_examples(sounds / "metadata.csv") == examples


@pytest.mark.parametrize("names", [("file_name", "text"), ("audio", "caption"), ("path", "prompt")])
def test_json_lines_may_use_the_usual_names_of_columns(sounds, tmp_path, names):
    file, caption = names
    table = tmp_path / "metadata.jsonl"
    line = json.dumps({file: str(sounds / "1.wav"), caption: " two\n words ", "other": 3})
    table.write_text(f"{line}\n\n")
    (example,) = read_examples(tmp_path)
    assert example.path == sounds / "1.wav" and example.caption == "two words"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["file_name,caption", "gone.wav,a bell"], "line 2: no such sound: 'gone.wav'"),
        (["file_name,caption", "0.wav,"], "line 2: caption is ''"),
        (["file_name", "0.wav"], "line 2: caption is None"),
        (["sound,caption", "0.wav,a bell"], "line 2: file_name is None"),
        (["file_name,caption"], "names no sounds"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, lines, message):
    (tmp_path / "0.wav").touch()
    (tmp_path / "metadata.csv").write_text("\n".join(lines))
    with pytest.raises(ValueError, match=message):
        read_examples(tmp_path)


def test_a_folder_without_a_table_or_with_two_is_refused(tmp_path):
    with pytest.raises(ValueError, match="has 0 tables of captions: give a folder of sounds with"):
        read_examples(tmp_path)
    for name in ("metadata.csv", "metadata.jsonl"):
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match="has 2 tables"):
        read_examples(tmp_path)
    with pytest.raises(ValueError, match="no such file"):
        read_examples(tmp_path / "gone")
