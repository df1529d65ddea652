"""From a trained recogniser to the files of the product: k-means centroids and a FunASR folder."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
import yaml

from stepaudio.encoder import funasr_folder
from stepaudio.tiny.encoder import FUNASR_FOLDER, TOKENS, paraformer_config
from stepaudio.tokens import LINGUISTIC_CODES
from training.data import STACK, Example
from training.linguistic import (
    CONFIG,
    LONGEST,
    SETS,
    Quantised,
    Recogniser,
    assign,
    evaluate_model,
    load,
    load_quantised,
    read_sets,
    usable,
)
from training.texts import held_out

log = logging.getLogger(__name__)

FRAMES_PER_SET = 60_000
ROUNDS = 25
SEED = 1

AnyRecogniser = TypeVar("AnyRecogniser", bound=Recogniser)


def k_means(points: torch.Tensor, count: int, rounds: int, seed: int) -> torch.Tensor:
    """Return ``count`` centroids of ``points`` (N, D), Lloyd's algorithm from random points.

    A centroid that nothing is nearest to moves to one of the points that are worst off.
    """
    generator = torch.Generator().manual_seed(seed)
    centroids = points[torch.randperm(len(points), generator=generator)[:count]].clone()
    for number in range(rounds):
        nearest, distance = assign(points, centroids)
        sums = torch.zeros_like(centroids).index_add_(0, nearest, points)
        sizes = torch.bincount(nearest, minlength=count)
        centroids = sums / sizes.clamp(min=1)[:, None]
        empty = (sizes == 0).nonzero().flatten()
        if len(empty):
            centroids[empty] = points[distance.topk(len(empty)).indices]
        log.info("k-means round %d: mean distance %.4f, %d empty", number, float(distance.mean()), len(empty))
    return centroids


def rounded(model: AnyRecogniser) -> AnyRecogniser:
    """Return the model with the weights as they will be stored, in half precision."""
    for parameter in model.encoder.parameters():
        parameter.data = parameter.data.half().float()
    return model


def output_frames(model: Recogniser, examples: list[Example], most: int) -> torch.Tensor:
    """Return about ``most`` output frames (N, size), of clips spread over ``examples``."""
    step = max(1, sum(one.frames for one in examples) // most)
    found, count = [], 0
    with torch.inference_mode():
        for example in examples[::step]:
            if count >= most:
                break
            found.append(model.frames([torch.from_numpy(np.asarray(example.bank, np.float32))]))
            count += len(found[-1])
    return torch.cat(found).clone()


def cmvn(mean: torch.Tensor, deviation: torch.Tensor) -> str:
    """Return am.mvn in Kaldi's text: what is added to and what multiplies each of the stacked numbers."""
    size = STACK * len(mean)
    lines = ["<Nnet>", f"<Splice> {size} {size}", "[ 0 ]"]
    for tag, values in (("AddShift", -mean), ("Rescale", 1 / deviation)):
        numbers = " ".join(f"{float(value):.6g}" for value in values.repeat(STACK))
        lines += [f"<{tag}> {size} {size}", f"<LearnRateCoef> 0 [ {numbers} ]"]
    return "\n".join([*lines, "</Nnet>", ""])


def write_folder(model: Recogniser, centroids: torch.Tensor, folder: Path) -> None:
    """Write the FunASR folder and linguistic_tokenizer.npy into ``folder`` (Step-Audio-Tokenizer)."""
    inner = folder / FUNASR_FOLDER
    inner.mkdir(parents=True, exist_ok=True)
    config = paraformer_config(CONFIG.size, CONFIG.heads, CONFIG.linear_units, CONFIG.blocks)
    (inner / funasr_folder.CONFIG).write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    paths = {
        "init_param": funasr_folder.WEIGHTS,
        "config": funasr_folder.CONFIG,
        "tokenizer_conf": {"token_list": funasr_folder.TOKENS, "seg_dict": funasr_folder.SEG_DICT},
        "frontend_conf": {"cmvn_file": funasr_folder.CMVN},
    }
    about = {"framework": "pytorch", "task": "auto-speech-recognition", "model": {"type": "funasr"}}
    about |= {"pipeline": {"type": "funasr-pipeline"}, "file_path_metas": paths}
    (inner / "configuration.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    (inner / funasr_folder.TOKENS).write_text(json.dumps(TOKENS), encoding="utf-8")
    (inner / "tokens.txt").write_text("".join(f"{token}\n" for token in TOKENS), encoding="utf-8")
    (inner / funasr_folder.SEG_DICT).write_text("hello h e l l o\n", encoding="utf-8")
    (inner / funasr_folder.CMVN).write_text(cmvn(model.mean, model.deviation), encoding="utf-8")
    state = {f"encoder.{name}": tensor.half() for name, tensor in model.encoder.state_dict().items()}
    torch.save(state, inner / funasr_folder.WEIGHTS)
    np.save(folder / "linguistic_tokenizer.npy", centroids.half().numpy())


def export(work: Path, out: Path, to: Path) -> None:
    """Write the folder ``to``, and log how well frames and codes tell phonemes.

    Encoder and centroids are those of quantise() where it has run, else the recogniser's with k-means' centroids.
    """
    examples = {name: [one for one in read_sets(work, (name,)) if _fits(one)] for name in SETS}
    if (out / "quantised.pt").is_file():
        quantised = rounded(load_quantised(out))
        plain = Recogniser(CONFIG, quantised.mean, quantised.deviation).eval()
        plain.load_state_dict(quantised.state_dict(), strict=False)
        points = _points(plain, examples)
    else:
        plain = rounded(load(out))
        points = _points(plain, examples)
        centroids = k_means(points, LINGUISTIC_CODES, ROUNDS, SEED)
        quantised = Quantised(CONFIG, plain.mean, plain.deviation, centroids).eval()
        quantised.load_state_dict(plain.state_dict(), strict=False)
    write_folder(plain, quantised.centroids, to)
    used = torch.bincount(assign(points, quantised.centroids)[0], minlength=LINGUISTIC_CODES).float()
    share = used / used.sum()
    entropy = float(-(share * share.clamp(min=1e-12).log2()).sum())
    log.info("%d frames, %d codes used, %.2f bits", len(points), int((used > 0).sum()), entropy)
    log.info("frames: %s", json.dumps(evaluate_model(plain, work)))
    log.info("codes: %s", json.dumps(evaluate_model(quantised, work)))


def _points(model: Recogniser, examples: dict[str, list[Example]]) -> torch.Tensor:
    return torch.cat([output_frames(model, clips, FRAMES_PER_SET) for clips in examples.values() if clips])


def _fits(example: Example) -> bool:
    speakers = held_out().speakers
    known = usable(example, speakers) or not example.record.phones
    return known and example.frames <= LONGEST and example.record.speaker not in speakers
