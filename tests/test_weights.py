"""Which weights folder is chosen, and what its card may say."""

from __future__ import annotations

import json
import shutil

import pytest

from stepaudio.errors import WeightsError
from stepaudio.settings import Settings
from stepaudio.tiny import tiny_name, write_tiny
from stepaudio.weights import WeightsCard, choose_weights, read_card


@pytest.fixture
def settings(tmp_path):
    (tmp_path / "models").mkdir()
    return lambda **more: Settings(models_dir=tmp_path / "models", cache_dir=tmp_path / "cache", **more)


def layout(folder, card=None):
    for name in ("Step-Audio-EditX", "Step-Audio-Tokenizer"):
        (folder / name).mkdir(parents=True)
    (folder / "Step-Audio-EditX" / "config.json").write_text("{}")
    if card is not None:
        (folder / "card.json").write_text(json.dumps(card))
    return folder


def test_mini_without_its_language_model_is_not_taken(settings, tmp_path):
    mini = layout(tmp_path / "models" / "mini", {"title": "mini"})
    assert choose_weights(settings()).path == mini
    (mini / "Step-Audio-EditX" / "config.json").unlink()
    assert choose_weights(settings()).path == tmp_path / "cache" / tiny_name()


def test_without_any_weights_tiny_ones_are_written_once_and_say_that_they_make_noise(settings, tmp_path):
    chosen = choose_weights(settings())
    assert chosen.path == tmp_path / "cache" / tiny_name()
    assert not chosen.card.speaks
    assert "noise, not speech" in chosen.card.notice["en"]
    assert chosen.card.notice["zh"]
    assert chosen.card.max_output_seconds == 5.0
    stamp = (chosen.path / "card.json").stat().st_mtime_ns
    assert choose_weights(settings()).path == chosen.path
    assert (chosen.path / "card.json").stat().st_mtime_ns == stamp


def test_tiny_weights_of_another_version_are_not_taken(settings, tmp_path):
    """They were once kept under a fixed name: after an upgrade the old ones no longer loaded."""
    stale = layout(tmp_path / "cache" / "tiny-1", {"title": "tiny"})
    assert choose_weights(settings()).path != stale


def test_tiny_weights_that_another_process_has_written_meanwhile_stay(tmp_path):
    first = write_tiny(tmp_path / "tiny")
    inode = (first / "card.json").stat().st_ino
    assert write_tiny(tmp_path / "tiny", keep=True) == first
    assert (first / "card.json").stat().st_ino == inode
    assert write_tiny(tmp_path / "tiny") == first
    assert (first / "card.json").stat().st_ino != inode
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]


def test_where_the_cache_cannot_be_written_tiny_weights_go_to_a_temporary_folder(settings, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "cache").write_text("a file where the folder should be")
    chosen = choose_weights(settings())
    assert chosen.path.parent == tmp_path
    assert chosen.funasr.is_dir()


def test_mini_is_preferred_to_tiny_and_real_weights_to_mini(settings, tmp_path):
    mini = layout(tmp_path / "models" / "mini", {"title": "mini"})
    assert choose_weights(settings()).path == mini
    real = layout(tmp_path / "models" / "step-audio-editx")
    chosen = choose_weights(settings())
    assert chosen.path == real
    assert chosen.card.title == "Step-Audio-EditX"
    assert chosen.card.notice == {}


def test_real_weights_may_lie_right_in_the_models_folder(settings, tmp_path):
    layout(tmp_path / "models")
    assert choose_weights(settings()).path == tmp_path / "models"


def test_a_named_folder_wins_by_name_or_by_path(settings, tmp_path):
    layout(tmp_path / "models" / "step-audio-editx")
    named = layout(tmp_path / "models" / "mine", {"title": "mine"})
    elsewhere = layout(tmp_path / "elsewhere")
    assert choose_weights(settings(weights="mine")).path == named
    assert choose_weights(settings(weights=str(elsewhere))).path == elsewhere


def test_a_named_folder_that_is_not_there_is_one_sentence_with_the_way_out(settings):
    with pytest.raises(WeightsError, match=r"nowhere does not hold.*stepaudio download"):
        choose_weights(settings(weights="nowhere"))


@pytest.mark.parametrize("text", ["{", "[1]", '{"titel": "x"}'])
def test_a_card_that_cannot_be_read_is_named(tmp_path, text):
    (tmp_path / "card.json").write_text(text)
    with pytest.raises(WeightsError, match=r"card\.json"):
        read_card(tmp_path)


def test_tiny_never_replaces_a_folder_of_something_else(tmp_path):
    mini = layout(tmp_path / "mini", {"title": "mini"})
    with pytest.raises(FileExistsError):
        write_tiny(mini)
    assert json.loads((mini / "card.json").read_text()) == {"title": "mini"}


MISSING = [
    "Step-Audio-EditX/config.json",
    "Step-Audio-EditX/model-00001.safetensors",
    "Step-Audio-EditX/tokenizer.model",
    "Step-Audio-EditX/CosyVoice-300M-25Hz/cosyvoice.yaml",
    "Step-Audio-EditX/CosyVoice-300M-25Hz/flow.pt",
    "Step-Audio-EditX/CosyVoice-300M-25Hz/hift.pt",
    "Step-Audio-EditX/CosyVoice-300M-25Hz/campplus.onnx",
    "Step-Audio-Tokenizer/linguistic_tokenizer.npy",
    "Step-Audio-Tokenizer/speech_tokenizer_v1.onnx",
    "Step-Audio-Tokenizer/*/*/model.pt",
    "Step-Audio-Tokenizer/*/*/config.yaml",
    "Step-Audio-Tokenizer/*/*/am.mvn",
]


@pytest.mark.parametrize("damage", ["missing", "truncated", "garbage"])
@pytest.mark.parametrize("name", MISSING)
def test_a_missing_or_damaged_file_is_one_sentence_that_names_it(name, damage, tiny_weights, tmp_path, make_engine):
    folder = shutil.copytree(tiny_weights, tmp_path / "damaged")
    (path,) = folder.glob(name)
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    else:
        path.write_bytes(b"\x00garbage\xff" * 100)
    with pytest.raises(WeightsError) as caught:
        make_engine(weights=str(folder))
    assert path.name in str(caught.value) or (path.name == "config.yaml" and "FunASR folder" in str(caught.value))
    assert "\n" not in str(caught.value)


def test_a_card_says_which_languages_were_learnt_and_what_suits_the_flow(settings, tmp_path):
    mini = layout(tmp_path / "models" / "mini", {"title": "mini", "languages": ["en"], "flow_steps": 2})
    card = choose_weights(settings()).card
    assert (mini / "card.json").is_file()
    assert card.understands("en")
    assert not card.understands("zh")
    assert card.flow_steps == 2
    assert WeightsCard().understands("zh")
    assert WeightsCard().flow_steps == 10
