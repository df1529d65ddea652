"""The language model's attention in training: it must say what the product's does, forwards and backwards."""

from __future__ import annotations

import pytest
import torch

from stepaudio.llm.network import Decoder, Dimensions
from training.blockwise import BLOCK, hasten

SIZE = Dimensions(50, 24, 32, 2, 6, 2, 1e-5, 512)
ROUNDED = 0.02
"""How far bfloat16 may be off."""


@pytest.mark.parametrize("length", [BLOCK - 5, BLOCK, 2 * BLOCK + 30])
def test_states_and_gradients_are_those_of_the_product(length: int) -> None:
    torch.manual_seed(0)
    model = Decoder(SIZE)
    ids = torch.randint(SIZE.vocabulary, (3, length))
    weight = torch.randn(3, length, SIZE.hidden)

    def learned() -> tuple[torch.Tensor, list[torch.Tensor]]:
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            states = model(ids)
        (states.float() * weight).sum().backward()
        return states.detach().float(), [one.grad.clone() for one in model.parameters() if one.grad is not None]

    wanted, of_wanted = learned()
    hasten(model)
    got, of_got = learned()

    assert not torch.equal(got, wanted)  # it is another way to the same
    assert _unlike(got, wanted) < ROUNDED
    assert len(of_got) == len(list(model.parameters()))
    assert max(_unlike(one, two) for one, two in zip(of_got, of_wanted, strict=True)) < ROUNDED


def test_what_comes_later_changes_nothing_before_it() -> None:
    torch.manual_seed(1)
    model = Decoder(SIZE)
    hasten(model)
    ids = torch.randint(SIZE.vocabulary, (1, BLOCK + 40))
    other = ids.clone()
    other[:, BLOCK + 10 :] = (other[:, BLOCK + 10 :] + 1) % SIZE.vocabulary
    with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
        one, two = model(ids), model(other)

    assert torch.equal(one[:, : BLOCK + 10], two[:, : BLOCK + 10])
    assert not torch.equal(one[:, BLOCK + 10 :], two[:, BLOCK + 10 :])


def _unlike(one: torch.Tensor, two: torch.Tensor) -> float:
    return float((one - two).norm() / two.norm())
