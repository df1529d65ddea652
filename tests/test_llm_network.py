"""llm/network.py and llm/step.py against the recorded logits, states, cached decoding and greedy ids."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from stepaudio.llm import network
from stepaudio.llm.attention import KeyValueCache
from stepaudio.llm.loading import load_step1
from stepaudio.llm.model import Step1ForCausalLM
from stepaudio.llm.network import Decoder, Dimensions
from stepaudio.llm.sampling import SpeechHead
from stepaudio.llm.step import DecodeState, Step, StepWeights
from stepaudio.tokens import SpeechVocabulary
from stepaudio.types import SamplingParams

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


class Decoding:
    """A sequence that is decoded by steps which may draw any id of the vocabulary."""

    def __init__(self, model: Step1ForCausalLM, prompt: Tensor, count: int, *, repetition_rule: bool = False) -> None:
        size = model.config.vocab_size
        head = SpeechHead(model.lm_head.weight, SpeechVocabulary(range(size), range(0), END))
        weights = StepWeights(model.model)
        self.prompt, self.model = prompt.shape[1], model
        self.state = DecodeState(weights, 1, self.prompt + count)
        hidden = model.model(prompt, cache=self.state.cache)[0, -1]
        self.state.begin(0, prompt[0].tolist(), hidden, torch.zeros(count))
        params = SamplingParams(temperature=0.0, repetition_rule=repetition_rule)
        self.step = Step(weights, head, self.state, 1, params)

    def feed(self, ident: Tensor, drawn: int) -> Tensor:
        """Return the logits (1, V) after one more id, which is number ``drawn``."""
        self.state.newest[:] = ident
        self.step.run(KeyValueCache.rounded(self.prompt + drawn + 1), 0)
        return self.model.lm_head(self.state.normed)


def continue_greedily(model: Step1ForCausalLM, prompt: Tensor, count: int, *, repetition_rule: bool) -> list[int]:
    decoding = Decoding(model, prompt, count, repetition_rule=repetition_rule)
    decoding.step.draw(0)
    for drawn in range(1, count):
        if decoding.state.newest.item() == END:
            break
        decoding.step.run(KeyValueCache.rounded(prompt.shape[1] + drawn), 0)
    new = decoding.state.drawn(1, 0, count)[0]
    return new[: new.index(END) + 1] if END in new else new


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
    prompt, forced = recording["input_ids"], recording["forced_ids"][0]
    decoding = Decoding(recording.model, prompt, len(forced))
    for number, ident in enumerate(forced):
        assert_near(decoding.feed(ident, number), recording["decode_logits"][:, number])


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
