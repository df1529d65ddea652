"""llm/network.py against the recorded logits, states, cached decoding and greedy ids."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from stepaudio.llm import network, sampling
from stepaudio.llm.loading import load_step1
from stepaudio.llm.model import Step1ForCausalLM
from stepaudio.llm.network import Decoder, Dimensions

ATOL = 2e-4
END = 3


class Recording:
    """One recorded model with its vectors as tensors."""

    def __init__(self, folder: Path) -> None:
        self.model: Step1ForCausalLM = load_step1(folder, torch.device("cpu"), torch.float32)
        self.vectors = {name: torch.from_numpy(array) for name, array in np.load(folder / "vectors.npz").items()}

    def __getitem__(self, name: str) -> Tensor:
        return self.vectors[name]


@pytest.fixture(scope="module", params=["a", "b", "c"])
def recording(request: pytest.FixtureRequest, conformance: Path) -> Recording:
    return Recording(conformance / "step1_lm" / request.param)


@pytest.fixture(autouse=True)
def _without_gradients():
    with torch.inference_mode():
        yield


def assert_near(result: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(result, expected, atol=ATOL, rtol=0)


def continue_greedily(model: Step1ForCausalLM, prompt: Tensor, count: int, *, repetition_rule: bool) -> list[int]:
    decoder = model.model
    cache = decoder.new_cache(prompt.shape[1] + count)
    hidden = decoder(prompt, cache=cache)[:, -1]
    ids = prompt
    every = torch.arange(model.config.vocab_size)
    for _ in range(count):
        logits = model.lm_head(hidden)
        if repetition_rule:
            logits = sampling.ban_repetition(logits, every, ids)
        ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], dim=1)
        if ids[0, -1] == END:
            break
        position = torch.tensor([ids.shape[1] - 1])
        hidden = decoder.step(ids[:, -1:], position, decoder.slopes(), cache, cache.capacity)[:, -1]
    return ids[0, prompt.shape[1] :].tolist()


def test_logits_of_every_position_equal_the_recorded_ones(recording: Recording) -> None:
    assert_near(recording.model(recording["input_ids"]).logits, recording["logits"])


def test_states_between_the_layers_equal_the_recorded_ones(recording: Recording) -> None:
    states = recording.model(recording["input_ids"], output_hidden_states=True).hidden_states
    assert len(states) == len(recording["hidden_states"])
    for state, expected in zip(states, recording["hidden_states"], strict=True):
        assert_near(state[:, :32], expected)


def test_the_first_layers_attention_equals_the_recorded_one(recording: Recording) -> None:
    seen: list[Tensor] = []
    projection = recording.model.model.layers[0].self_attn.o_proj
    handle = projection.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    recording.model(recording["input_ids"])
    handle.remove()
    assert_near(seen[0][:, :32], recording["layer0_attn_context"])


def test_distances_of_fourteen_hundred_equal_the_recorded_ones(recording: Recording) -> None:
    assert_near(recording.model(recording["long_input_ids"]).logits[:, -2:], recording["long_last2_logits"])


def test_decoding_with_the_cache_equals_the_recorded_logits(recording: Recording) -> None:
    decoder, prompt, forced = recording.model.model, recording["input_ids"], recording["forced_ids"]
    cache = decoder.new_cache(prompt.shape[1] + forced.shape[1])
    decoder(prompt, cache=cache)
    for number in range(forced.shape[1]):
        position = torch.tensor([prompt.shape[1] + number])
        keys = min(cache.rounded(int(position) + 1), cache.capacity)
        hidden = decoder.step(forced[:, number : number + 1], position, decoder.slopes(), cache, keys)
        assert_near(recording.model.lm_head(hidden)[:, 0], recording["decode_logits"][:, number])


@pytest.mark.parametrize(("expected", "rule"), [("greedy_new_ids", False), ("greedy_ras_new_ids", True)])
def test_greedy_ids_equal_the_recorded_ones(recording: Recording, expected: str, rule: bool) -> None:
    ids = continue_greedily(recording.model, recording["greedy_prompt_ids"], 48, repetition_rule=rule)
    assert ids == recording[expected].reshape(-1).tolist()


def small_decoder(dtype: torch.dtype = torch.float32) -> Decoder:
    torch.manual_seed(1)
    size = Dimensions(
        vocabulary=50, hidden=48, intermediate=64, layers=2, heads=6, groups=2, norm_eps=1e-5, max_length=512
    )
    return Decoder(size).to(dtype)


def test_blocks_of_positions_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = small_decoder()
    ids = torch.randint(0, 50, (2, 70))
    inputs: list[Tensor] = []
    whole = decoder(ids, inputs=inputs)
    monkeypatch.setattr(network, "BIAS_BYTES", 4 * 6 * 70 * 16)
    assert len(list(decoder._blocks(0, 70))) == 5
    in_blocks: list[Tensor] = []
    torch.testing.assert_close(decoder(ids, inputs=in_blocks), whole, atol=1e-5, rtol=0)
    for first, second in zip(inputs, in_blocks, strict=True):
        torch.testing.assert_close(first, second, atol=1e-5, rtol=0)


def test_a_prompt_read_in_two_pieces_gives_the_same_states() -> None:
    decoder = small_decoder()
    ids = torch.randint(0, 50, (1, 40))
    cache = decoder.new_cache(40)
    pieces = [decoder(ids[:, :23], cache=cache), decoder(ids[:, 23:], cache=cache, start=23)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), decoder(ids), atol=1e-5, rtol=0)


def test_a_later_id_never_changes_an_earlier_state() -> None:
    decoder = small_decoder()
    ids = torch.randint(0, 50, (1, 30))
    other = ids.clone()
    other[0, 20:] = (other[0, 20:] + 1) % 50
    assert torch.equal(decoder(ids)[:, :20], decoder(other)[:, :20])
    assert not torch.equal(decoder(ids)[:, 20:], decoder(other)[:, 20:])


def test_bfloat16_stays_near_float32() -> None:
    ids = torch.randint(0, 50, (1, 60))
    result = small_decoder(torch.bfloat16)(ids)
    assert result.dtype == torch.bfloat16
    expected = small_decoder()(ids)
    assert (result.float() - expected).abs().mean() < 0.02 * expected.abs().mean()


def test_training_reaches_every_parameter() -> None:
    with torch.inference_mode(mode=False):
        decoder = small_decoder()
        decoder(torch.arange(50)[None]).square().mean().backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in decoder.parameters())
