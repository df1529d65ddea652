"""A tiny random Step1 with a tokenizer of its own, in the real layout."""

from __future__ import annotations

import json
import string
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from sentencepiece import sentencepiece_model_pb2

from stepaudio.llm.configuration import Step1Config
from stepaudio.llm.loading import CONFIG_FILE, INDEX_FILE
from stepaudio.llm.model import Step1ForCausalLM
from stepaudio.prompts import TOKENIZER_CONFIG_FILE, TOKENIZER_FILE
from stepaudio.tokens import AUDIO_NUMBERS

SHARD = "model-00001.safetensors"

_END = 3
CONTROL = {0: "<unk>", 1: "<s>", 2: "</s>", 3: "<|EOT|>", 4: "<|BOT|>"} | {
    31: "<audio_start>",
    32: "<audio_end>",
    33: "<text_start>",
    34: "<text_end>",
}
_FIRST_BYTE = 68
_SPACE = "\u2581"
_WORDS = (
    "system human assistant speaker audio tokens name prompt text start end debug the and of to in a is was that it "
    "he she you we they for on with as his her at be this have from or had by not but what all were when can said "
    "there use an each which do how their if will up other about out many then them so some would make like into "
    "time has look two more write go see number way could people my than first water been call who its now find "
    "long down day did get come made may part hello world voice speech sound following"
)
_PAIRS = (
    "th he in er an re on at en nd ti es or te of ed is it al ar st to nt ng se ha as ou io le ve co me de hi ri ro"
)
CHAT_TEMPLATE = (
    "{{ '<s>' }}{% for m in messages %}{{ '<|BOT|> ' + ('human' if m['role'] == 'user' else m['role']) + '\\n' }}"
    "{{ m['content'] + '<|EOT|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|BOT|> assistant\\n' }}{% endif %}"
)
_EMBEDDING_STD = 1.0
MOST_DRAWN = 2**22 + 1
"""Numbers that are drawn for a tensor; a larger one repeats them, because billions would take minutes. Odd, so that
no two rows of a matrix begin at the same place."""
TINY_SIZES: Mapping[str, int] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 8,
    "num_attention_groups": 2,
    "num_hidden_layers": 2,
}


def write_llm(
    folder: Path, seed: int, sizes: Mapping[str, int] = TINY_SIZES, dtype: torch.dtype = torch.float32
) -> None:
    """Write config.json, one shard with its index, tokenizer.model and tokenizer_config.json into ``folder``.

    sizes: fields of config.json; a ``vocab_size`` among them may exceed the tokenizer's.
    The same seed gives the same bytes. The network draws nearly evenly from what is legal. Its end id always scores
    0, which is never among the best fifty, so that with the usual top_k the cap of new ids ends it.
    """
    vocabulary = _write_tokenizer(folder)
    config = {
        "architectures": ["Step1ForCausalLM"],
        "model_type": "step1",
        "bos_token_id": 1,
        "pad_token_id": 0,
        "eos_token_id": _END,
        "max_seq_len": 8192,
        "vocab_size": vocabulary,
        "rms_norm_eps": 1e-5,
        "torch_dtype": str(dtype).removeprefix("torch."),
        **sizes,
    }
    _write_json(folder / CONFIG_FILE, config)
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in Step1ForCausalLM(Step1Config(**config)).state_dict().items()}
    generator = torch.Generator().manual_seed(seed)
    state = {name: _random(name, shape, generator, dtype) for name, shape in shapes.items()}
    state["lm_head.weight"][_END] = 0.0
    save_file(state, folder / SHARD, metadata={"format": "pt"})
    size = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    index = {"metadata": {"total_size": size}, "weight_map": dict.fromkeys(state, SHARD)}
    _write_json(folder / INDEX_FILE, index)


def _random(name: str, shape: torch.Size, generator: torch.Generator, dtype: torch.dtype) -> torch.Tensor:
    if name.endswith("norm.weight"):
        return torch.ones(shape, dtype=dtype)
    std = _EMBEDDING_STD if "embed" in name else shape[-1] ** -0.5
    count = shape.numel()
    noise = (torch.randn(min(count, MOST_DRAWN), generator=generator) * std).to(dtype)
    return noise.repeat(-(-count // len(noise)))[:count].view(shape)


def _write_tokenizer(folder: Path) -> int:
    """Write both tokenizer files and return how many pieces there are."""
    proto = sentencepiece_model_pb2.ModelProto()
    add_pieces(proto, [(piece, -2.0 - 0.02 * rank) for rank, piece in enumerate(_ordinary_pieces())], AUDIO_NUMBERS)
    trainer = proto.trainer_spec
    trainer.model_type = sentencepiece_model_pb2.TrainerSpec.UNIGRAM
    trainer.byte_fallback = True
    trainer.split_digits = True
    proto.normalizer_spec.name = "identity"
    proto.normalizer_spec.add_dummy_prefix = True
    proto.normalizer_spec.remove_extra_whitespaces = False
    write_tokenizer_files(proto, folder)
    return len(proto.pieces)


def add_pieces(
    proto: sentencepiece_model_pb2.ModelProto, ordinary: Iterable[tuple[str, float]], audio_numbers: int
) -> None:
    """Add all pieces in the real order: control, bytes, ordinary ones with their scores, and ``<audio_N>``."""
    kinds = sentencepiece_model_pb2.ModelProto.SentencePiece

    def add(piece: str, kind: int, score: float = 0.0) -> None:
        proto.pieces.add(piece=piece, score=score, type=kind)

    for number in range(_FIRST_BYTE):
        kind = kinds.UNKNOWN if number == 0 else kinds.CONTROL if number in CONTROL else kinds.USER_DEFINED
        add(CONTROL.get(number, f"<user_defined_symbol_{number:02}>"), kind)
    for byte in range(256):
        add(f"<0x{byte:02X}>", kinds.BYTE)
    for piece, score in ordinary:
        add(piece, kinds.NORMAL, score)
    for number in range(audio_numbers):
        add(f"<audio_{number}>", kinds.USER_DEFINED)
    proto.trainer_spec.vocab_size = len(proto.pieces)


def write_tokenizer_files(proto: sentencepiece_model_pb2.ModelProto, folder: Path) -> None:
    """Write tokenizer.model and tokenizer_config.json."""
    (folder / TOKENIZER_FILE).write_bytes(proto.SerializeToString(deterministic=True))
    _write_json(
        folder / TOKENIZER_CONFIG_FILE,
        {
            "bos_token": "<s>",
            "eos_token": "</s>",
            "unk_token": "<unk>",
            "tokenizer_class": "LlamaTokenizer",
            "chat_template": CHAT_TEMPLATE,
        },
    )


def _ordinary_pieces() -> list[str]:
    """Return words with their space, pairs of letters and single characters, each once."""
    words = [_SPACE, *(_SPACE + word for word in _WORDS.split())]
    singles = [character for character in string.printable if not character.isspace()]
    return list(dict.fromkeys([*words, *_PAIRS.split(), *singles]))


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
