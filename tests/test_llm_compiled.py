"""llm/compiled.py and its kernels: the numbers of the plain layers and of sampling.Drawer, and when torch does it."""

from __future__ import annotations

import functools
import logging
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from stepaudio.errors import GenerationError
from stepaudio.llm import compiled, kernels
from stepaudio.llm.compiled import Network, layers_for
from stepaudio.llm.layers import PlainLayers
from stepaudio.llm.network import Decoder, Dimensions
from stepaudio.llm.sampling import UNKNOWN_ID, Drawer
from stepaudio.llm.step import StepWeights
from stepaudio.tokens import GROUP
from stepaudio.types import SamplingParams
from tests.test_llm_generate import Tiny
from tests.test_llm_step import SIZE, Bench

CPU = torch.device("cpu")
ODD = Dimensions(vocabulary=120, hidden=30, intermediate=21, layers=2, heads=3, groups=1, norm_eps=1e-5, max_length=512)
"""Sizes that leave something over wherever the kernels take several numbers at once."""
GREEDY = SamplingParams(temperature=0.0)


def weights(size: Dimensions = SIZE, dtype: torch.dtype = torch.float32) -> StepWeights:
    torch.manual_seed(2)
    with torch.inference_mode(mode=False):
        return StepWeights(Decoder(size).to(dtype).requires_grad_(False))


@pytest.mark.parametrize("size", [SIZE, ODD], ids=["even", "odd"])
@pytest.mark.parametrize("rows", [1, 3, 4, 9])
@pytest.mark.parametrize("threads", [1, 2])
def test_states_keys_and_values_are_those_of_the_plain_layers(
    size: Dimensions, rows: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    lengths = [5 + 13 * row for row in range(rows)]
    with torch.inference_mode():
        plain, ours = (Bench(lengths, GREEDY, layers=layers, size=size) for layers in (lambda _: PlainLayers, Network))
        for bench in (plain, ours):
            bench.draw(12)
    assert ours.state.drawn(rows, 0, 12) == plain.state.drawn(rows, 0, 12)
    torch.testing.assert_close(ours.state.normed, plain.state.normed, atol=2e-5, rtol=0)
    torch.testing.assert_close(ours.state.cache.cells, plain.state.cache.cells, atol=2e-5, rtol=0)


@functools.cache
def network() -> Network:
    return Network(weights())


def drawn_both_ways(
    logits: torch.Tensor, history: torch.Tensor, uniform: float, params: SamplingParams, room: np.ndarray | None = None
) -> tuple[int, int]:
    """Return what Drawer and the kernel draw of logits (n,) after ten ids; the head is the unit matrix."""
    ids = torch.arange(100, 100 + len(logits))
    drawer = Drawer(ids, 1, params)
    drawer.logits.copy_(logits[None])
    drawer.recent.copy_(history[None])
    drawer.uniform.fill_(uniform)
    theirs, ours = torch.zeros(1, dtype=torch.int64), np.zeros(1, np.int64)
    if params.repetition_rule:
        drawer.ban_repetition()
    drawer.draw(theirs)
    kernels.draw(
        *(0, 1, 0),
        *(logits[None].numpy(), network().stored(torch.eye(len(logits))), ids.numpy(), history[None].numpy()),
        *(np.full((1, 1), uniform), np.float32(params.temperature), params.repetition_rule),
        np.zeros((1, network().filled(len(logits))), np.float32) if room is None else room,
        np.zeros((1, min(params.top_k, len(logits))), np.float32),
        ours,
    )
    return int(theirs), int(ours[0])


@pytest.mark.parametrize("top_k", [0, 1, 7, 50, 5000])
@pytest.mark.parametrize("temperature", [0.0, 0.7, 3.0])
def test_the_same_id_is_drawn_as_by_torch(top_k: int, temperature: float) -> None:
    generator = torch.Generator().manual_seed(1)
    params = SamplingParams(temperature=temperature, top_k=top_k)
    different = set()
    for _ in range(200):
        logits = 4 * torch.randn(61, generator=generator)
        history = torch.randint(98, 104, (10,), generator=generator)
        theirs, ours = drawn_both_ways(logits, history, float(torch.rand((), generator=generator)), params)
        assert ours == theirs
        different.add(ours)
    assert len(different) > 10


def test_ids_as_likely_as_the_last_of_the_best_stay() -> None:
    logits, nothing = torch.tensor([3.0, 1.0, 2.0, 2.0, 2.0, 0.0]), torch.full((10,), UNKNOWN_ID)
    params = SamplingParams(temperature=1.0, top_k=2)
    drawn = [drawn_both_ways(logits, nothing, float(u), params) for u in np.linspace(0, 0.9999, 40)]
    assert all(theirs == ours for theirs, ours in drawn)
    assert {ours for _, ours in drawn} == {100, 102, 103, 104}


@pytest.mark.parametrize(("before", "banned"), [([7, 7], True), ([7], False), ([7, 7, UNKNOWN_ID], False)])
def test_a_third_repetition_is_banned_as_by_torch(before: list[int], banned: bool) -> None:
    """Only with ten ids; and what was banned once may be drawn again: no sum begins with what lies in the room."""
    ids = [UNKNOWN_ID if one == UNKNOWN_ID else 100 + one for one in reversed(before)]
    filler = [90 + place for place in range(10 - len(ids))]
    history = torch.tensor([*ids[:1], *filler, *ids[1:]])
    logits, room = torch.zeros(12), np.zeros((1, 16), np.float32)
    logits[7], logits[3] = 9.0, 5.0
    theirs, ours = drawn_both_ways(logits, history, 0.5, GREEDY, room)
    assert ours == theirs == (103 if banned else 107)
    assert drawn_both_ways(logits, torch.arange(10), 0.5, GREEDY, room) == (107, 107)


def test_what_is_beyond_e_to_the_power_of_87_stays_a_number() -> None:
    x = np.asarray([-1e4, -100, -87, -1, -1e-6, 0, 0.5, 1, 80, 100, 1e4], np.float32)
    got = np.asarray([kernels.exponential(one) for one in x])
    assert np.isfinite(got).all()
    np.testing.assert_allclose(got, np.exp(x.clip(-87, 87).astype(np.float64)), rtol=1e-5)
    middle = np.linspace(-20, 20, 1001).astype(np.float32)
    np.testing.assert_allclose(
        [kernels.exponential(one) for one in middle], np.exp(middle.astype(np.float64)), rtol=3e-6
    )


@pytest.mark.parametrize("params", [GREEDY, SamplingParams(1.2), SamplingParams(1.2, 0, 0.8)], ids=["greedy", "k", "p"])
def test_a_compiled_model_speaks_as_a_plain_one(tmp_path, params: SamplingParams) -> None:
    tiny = Tiny(tmp_path, 1)
    tiny.favour_end(2.5)
    plain, ours = tiny.lm(1), tiny.lm(1)
    plain._layers = PlainLayers
    assert (plain.fused, ours.fused) == (False, True)
    prompts = [[tiny.vocabulary.linguistic.start + place for place in range(20 + row)] for row in range(6)]
    many = {"seeds": list(range(6)), "max_tokens": [12 * GROUP] * 6}
    spoken = [lm.generate_many(prompts, params, **many) for lm in (plain, ours)]
    alone = [ours.generate(prompt, params, seed=row, max_tokens=12 * GROUP) for row, prompt in enumerate(prompts)]
    if params.top_p == 1 and params.temperature:
        assert len({one.new_ids for one in alone}) > 1  # rows end one after the other
    theirs, together, one = ([made.tokens.numbers.tolist() for made in lot] for lot in (*spoken, alone))
    # Sums in another order may move the border of what top_p keeps: on one kind of processor, in 1 of 144 sounds.
    astray = sum(not first == second == third for first, second, third in zip(theirs, together, one, strict=True))
    assert astray <= (1 if params.top_p < 1 else 0)


@pytest.mark.parametrize("common", [3, 37, 64])
@pytest.mark.parametrize("threads", [1, 2])
def test_what_all_begin_with_is_read_of_one_and_stays_right_when_sequences_end(
    tmp_path, threads: int, common: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    tiny = Tiny(tmp_path, 1)
    tiny.favour_end(3.5)
    plain, ours = tiny.lm(1), tiny.lm()
    plain._layers = PlainLayers
    ids = [*tiny.vocabulary.linguistic]
    prompts = [[*ids[:common], *ids[20 + row : 30 + 2 * row]] for row in range(9)]
    many = {"seeds": list(range(9)), "max_tokens": [12 * GROUP] * 9, "shared": [common] * 9}
    for again in range(2):  # the second time in the same room, where others have been
        theirs, spoken = (lm.generate_many(prompts, SamplingParams(1.2), **many) for lm in (plain, ours))
        assert [one.tokens.numbers.tolist() for one in spoken] == [one.tokens.numbers.tolist() for one in theirs]
        assert len({one.new_ids for one in spoken}) > 1
        prompts = [prompt[::-1] for prompt in prompts]
        many["shared"] = [0] * 9 if again == 0 else many["shared"]


@pytest.mark.parametrize(
    ("prompts", "shared", "common"),
    [
        ([[1, 2, 3], [1, 2, 4]], [2, 2], 2),
        ([[1, 2, 3], [1, 2, 4]], [2, 1], 0),  # the same ids, but read in another way
        ([[1, 2, 3], [1, 5, 4]], [2, 2], 0),
        ([[1, 2, 3], [1, 2, 3]], [2, 2], 3),
        ([[1, 2, 3]], [0], 3),
    ],
)
def test_common_is_what_was_read_once(tmp_path, prompts: list[list[int]], shared: list[int], common: int) -> None:
    lm = Tiny(tmp_path, 1).lm()
    lm.generate_many(prompts, GREEDY, seeds=[0] * len(prompts), max_tokens=[GROUP] * len(prompts), shared=shared)
    (workspace,) = lm._workspaces._free
    assert workspace.state.common.tolist() == [common]


def test_what_is_no_number_is_found(tmp_path) -> None:
    tiny = Tiny(tmp_path, 1)
    lm = tiny.lm(1)
    lm._layers.tables[5][0] = 0x7E00 if lm.element_size == 2 else np.nan  # a half that is no number
    with pytest.raises(GenerationError, match="no finite numbers"):
        lm.generate([tiny.vocabulary.linguistic.start], GREEDY, seed=0, max_tokens=GROUP)


def test_weights_are_kept_as_halves_where_that_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = weights(dtype=torch.float16)
    wide = StepWeights(Decoder(SIZE).requires_grad_(False))
    for ours, theirs in zip(wide.layers, exact.layers, strict=True):
        for name in ("joint", "output", "gate_up", "down"):
            getattr(ours, name).copy_(getattr(theirs, name))
    assert Network(weights()).element_size == 4
    assert Network(wide).element_size == (2 if kernels.widens_halves() else 4)
    monkeypatch.setattr(kernels, "widens_halves", lambda: False)
    assert Network(wide).element_size == 4


def test_torch_does_it_where_it_is_not_wanted_or_does_not_pay(caplog, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(layers_for(weights(), CPU, wanted=True), Network)
    assert layers_for(weights(), CPU, wanted=False) is PlainLayers
    assert layers_for(weights(), torch.device("meta"), wanted=True) is PlainLayers
    assert layers_for(weights(dtype=torch.bfloat16), CPU, wanted=True) is PlainLayers
    numbers = sum(one.numel() for layer in weights().layers for one in layer.products)
    monkeypatch.setattr(compiled, "MOST_BYTES", 4 * numbers)
    assert isinstance(layers_for(weights(), CPU, wanted=True), Network)
    assert layers_for(weights(replace(SIZE, layers=4)), CPU, wanted=True) is PlainLayers
    assert not caplog.records


def test_where_numba_is_missing_or_fails_torch_does_it_and_one_warning_says_why(caplog, monkeypatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("no room left")

    with caplog.at_level(logging.WARNING), monkeypatch.context() as patch:
        patch.setattr(kernels, "carry", fail)
        assert layers_for(weights(), CPU, wanted=True) is PlainLayers
    with caplog.at_level(logging.WARNING), monkeypatch.context() as patch:
        patch.setitem(sys.modules, "stepaudio.llm.kernels", None)
        patch.delattr("stepaudio.llm.kernels")
        assert layers_for(weights(), CPU, wanted=True) is PlainLayers
    failed, missing = (record.getMessage() for record in caplog.records)
    assert "no room left" in failed
    assert "Numba is not installed" in missing


def test_without_a_folder_to_write_to_it_is_compiled_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = kernels.numba.njit

    def njit(*, cache: bool = False, **options):
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return kept(**options)

    monkeypatch.setattr(kernels.numba, "njit", njit)
    assert kernels.compiled(lambda x: x + 1)(1) == 2
