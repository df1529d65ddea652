"""Mini's text tokenizer: sentencepiece with the real control pieces and the order of the real ``<audio_N>``.

Pieces are learned from the training texts in lower case; the normaliser folds the case of what is encoded, too. The
fixed stretches of the clone template are a piece each: they say nothing that a small model should spend room on.
"""

from __future__ import annotations

import io
import json
from pathlib import Path

import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from stepaudio.prompts import TOKENIZER_CONFIG_FILE, TOKENIZER_FILE
from stepaudio.tiny.llm import CHAT_TEMPLATE, CONTROL, FIRST_BYTE
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
    kinds = sentencepiece_model_pb2.ModelProto.SentencePiece
    proto = sentencepiece_model_pb2.ModelProto()
    proto.trainer_spec.CopyFrom(learned.trainer_spec)
    proto.normalizer_spec.CopyFrom(learned.normalizer_spec)

    def add(piece: str, kind: int, score: float = 0.0) -> None:
        proto.pieces.add(piece=piece, score=score, type=kind)

    for number in range(FIRST_BYTE):
        kind = kinds.UNKNOWN if number == 0 else kinds.CONTROL if number in CONTROL else kinds.USER_DEFINED
        add(CONTROL.get(number, f"<user_defined_symbol_{number:02}>"), kind)
    for byte in range(256):
        add(f"<0x{byte:02X}>", kinds.BYTE)
    for stretch in TEMPLATE:
        piece = stretch.replace(" ", SPACE)
        add(piece if stretch in INSIDE else SPACE + piece, kinds.NORMAL, TEMPLATE_SCORE)
    known = {piece.piece for piece in proto.pieces}
    for piece in learned.pieces:
        if piece.type == kinds.NORMAL and piece.piece not in known:
            add(piece.piece, kinds.NORMAL, min(piece.score, -1.0))
    for number in range(LINGUISTIC_CODES + semantic_codes):
        add(f"<audio_{number}>", kinds.USER_DEFINED)
    proto.trainer_spec.vocab_size = len(proto.pieces)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / TOKENIZER_FILE).write_bytes(proto.SerializeToString(deterministic=True))
    config = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    config |= {"tokenizer_class": "LlamaTokenizer", "chat_template": CHAT_TEMPLATE}
    (folder / TOKENIZER_CONFIG_FILE).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    return len(proto.pieces)
