"""Train mini's language model: ``python -m training.language {tokenizer,train,export} --work W``.

A small Step1 learns to write the codes of a text in the voice of a prompt, in the product's own clone template. Loss
is on every audio id, the prompt's too: what stands before a prompt's codes is its text, so they teach the same. The
teachers and the alignment tell which phoneme sounds when; a linear layer that is thrown away must read it off the last
state, which shows the model its place in the text long before the codes alone would.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from sentencepiece import sentencepiece_model_pb2
from torch import nn

from stepaudio.llm.attention import score_bias
from stepaudio.llm.network import Decoder, Dimensions
from stepaudio.prompts import CURRENT_SPEAKER, TOKENIZER_FILE, PromptBuilder, SpeechTokenizer
from stepaudio.tokens import (
    GROUP,
    GROUP_SECONDS,
    LINGUISTIC_CODES,
    LINGUISTIC_PER_GROUP,
    ROWS_PER_GROUP,
    ROWS_PER_SECOND,
    SEMANTIC_ROW_OFFSET,
    SpeechVocabulary,
    interleave,
)
from stepaudio.types import SpeechTokens
from stepaudio.verbalise import verbaliser
from training.align import Alignments
from training.blockwise import hasten
from training.captured import Batch
from training.codes import Coded, read_codes
from training.command import DEVICES, begin
from training.data import RATE
from training.phones import CLASSES, IGNORED, frame_labels, frame_words
from training.semantic import LEVELS
from training.shards import ClipRecord
from training.texts import held_out, training_texts
from training.tokenizer import SPACE, TEMPLATE, write_tokenizer
from training.trainer import Plan, best_weights, home, run

log = logging.getLogger(__name__)

HIDDEN, INTERMEDIATE, LAYERS, HEADS, GROUPS = 192, 448, 6, 6, 2
MAX_LENGTH = 8192
WEIGHTS_FILE = "model.safetensors"
SETS = ("hibari", "disguised", "kokoro", "presets", "recordings")
PROMPT_SECONDS = (1.5, 10.0)
LONGEST_SECONDS = 14.0
"""Of a clip that is trained on. Shorter ones first (``--longest``): where a text has few places, its place is found."""

BATCH_IDS, STEPS, LEARNING_RATE, TURNED = 4000, 30_000, 1.2e-3, 2e-3
RATE_GROWTH = 0.25
"""The learning rates grow by this power of the batch."""

EVERY, TIMES = 3, {"presets": 3}
"""Of recordings only every so manieth clip is to be said, and some sets are shown more often than once a pass: the
codes of recordings are less clear than those of the teachers. All of them are prompts."""

PHONE_SHARE, GUIDE_SHARE = 0.5, 0.5
GUIDED_LAYERS, GUIDED_HEAD, GUIDED_EVERY = (2, 4), 3, 3
"""Where a head is shown which word of the text it should look at: one that distance hardly hinders (see slopes).
Every so manieth row of a batch shows it: comparing all of them takes a fifth of a step on a CPU."""

SHARPENED = 0.7 / 0.3
"""What the exported head is multiplied by: at the product's usual temperature of 0.7 mini draws as it does at 0.3, and
more of its words come out right."""

MOST_WORDS = 1000
PROMPT_TEXT = (SPACE + TEMPLATE[2].replace(" ", SPACE), SPACE + TEMPLATE[3].replace(" ", SPACE))
TARGET_TEXT = (SPACE + "human", "<|EOT|>")
"""The pieces between which the texts stand."""

CENTRES = np.array([0.03, 0.09, 0.02, 0.06, 0.10])
"""Seconds from a group's beginning to the middle of what each of its ids stands for."""

SEED = 6


@dataclass(frozen=True, eq=False)
class Said:
    """A clip as the language model sees it.

    numbers: int64 (5 n,), the N of every ``<audio_N>``. labels: int64 (5 n,), the phoneme at each, IGNORED where
    nobody knows. words: int64 (5 n,), the number of the word at each, -1 where nobody knows.
    """

    speaker: str
    text: str
    numbers: np.ndarray
    labels: np.ndarray
    words: np.ndarray

    @property
    def seconds(self) -> float:
        """Length of the sound."""
        return len(self.numbers) / GROUP * GROUP_SECONDS


@dataclass(frozen=True, eq=False)
class Row:
    """One sequence of training: ids, which are written by the model, and the phoneme labels of these.

    read: the number of its word at each id of a text, -1 elsewhere; spoken: at each id of its speech.
    """

    ids: torch.Tensor
    written: torch.Tensor
    labels: torch.Tensor
    read: torch.Tensor
    spoken: torch.Tensor


def numbers_of(rows: np.ndarray) -> np.ndarray:
    """Return the numbers int64 (5 n,) of the vocoder's rows (3 n, 2): the inverse of stepaudio.tokens.rows."""
    table = rows.astype(np.int64).reshape(-1, ROWS_PER_GROUP, 2)
    semantic = table[:, :, 1].ravel() - SEMANTIC_ROW_OFFSET - LINGUISTIC_CODES
    return interleave(table[:, :LINGUISTIC_PER_GROUP, 0].ravel(), semantic).numbers


def labels_of(record: ClipRecord, spelled: str, offset: int, groups: int) -> tuple[np.ndarray, np.ndarray]:
    """Return phoneme and word at every number of a clip whose codes begin ``offset`` samples (at 16 kHz) into it.

    spelled: the phonemes with a space between any two words; an alignment has commas where the speaker paused.
    """
    if not record.bounds:
        return np.full(groups * GROUP, IGNORED, np.int64), np.full(groups * GROUP, -1, np.int64)
    seconds = (np.arange(groups)[:, None] * GROUP_SECONDS + CENTRES).reshape(-1)
    bounds = np.asarray(record.bounds) * (RATE / record.rate)
    centres = seconds * RATE + offset
    return frame_labels(record.phones, bounds, centres), frame_words(spelled, bounds, centres)


def read_said(work: Path, name: str) -> list[Said]:
    """Return the clips of a set that have a text, codes, and a length that suits."""
    known, found, verbalise = Alignments(work, name), [], verbaliser("en")
    for coded in read_codes(work, name):
        if _suits(coded):
            record, spelled = known.of(coded.record), coded.record.phones
            labels, words = labels_of(record, spelled, coded.offset, len(coded.rows) // ROWS_PER_GROUP)
            text = verbalise(record.text)
            if len(text.split()) != len(spelled.split(" ")):
                words = np.full_like(words, -1)
            found.append(Said(record.speaker, text, numbers_of(coded.rows), labels, words))
    return found


def _suits(coded: Coded) -> bool:
    record = coded.record
    known = record.lang == "en" and record.text and record.speaker not in held_out().speakers
    return bool(known) and 0 < len(coded.rows) / ROWS_PER_SECOND <= LONGEST_SECONDS


class Partners:
    """The clips that may be prompts, by voice; none is longer than ``longest`` seconds."""

    def __init__(self, clips: list[Said], longest: float = PROMPT_SECONDS[1]) -> None:
        self._of = defaultdict(list)
        for clip in clips:
            if PROMPT_SECONDS[0] <= clip.seconds <= longest:
                self._of[clip.speaker].append(clip)

    def has(self, clip: Said) -> bool:
        """Return whether another clip of the voice can be the prompt."""
        return len(self._of[clip.speaker]) > 1

    def draw(self, clip: Said, generator: torch.Generator) -> Said:
        """Return another clip of the same voice."""
        others = [one for one in self._of[clip.speaker] if one is not clip] if len(self._of[clip.speaker]) < 20 else []
        pool = others or self._of[clip.speaker]
        return pool[int(torch.randint(len(pool), (), generator=generator))]


class Writer:
    """Turns two clips of a voice into one training sequence, with the product's prompt builder."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = SpeechTokenizer.load(folder / TOKENIZER_FILE)
        self.prompts = PromptBuilder.load(folder)
        proto = sentencepiece_model_pb2.ModelProto.FromString((folder / TOKENIZER_FILE).read_bytes())
        self.pieces = [piece.piece for piece in proto.pieces]

    def row(self, prompt: Said, target: Said) -> Row:
        """Return the sequence in which ``target`` is said in the voice of ``prompt``."""
        vocabulary = self.tokenizer.vocabulary
        before = self.prompts.clone_as(CURRENT_SPEAKER, prompt.text, SpeechTokens(prompt.numbers), target.text)
        answer = [*vocabulary.ids(target.numbers).tolist(), vocabulary.end]
        ids = torch.tensor(before + answer)
        audio = (ids >= vocabulary.linguistic.start) & (ids < vocabulary.semantic.stop)
        labels, spoken, read = (torch.full((len(ids),), value) for value in (IGNORED, -1, -1))
        labels[audio] = torch.from_numpy(np.concatenate((prompt.labels, target.labels)))
        # The target's words are numbered on from where no prompt's are.
        words = prompt.words, np.where(target.words < 0, -1, target.words + MOST_WORDS)
        spoken[audio] = torch.from_numpy(np.concatenate(words))
        pieces = [self.pieces[number] for number in before]
        for number, (head, tail) in enumerate((PROMPT_TEXT, TARGET_TEXT)):
            start = pieces.index(head) + 1
            stop = pieces.index(tail, start)
            begins = np.cumsum([piece.startswith(SPACE) for piece in pieces[start:stop]]) - 1
            if len(begins) and begins[-1] + 1 == len((prompt, target)[number].text.split()):
                read[start:stop] = torch.from_numpy(begins) + number * MOST_WORDS
        written = audio.clone()
        written[-1] = True
        return Row(ids, written, labels, read, spoken)


class Trainee(nn.Module):
    """The language model, and a layer that reads the phoneme off the state that writes an id."""

    def __init__(self, size: Dimensions) -> None:
        super().__init__()
        self.model = Decoder(size)
        self.lm_head = nn.Linear(size.hidden, size.vocabulary, bias=False)
        self.phone = nn.Linear(size.hidden, CLASSES)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02 if isinstance(module, nn.Linear) else 0.5)

        self.seen: dict[int, torch.Tensor] = {}
        for layer in GUIDED_LAYERS:
            attention = self.model.layers[layer].self_attn
            attention.register_forward_pre_hook(lambda _, inputs, layer=layer: self.seen.update({layer: inputs[0]}))

    def forward(self, ids: torch.Tensor, written: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return states (n, D) and phoneme logits (n, CLASSES) where the next id is ``written`` (B, T)."""
        states = self.model(ids[:, :-1])[written[:, 1:]]
        return states, self.phone(states)

    def mistaken(self, states: torch.Tensor, wanted: torch.Tensor, vocabulary: SpeechVocabulary) -> torch.Tensor:
        """Return the mean cross-entropy of the ids ``wanted`` int64 (n,), among those that are legal in their place.

        Others are never drawn (stepaudio.llm.sampling), so nothing is to be learned, or computed, of them. The end
        counts as legal in every place of a linguistic id.
        """
        weight = self.lm_head.weight
        linguistic, semantic = (weight[kind.start : kind.stop] for kind in (vocabulary.linguistic, vocabulary.semantic))
        is_semantic = (wanted >= vocabulary.semantic.start) & (wanted < vocabulary.semantic.stop)
        place = torch.where(wanted == vocabulary.end, len(linguistic), wanted - vocabulary.linguistic.start)
        first = F.linear(states[~is_semantic], torch.cat((linguistic, weight[vocabulary.end][None])))
        second = F.linear(states[is_semantic], semantic)
        total = F.cross_entropy(first.float(), place[~is_semantic], reduction="sum")
        total = total + F.cross_entropy(
            second.float(), wanted[is_semantic] - vocabulary.semantic.start, reduction="sum"
        )
        return total / len(wanted)

    def astray(self, read: torch.Tensor, spoken: torch.Tensor) -> torch.Tensor:
        """Return how little the guided heads looked at the word that they were writing, in the last forward().

        read, spoken: int64 (B, T), see Row. The mean of -log of the share of attention that the word got, in every
        GUIDED_EVERYth row.
        """
        read, spoken = read[::GUIDED_EVERY, :-1], spoken[::GUIDED_EVERY, 1:]
        texts = (read >= 0).any(0).nonzero()[:, 0]
        same = (spoken[:, :, None] == read[:, None, texts]) & (spoken >= 0)[:, :, None]
        known = same.any(-1)
        if not known.any():
            return same.new_zeros((), dtype=torch.float32)
        return torch.stack([self._astray(layer, texts, same)[known].mean() for layer in GUIDED_LAYERS]).mean()

    def _astray(self, layer: int, texts: torch.Tensor, same: torch.Tensor) -> torch.Tensor:
        attention, x = self.model.layers[layer].self_attn, self.seen[layer][::GUIDED_EVERY]
        head = slice(GUIDED_HEAD * attention.head_size, (GUIDED_HEAD + 1) * attention.head_size)
        group = GUIDED_HEAD // (attention.heads // attention.groups)
        of_group = slice(group * attention.head_size, (group + 1) * attention.head_size)
        query = F.linear(x, attention.q_proj.weight[head])
        key = F.linear(x, attention.k_proj.weight[of_group])
        places = torch.arange(x.shape[1], device=x.device)
        bias = score_bias(self.model.slopes()[GUIDED_HEAD : GUIDED_HEAD + 1], places, x.shape[1])
        scores = (query @ key.transpose(1, 2)).float() * attention.head_size**-0.5 + bias
        hit = scores[:, :, texts].masked_fill(~same, float("-inf")).logsumexp(-1)
        return scores.logsumexp(-1) - hit


def size_of(vocabulary: int) -> Dimensions:
    """Return mini's sizes."""
    return Dimensions(vocabulary, HIDDEN, INTERMEDIATE, LAYERS, HEADS, GROUPS, 1e-5, MAX_LENGTH)


@dataclass(frozen=True, eq=False)
class Sheet(Batch):
    """Some rows beside each other, (B, T), with padding after the short ones; see Row."""

    ids: torch.Tensor
    written: torch.Tensor
    labels: torch.Tensor
    read: torch.Tensor
    spoken: torch.Tensor

    @classmethod
    def of(cls, rows: list[Row]) -> Sheet:
        """Return the rows padded to the longest."""

        def padded(name: str, value: float) -> torch.Tensor:
            parts = [getattr(row, name) for row in rows]
            return nn.utils.rnn.pad_sequence(parts, batch_first=True, padding_value=value)

        return cls(
            padded("ids", 0),
            padded("written", False),
            padded("labels", IGNORED),
            padded("read", -1),
            padded("spoken", -1),
        )


def loss_of(model: Trainee, sheet: Sheet, vocabulary: SpeechVocabulary) -> torch.Tensor:
    """Return the cross-entropy of the written ids, and that of their phonemes beside it."""
    sheet = sheet.to(home(model))
    chosen = sheet.written[:, 1:]
    with torch.autocast(sheet.ids.device.type, torch.bfloat16):
        states, phones = model(sheet.ids, sheet.written)
        astray = model.astray(sheet.read, sheet.spoken)
        loss = model.mistaken(states, sheet.ids[:, 1:][chosen], vocabulary) + GUIDE_SHARE * astray
    known = sheet.labels[:, 1:][chosen]
    if (known != IGNORED).any():
        loss = loss + PHONE_SHARE * F.cross_entropy(phones.float(), known, ignore_index=IGNORED)
    return loss


@dataclass(frozen=True)
class Course:
    """What one part of a training reads: sets of clips, and the seconds of the longest target and prompt.

    every: of recordings so manieth is to be said.
    """

    sets: tuple[str, ...] = SETS
    longest: float = LONGEST_SECONDS
    longest_prompt: float = PROMPT_SECONDS[1]
    every: int = EVERY


def train(work: Path, folder: Path, plan: Plan, course: Course, first: Path | None, device: str) -> None:
    """Train until all steps are done, from the last checkpoint if there is one.

    first: a folder with exported weights of the same tokenizer, to begin with where there is no checkpoint.
    """
    said = {name: list(read_said(work, name)) for name in course.sets}
    partners = Partners([clip for clips in said.values() for clip in clips], course.longest_prompt)
    writer = Writer(folder)
    every = {"recordings": course.every}
    clips = [clip for name, clips in said.items() for clip in clips[:: every.get(name, 1)] * TIMES.get(name, 1)]
    clips = [clip for clip in clips if partners.has(clip) and clip.seconds <= course.longest]
    log.info("%d clips, %.1f h", len(clips), sum(clip.seconds for clip in clips) / 3600)
    out = work / "language"
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(SEED)
    model = Trainee(size_of(writer.tokenizer.size))
    log.info("%.2f M parameters", sum(one.numel() for one in model.parameters()) / 1e6)
    if first is not None:
        model.load_state_dict(load_file(first / WEIGHTS_FILE), strict=False)  # it holds no layer for phonemes
        model.lm_head.weight.data /= SHARPENED
    model.to(device)
    if device == "cpu":
        hasten(model)
    torch.set_float32_matmul_precision("high")  # the attention's products, where a GPU has TF32

    def prepared(batch: list[Said], generator: torch.Generator) -> Sheet:
        return Sheet.of([writer.row(partners.draw(clip, generator), clip) for clip in batch])

    sizes = [len(clip.numbers) + int(min(course.longest_prompt, 5) / GROUP_SECONDS * GROUP) + 50 for clip in clips]
    vocabulary = writer.tokenizer.vocabulary
    run(model, clips, sizes, lambda sheet, _: loss_of(model, sheet, vocabulary), out / "checkpoint.pt", plan, prepared)


def export(work: Path, folder: Path) -> None:
    """Write config.json and the weights, in half precision, beside the tokenizer."""
    tokenizer = SpeechTokenizer.load(folder / TOKENIZER_FILE)
    config = {
        "architectures": ["Step1ForCausalLM"],
        "model_type": "step1",
        "bos_token_id": 1,
        "pad_token_id": 0,
        "eos_token_id": tokenizer.vocabulary.end,
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_attention_heads": HEADS,
        "num_attention_groups": GROUPS,
        "num_hidden_layers": LAYERS,
        "max_seq_len": MAX_LENGTH,
        "vocab_size": tokenizer.size,
        "rms_norm_eps": 1e-5,
        "torch_dtype": "float16",
    }
    state = {
        name: value.half().contiguous() for name, value in best_weights(work / "language" / "checkpoint.pt").items()
    }
    state = {name: value for name, value in state.items() if not name.startswith("phone.")}
    state["lm_head.weight"] *= SHARPENED
    save_file(state, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Run one part."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=("tokenizer", "train", "export"))
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--to", type=Path, required=True, help="the folder Step-Audio-EditX")
    parser.add_argument("--speech", type=Path, help="folder of the recordings, whose index holds texts (tokenizer)")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=SETS)
    parser.add_argument("--longest", type=float, default=LONGEST_SECONDS, help="seconds of the longest target")
    parser.add_argument("--longest-prompt", type=float, default=PROMPT_SECONDS[1])
    parser.add_argument("--batch", type=int, default=BATCH_IDS, help="ids of one step, which its rate follows")
    parser.add_argument("--every", type=int, default=EVERY, help="of recordings so manieth is to be said")
    parser.add_argument("--workers", type=int, default=0, help="processes that prepare batches")
    parser.add_argument("--first", type=Path, help="a folder with exported weights to begin with")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=DEVICES, default="cpu")
    options = parser.parse_args()
    begin(options.work, f"language-{options.part}", options.threads)
    if options.part == "tokenizer":
        texts = training_texts(options.speech / "index.tsv", SEED)
        log.info("%d pieces", write_tokenizer(texts, int(np.prod(LEVELS)), options.to))
    elif options.part == "train":
        course = Course(tuple(options.sets), options.longest, options.longest_prompt, options.every)
        faster = (options.batch / BATCH_IDS) ** RATE_GROWTH
        plan = Plan(
            steps=options.steps,
            batch=options.batch,
            rate=LEARNING_RATE * faster,
            turned=TURNED * faster,
            warm_up=300,
            weight_decay=0.05,
            clip=1.0,
            average=0.999,
            seed=SEED,
            workers=options.workers,
        )
        train(options.work, options.to, plan, course, options.first, options.device)
    else:
        export(options.work, options.to)


if __name__ == "__main__":
    main()
