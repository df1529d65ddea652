"""The reference encoder joins four parts, gives the same bits every time and says what each part took."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch

from stepaudio import audio
from stepaudio.encoder.paraformer import load_linguistic
from stepaudio.encoder.reference import PARTS, ReferenceEncoder
from stepaudio.encoder.s3 import SemanticEncoder
from stepaudio.encoder.speaker import SpeakerEncoder
from stepaudio.errors import WeightsError
from stepaudio.features import MelConfig, log_mel
from stepaudio.tiny.encoder import FUNASR_FOLDER, write_campplus, write_encoder
from stepaudio.types import FloatArray, IntArray, ReferenceEncoding, Waveform
from tests.conftest import voice

CPU = torch.device("cpu")


class FakeCodes:
    """Remembers what it was given, may wait, may fail."""

    def __init__(self, *, wait: float = 0.0, error: Exception | None = None) -> None:
        self.wait, self.error = wait, error
        self.heard: list[FloatArray] = []
        self.threads: list[str] = []

    def encode(self, samples: FloatArray) -> IntArray:
        self.heard.append(samples)
        self.threads.append(threading.current_thread().name)
        time.sleep(self.wait)
        if self.error:
            raise self.error
        return np.arange(3)


class FakeSpeaker(FakeCodes):
    """The same, with a vector."""

    def encode(self, samples: FloatArray) -> FloatArray:
        super().encode(samples)
        return np.ones(192, np.float32)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ReferenceEncoder]:
    folder = tmp_path_factory.mktemp("tiny")
    write_encoder(folder, 1)
    write_campplus(folder / "campplus.onnx", 1)
    made = ReferenceEncoder(
        linguistic=load_linguistic(folder / FUNASR_FOLDER, folder / "linguistic_tokenizer.npy", device=CPU),
        semantic=SemanticEncoder(folder / "speech_tokenizer_v1.onnx", device=CPU, threads=1),
        speaker=SpeakerEncoder(folder / "campplus.onnx", device=CPU, threads=1),
        mel=MelConfig(),
    )
    yield made
    made.close()


def with_fakes(
    linguistic: FakeCodes, semantic: FakeCodes, speaker: FakeSpeaker, threads: int = len(PARTS)
) -> ReferenceEncoder:
    parts = {"linguistic": linguistic, "semantic": semantic, "speaker": speaker}
    return ReferenceEncoder(**parts, mel=MelConfig(), threads=threads)


def arrays(encoding: ReferenceEncoding) -> list[np.ndarray]:
    return [getattr(encoding, field.name) for field in fields(encoding)]


@pytest.mark.parametrize("rate", [8000, 16000, 22050, 24000, 44100, 48000])
def test_a_voice_of_any_rate_has_all_four_parts(rate: int, encoder: ReferenceEncoder) -> None:
    encoding = encoder.encode(voice(2.0, rate)).encoding
    assert encoding.linguistic.dtype == encoding.semantic.dtype == np.int64
    assert abs(len(encoding.semantic) / 25 - len(encoding.linguistic) / (50 / 3)) < 0.15
    assert encoding.mel.shape == (100, 80)
    assert encoding.speaker.shape == (192,)
    assert len(set(encoding.linguistic.tolist())) > 5
    assert all(np.isfinite(array).all() for array in arrays(encoding))


def test_the_same_sound_gives_the_same_bits_whoever_encodes_beside_it(encoder: ReferenceEncoder) -> None:
    sound, other = voice(3.0), voice(4.0, 44100, 200.0)
    first = arrays(encoder.encode(sound).encoding)
    noisy = [threading.Thread(target=encoder.encode, args=(other,)) for _ in range(3)]
    for thread in noisy:
        thread.start()
    for _ in range(4):
        for ours, theirs in zip(arrays(encoder.encode(sound).encoding), first, strict=True):
            np.testing.assert_array_equal(ours, theirs)
    for thread in noisy:
        thread.join()


def test_the_parts_are_named_ordered_and_lie_within_the_whole(encoder: ReferenceEncoder) -> None:
    sound = voice(1.0)
    start = time.perf_counter()
    done = encoder.encode(sound)
    end = time.perf_counter()
    assert tuple(part.name for part in done.parts) == PARTS
    assert all(start <= part.start <= part.end <= end for part in done.parts)
    wall = max(part.end for part in done.parts) - min(part.start for part in done.parts)
    assert wall <= done.seconds <= end - start


@pytest.mark.parametrize(("threads", "own", "longest"), [(4, 2, 0.6), (16, 2, 0.6), (3, 3, 0.6), (2, 2, 0.9)])
def test_the_parts_run_side_by_side_and_the_largest_in_the_calling_thread_where_there_are_cores_enough(
    threads: int, own: int, longest: float
) -> None:
    parts = FakeCodes(wait=0.3), FakeCodes(wait=0.3), FakeSpeaker(wait=0.3)
    encoder = with_fakes(*parts, threads=threads)
    done = encoder.encode(voice(0.5))
    encoder.close()
    assert 0.3 <= done.seconds < longest
    names = [part.threads[0] for part in parts]
    ours = [name for name in names if name.startswith("reference-encoder")]
    assert len(set(ours)) == own
    assert (names[0] in ours) == (threads < len(PARTS))
    assert set(names) - set(ours) <= {threading.current_thread().name}


@pytest.mark.usefixtures("three_threads")
def test_whoever_works_beside_the_calling_thread_computes_without_helpers() -> None:
    class Counting(FakeSpeaker):
        helpers = 0

        def encode(self, samples: FloatArray) -> FloatArray:
            self.helpers = torch.get_num_threads() - 1
            return super().encode(samples)

    codes, speaker = Counting(), Counting()
    encoder = with_fakes(codes, FakeCodes(), speaker)
    encoder.encode(voice(0.5))
    encoder.close()
    assert (codes.helpers, speaker.helpers) == (2, 0)


def test_codes_hear_the_trimmed_sound_and_the_speaker_encoder_all_of_it() -> None:
    linguistic, semantic, speaker = FakeCodes(), FakeCodes(), FakeSpeaker()
    encoder = with_fakes(linguistic, semantic, speaker)
    quiet = np.zeros(24000, np.float32)
    sound = Waveform(np.concatenate([quiet, 2 * voice(1.0).samples, quiet]), 24000)
    encoding = encoder.encode(sound).encoding
    encoder.close()
    limited = audio.limit_peak(sound)
    np.testing.assert_array_equal(linguistic.heard[0], audio.prepare_for_codes(limited))
    assert semantic.heard[0] is linguistic.heard[0]
    np.testing.assert_array_equal(speaker.heard[0], audio.resample(limited, 16000).samples)
    # In a thread of another number of helpers the same sums are taken in another order.
    np.testing.assert_allclose(encoding.mel, log_mel(limited.samples, MelConfig()), atol=1e-5)
    assert len(linguistic.heard[0]) < len(speaker.heard[0])


@pytest.mark.parametrize("threads", [2, 4])
@pytest.mark.parametrize("broken", [0, 2])
def test_the_error_of_a_part_comes_out_once_the_others_are_done(threads: int, broken: int) -> None:
    error = WeightsError("The file x is damaged.")
    slow = FakeCodes(wait=0.2)
    linguistic, speaker = FakeCodes(error=None if broken else error), FakeSpeaker(error=error if broken else None)
    encoder = with_fakes(linguistic, slow, speaker, threads)
    with pytest.raises(WeightsError, match="The file x is damaged"):
        encoder.encode(voice(0.5))
    assert [len(part.heard) for part in (linguistic, slow, speaker)] == [1, 1, 1]
    encoder.close()


@pytest.mark.parametrize("length", [0, 1, 100, 12000])
def test_silence_of_any_length_is_encoded_without_an_error(length: int, encoder: ReferenceEncoder) -> None:
    encoding = encoder.encode(Waveform(np.zeros(length, np.float32), 24000)).encoding
    assert encoding.mel.shape == (length // 480, 80)
    assert all(np.isfinite(array).all() for array in arrays(encoding))


def test_encoding_leaves_the_given_samples_as_they_were(encoder: ReferenceEncoder) -> None:
    sound = voice(1.0)
    before = sound.samples.copy()
    encoder.encode(sound)
    np.testing.assert_array_equal(sound.samples, before)


def test_closing_ends_the_threads_of_the_object(tmp_path: Path) -> None:
    encoder = with_fakes(FakeCodes(), FakeCodes(), FakeSpeaker())
    encoder.encode(voice(0.2))
    before = threading.active_count()
    encoder.close()
    assert threading.active_count() < before
