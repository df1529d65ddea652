"""What is loaded is what the cache takes it for, whatever happens to the files meanwhile."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from stepaudio import device, loading
from stepaudio.errors import WeightsError
from stepaudio.loading import CENTROIDS, Engine, load_engine
from stepaudio.settings import Settings
from stepaudio.weights import WeightsFolder, choose_weights
from tests.conftest import voice


@pytest.fixture
def weights(tiny_weights: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_weights, tmp_path / "weights")


def load(weights: Path, cache: Path) -> Engine:
    settings = Settings(weights=str(weights), cache_dir=cache)
    return load_engine(choose_weights(settings), settings, device.choose("cpu", settings.dtype))


def replace_centroids(weights: WeightsFolder) -> None:
    """Put other weights in the place, as large and as old as those before, as a tool that copies times does."""
    path = weights.tokenizer / CENTROIDS
    times = path.stat()
    np.save(path.with_name("new.npy"), np.load(path)[::-1])
    os.utime(path.with_name("new.npy"), ns=(times.st_atime_ns, times.st_mtime_ns))
    path.with_name("new.npy").replace(path)


def then_replaced(load_part: Callable) -> Callable:
    """Return a loader after which the weights are other ones."""

    def loaded(weights: WeightsFolder, *arguments):
        part = load_part(weights, *arguments)
        replace_centroids(weights)
        return part

    return loaded


def test_weights_that_change_while_the_encoder_is_loaded_are_refused(weights, tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "load_encoder", then_replaced(loading.load_encoder))
    with pytest.raises(WeightsError, match=r"^The weights in .* were changed while they were loaded; please start"):
        load(weights, tmp_path / "cache")


def test_weights_that_change_later_in_the_start_leave_no_code_of_the_old_ones_to_the_new(
    weights, tmp_path, monkeypatch
):
    with monkeypatch.context() as patch:
        patch.setattr(loading, "load_language_model", then_replaced(loading.load_language_model))
        old = load(weights, tmp_path / "cache")
    sound = voice(1.5)
    before = old.pipeline.cache.get_or_encode(sound, old.encoder.encode)
    old.close()
    new = load(weights, tmp_path / "cache")
    after = new.pipeline.cache.get_or_encode(sound, new.encoder.encode)
    new.close()
    assert (before.hit, after.hit) == (False, False)
    np.testing.assert_array_equal(after.encoding.linguistic, 1023 - before.encoding.linguistic)
