from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stepaudio.tiny.vocoder import write_vocoder
from stepaudio.vocoder import conformer
from stepaudio.vocoder.conformer import (
    RelativeAttention,
    UpsampleConformerEncoder,
    by_distance,
    relative_positions,
)
from stepaudio.vocoder.vocoder import load_vocoder
from tests.vocoder_recordings import STAGE, Recordings, assert_close, first_outputs


@pytest.fixture(scope="module")
def recorded(conformance: Path) -> Recordings:
    return Recordings(conformance)


def test_every_stage_of_the_encoder_agrees_with_the_recording(recorded: Recordings) -> None:
    encoder = recorded.flow.encoder
    with first_outputs(
        enc_embed_scaled=encoder.embed,
        enc_prelookahead=encoder.pre_lookahead_layer,
        enc_block0=encoder.encoders[0],
        enc_block_last=encoder.encoders[-1],
        enc_up=encoder.up_layer,
        enc_out=encoder,
    ) as outputs:
        encoder(recorded["out.token_embed"])
    assert len(outputs) == 6
    for name, output in outputs.items():
        assert_close(output, recorded[f"out.{name}"], STAGE)


def test_positions_run_from_the_farthest_past_to_the_farthest_future() -> None:
    table = relative_positions(3, 4, torch.device("cpu"))
    distance = torch.tensor([2.0, 1.0, 0.0, -1.0, -2.0])
    torch.testing.assert_close(table[:, 0], distance.sin())
    torch.testing.assert_close(table[:, 1], distance.cos())
    torch.testing.assert_close(table[:, 2], (distance / 100).sin())
    torch.testing.assert_close(table[:, 3], (distance / 100).cos())


@pytest.mark.parametrize("spare", [0, 5])
@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (4, 4), (3, 7), (5, 1)])
def test_scores_by_distance_become_scores_by_key(queries: int, keys: int, spare: int) -> None:
    scores = torch.arange(2.0 * 3 * queries * (spare + keys + queries - 1)).reshape(2, 3, queries, -1)
    by_key = by_distance(scores, keys)
    assert by_key.shape == (2, 3, queries, keys)
    for row in range(queries):
        for key in range(keys):
            assert torch.equal(by_key[..., row, key], scores[..., row, spare + queries - 1 - row + key])


def test_attention_is_the_formula_written_out() -> None:
    torch.manual_seed(0)
    width, heads, length = 12, 3, 5
    attention = RelativeAttention(width, heads).requires_grad_(False)
    attention.pos_bias_u.normal_()
    attention.pos_bias_v.normal_()
    x = torch.randn(1, length, width)
    positions = relative_positions(length, width, x.device)
    expected = torch.zeros(length, width)
    for head in range(heads):
        part = slice(head * width // heads, (head + 1) * width // heads)
        q, k, v = (layer(x)[0, :, part] for layer in (attention.linear_q, attention.linear_k, attention.linear_v))
        p = attention.linear_pos(positions)[:, part]
        scores = torch.empty(length, length)
        for i in range(length):
            for j in range(length):
                near = (q[i] + attention.pos_bias_v[head]) @ p[length - 1 - (i - j)]
                scores[i, j] = (q[i] + attention.pos_bias_u[head]) @ k[j] + near
        expected[:, part] = (scores / 2).softmax(-1) @ v  # 2: the root of the head's width
    torch.testing.assert_close(attention(x, positions)[0], attention.linear_out(expected))


@pytest.mark.parametrize("block", [1, 7, 65, 66, 1000])
def test_the_block_of_queries_does_not_change_the_result(
    recorded: Recordings, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(conformer, "QUERY_BLOCK", block)
    assert_close(recorded.flow.encoder(recorded["out.token_embed"]), recorded["out.enc_out"], STAGE)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> UpsampleConformerEncoder:
    folder = tmp_path_factory.mktemp("vocoder")
    write_vocoder(folder, seed=0)
    return load_vocoder(folder, torch.device("cpu"))._flow.encoder


@pytest.fixture
def biases(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """What attention was given as a mask, call by call."""
    attend, seen = F.scaled_dot_product_attention, list[Tensor]()

    def watched(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor, scale: float) -> Tensor:
        seen.append(attn_mask)
        return attend(query, key, value, attn_mask=attn_mask, scale=scale)

    monkeypatch.setattr(F, "scaled_dot_product_attention", watched)
    return seen


def misaligned(bias: Tensor) -> bool:
    """Whether CUDA's fused attention would read a mask from amid 16 bytes; torch copies those with other strides."""
    strides = bias.stride()[:-1]
    return all(stride % 8 == 0 for stride in strides) and bias.storage_offset() % 4 != 0


@pytest.mark.parametrize("block", [8, 24, 512])
def test_the_scores_of_a_whole_sound_begin_where_a_gpu_can_read_them(
    encoder: UpsampleConformerEncoder, monkeypatch: pytest.MonkeyPatch, biases: list[Tensor], block: int
) -> None:
    monkeypatch.setattr(conformer, "QUERY_BLOCK", block)
    for rows in (*range(8, 34), 261):
        encoder(torch.zeros(1, rows, encoder.embed.out[0].in_features))
    assert len(biases) >= 27 * (len(encoder.encoders) + len(encoder.up_encoders))
    assert not any(map(misaligned, biases))


@pytest.mark.parametrize("prompt", range(25, 42))
def test_the_scores_of_a_stream_begin_where_a_gpu_can_read_them(
    encoder: UpsampleConformerEncoder, biases: list[Tensor], prompt: int
) -> None:
    wide = encoder.embed.out[0].in_features
    past = encoder.beginning(torch.zeros(1, 1, wide))
    for rows in (3 * prompt, 15, 24, 48, 48):
        _, past = encoder.extend(torch.zeros(1, rows + 3, wide), past, last=False, window=1500)
    assert len(biases) == 5 * (len(encoder.encoders) + len(encoder.up_encoders))
    assert not any(map(misaligned, biases))


def test_a_single_row_is_encoded_too(recorded: Recordings) -> None:
    out = recorded.flow.encoder(recorded["out.token_embed"][:, :1])
    assert out.shape == (1, 2, 32)
    assert torch.isfinite(out).all()
