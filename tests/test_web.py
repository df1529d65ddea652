"""The page's words and tables: complete in both languages, and nothing of a user's becomes markup."""

from __future__ import annotations

import re
import string
from dataclasses import replace

import numpy as np
import pytest

from stepaudio.audiofile import load_reference
from stepaudio.cache import EncodingCache
from stepaudio.errors import InvalidInput
from stepaudio.presets import PresetFolder
from stepaudio.settings import Settings
from stepaudio.tasks import EDITS
from stepaudio.text import clean
from stepaudio.types import EncodingTimes, SpeechTokens, Stage, Synthesis, Task, Timings, Waveform
from stepaudio.voices import VoiceDraft, VoiceFolder, VoiceLimits, read_export
from stepaudio.web.forms import Knobs
from stepaudio.web.history import Chain
from stepaudio.web.sentences import in_language
from stepaudio.web.strings import STRINGS, language_of, say
from stepaudio.web.tables import run_report
from tests.conftest import voice


def fields(text: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(text) if name}


def test_both_languages_have_every_string_with_the_same_values_in_it():
    english, chinese = STRINGS["en"], STRINGS["zh"]
    assert english.keys() == chinese.keys()
    for key in english:
        assert fields(english[key]) == fields(chinese[key]), key
        assert english[key].strip()
        assert chinese[key].strip()


def test_every_string_is_used_somewhere():
    from tests.conftest import ROOT

    code = "".join(
        path.read_text(encoding="utf-8")
        for path in (ROOT / "stepaudio" / "web").glob("*.py")
        if path.name not in ("english.py", "chinese.py")
    )
    made = "stage_|stopped_|option_|task_|tag_[A-Z]|sound_|ab_|step_[0-9]|label_|fetch_"  # with a name put behind it
    unused = [key for key in STRINGS["en"] if not re.search(rf"""["']{key}["']""", code) and not re.match(made, key)]
    assert unused == []


def test_every_option_of_every_task_has_a_name_in_both_languages():
    for spec in EDITS:
        for option in spec.options:
            assert say("en", f"option_{option}")
            assert re.search("[\u4e00-\u9fff]", say("zh", f"option_{option}")), option


@pytest.mark.parametrize(
    ("header", "expected"),
    [("zh-CN,zh;q=0.9,en;q=0.8", "zh"), ("ZH", "zh"), ("en-GB,zh;q=0.5", "en"), ("", "en"), ("fr", "en")],
)
def test_the_language_follows_the_browser(header, expected):
    assert language_of(header) == expected


def test_values_are_filled_in():
    assert say("en", "waiting", position=3, seconds=12.4) == "Waiting: 3 ahead, about 12 s"


def test_each_sentence_that_a_user_may_meet_has_a_chinese_one(tmp_path):
    from tests.test_audiofile import BAD, LIMITS

    sentences = []
    for data, _ in BAD.values():
        with pytest.raises(InvalidInput) as caught:
            load_reference(data, LIMITS)
        sentences.append(str(caught.value))
    spoken = ("The text", "The new text", "The transcript of the reference")
    for text, what in (("", "The text"), ("a" * 9, spoken[2]), *(("...", what) for what in spoken)):
        with pytest.raises(InvalidInput) as caught:
            clean(text, what=what, limit=5)
        sentences.append(str(caught.value))
    (tmp_path / "file").write_text("where the folder should be")
    with EncodingCache(tmp_path / "file", "f", size_limit=2**20) as cache:
        sentences.append(cache.stats().problem)
    voices = VoiceFolder(tmp_path / "voices", VoiceLimits(max_voices=0))
    draft = VoiceDraft(b"", "Ada", "words")
    taken = VoiceFolder(tmp_path / "taken")
    taken.save(draft, voice(1.0))
    taken.reserve(["Nora"])
    for wrong in (
        lambda: taken.cleaned(draft),
        lambda: taken.cleaned(replace(draft, name="Nora")),
        lambda: voices.cleaned(replace(draft, name="")),
        lambda: voices.cleaned(replace(draft, name="x" * 99)),
        lambda: voices.load("0123456789abcdef"),
        lambda: voices.save(draft, voice(1.0)),
        lambda: read_export(b"no"),
        lambda: PresetFolder(None).load("ada"),
        lambda: Chain().select(3),
        lambda: Chain().add(Chain().start(b"", ""), Task("vad"), 1, b"", synthesis()),
        lambda: Knobs(True, None, 9.0, None, None, None, None).sampling(Settings()),
        lambda: Knobs(True, None, None, None, None, None, 99).steps(Settings()),
    ):
        with pytest.raises(InvalidInput) as caught:
            wrong()
        sentences.append(str(caught.value))
    sentences += [
        "The language model produced numbers that stand for no sound; try again.",
        "The reference recording is too short: it must hold at least 0.12 seconds of sound.",
        "The saved voices in /data/voices cannot be changed: No space left on device.",
        "The request waited 20.1 s for its turn.",
    ]
    for sentence in sentences:
        assert in_language(sentence, "en") == sentence
        assert re.search("[\u4e00-\u9fff]", in_language(sentence, "zh")), sentence


def test_values_are_carried_over_and_an_unknown_sentence_stays():
    sentence = "The reference is 0.10 s long; at least 0.5 s are needed."
    assert in_language(sentence, "zh") == "参考音频长 0.10 秒；至少需要 0.5 秒。"
    assert in_language("Something else.", "zh") == "Something else."


def synthesis(note: str = "") -> Synthesis:
    stage = Stage("Clone", 0.5, note=note, children=(Stage("LLM", 0.3), Stage("other", 0.2)))
    return Synthesis(
        waveform=Waveform(np.zeros(24000, np.float32), 24000),
        tokens=SpeechTokens(np.zeros(5, np.int64)),
        prompt_ids=(),
        timings=Timings(0.5, (stage,)),
        encoding=EncodingTimes(True, 0.0, 0.0),
        seed=5,
        stopped="end",
        notices=("<b>notice</b>",),
    )


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_report_has_a_row_for_each_stage_and_no_foreign_markup(language):
    html = run_report(synthesis("<script>alert(1)</script>"), language)
    assert html.count('<tr class="depth-') == 3
    assert "<script>" not in html
    assert "<b>" not in html
    assert say(language, "stopped_end") in html


def test_the_report_of_a_stream_says_when_its_first_sound_was_ready():
    assert "The first sound was ready after 0.43 s." in run_report(replace(synthesis(), first_sound=0.432), "en")
    assert "first sound" not in run_report(synthesis(), "en")


def test_the_summary_of_takes_tells_all_the_sound_that_was_made_in_the_time():
    alone = synthesis()
    seconds, total = alone.waveform.seconds, alone.timings.total
    words = f"{3 * seconds:.2f} s of sound in {total:.2f} s (RTF {total / (3 * seconds):.3f})"
    assert words in run_report(replace(alone, beside_seconds=2 * seconds), "en")
    assert words not in run_report(alone, "en")


def test_a_miss_is_told_so_that_it_is_true_without_a_cache_too():
    for language, kept in (("en", "kept"), ("zh", "保存")):
        assert kept not in say(language, "miss")
