"""Mini's text tokenizer: sentencepiece with the real control pieces and the order of the real ``<audio_N>``.

Pieces are learned from the training texts in lower case; the normaliser folds the case of what is encoded, too. The
fixed stretches of the clone template are a piece each: they say nothing that a small model should spend room on.
"""

from __future__ import annotations

import io
from pathlib import Path

import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from stepaudio.tiny.llm import add_pieces, write_tokenizer_files
from stepaudio.tokens import LINGUISTIC_CODES

PIECES = 900
SPACE = "\u2581"
TEMPLATE = (
    "system",
    "generate audio with the following timbre, prosody and speaking style",
    "[speaker_start] speaker name: debug speaker prompt text:",
    "speaker audio tokens:",
    "[speaker_end]",
    "human",
    "assistant",
)
INSIDE = ("[speaker_end]",)
"""Stretches that follow ids and not the beginning of a turn: no space stands before them."""

TEMPLATE_SCORE = 0.0
"""Better than any sum of others, so that sentencepiece takes the whole stretch."""


def write_tokenizer(texts: list[str], semantic_codes: int, folder: Path) -> int:
    """Write tokenizer.model and tokenizer_config.json into ``folder`` and return how many pieces there are."""
    trained = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=trained,
        model_type="unigram",
        vocab_size=PIECES,
        character_coverage=1.0,
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="nmt_nfkc_cf",
        hard_vocab_limit=False,
        num_threads=1,
        minloglevel=2,
    )
    learned = sentencepiece_model_pb2.ModelProto.FromString(trained.getvalue())
    proto = sentencepiece_model_pb2.ModelProto()
    proto.trainer_spec.CopyFrom(learned.trainer_spec)
    proto.normalizer_spec.CopyFrom(learned.normalizer_spec)
    ordinary = {}
    for stretch in TEMPLATE:
        piece = stretch.replace(" ", SPACE)
        ordinary[piece if stretch in INSIDE else SPACE + piece] = TEMPLATE_SCORE
    normal = sentencepiece_model_pb2.ModelProto.SentencePiece.NORMAL
    for piece in learned.pieces:
        if piece.type == normal:
            ordinary.setdefault(piece.piece, min(piece.score, -1.0))
    add_pieces(proto, ordinary.items(), LINGUISTIC_CODES + semantic_codes)
    folder.mkdir(parents=True, exist_ok=True)
    write_tokenizer_files(proto, folder)
    return len(proto.pieces)
