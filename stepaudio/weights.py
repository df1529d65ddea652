"""Which weights folder is used, and what it says of itself.

<folder>/Step-Audio-EditX/       config.json, *.safetensors, tokenizer.model, tokenizer_config.json,
                                 CosyVoice-300M-25Hz/{cosyvoice.yaml, flow.pt, hift.pt, campplus.onnx}
<folder>/Step-Audio-Tokenizer/   linguistic_tokenizer.npy, speech_tokenizer_v1.onnx, <funasr folder>/
<folder>/Step-Audio-EditX-AWQ-4bit/   optional, or in place of Step-Audio-EditX: the same with a packed model
<folder>/card.json               optional: what these weights are and what they cannot do
"""

from __future__ import annotations

import atexit
import json
import logging
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from stepaudio.errors import WeightsError
from stepaudio.settings import Settings
from stepaudio.tiny import tiny_name, write_tiny

log = logging.getLogger(__name__)

EDITX, TOKENIZER, COSYVOICE = "Step-Audio-EditX", "Step-Audio-Tokenizer", "CosyVoice-300M-25Hz"
EDITX_AWQ = "Step-Audio-EditX-AWQ-4bit"
"""The official folder whose language model is packed in 4 bits; it has a vocoder of its own."""

CARD = "card.json"
BASE, AWQ, BNB_INT8, BNB_NF4 = "base", "awq", "bnb-int8", "bnb-nf4"
"""The variants of the language model: as it is, packed in its files, packed by bitsandbytes when it is loaded."""

LM_CONFIG = "config.json"
"""Of the language model; a folder that holds the other parts alone cannot speak and is not taken."""

MINI = "mini"


@dataclass(frozen=True)
class WeightsCard:
    """What a weights folder says of itself; a folder without card.json is taken for the real weights.

    speaks: whether speech comes out at all.   notice: what the page must say, by language code.
    max_output_seconds: a cap of the folder's own (None: only the settings' limit).
    tasks: the names of the tasks that these weights have learnt (None: all of tasks.py).
    verbalise: the language whose digits and abbreviations are spelled out before the model reads them (None: as typed).
    languages: the codes of those that were learnt (None: all that the page knows).
    flow_steps: into how many steps these weights divide the flow, unless the settings or a request say otherwise.
    """

    title: str = "Step-Audio-EditX"
    speaks: bool = True
    notice: Mapping[str, str] = field(default_factory=dict)
    max_output_seconds: float | None = None
    verbalise: str | None = None
    tasks: Sequence[str] | None = None
    languages: Sequence[str] | None = None
    flow_steps: int = 10

    def knows(self, task: str) -> bool:
        """Return whether the weights have learnt this task; others run through the same path, and mean little."""
        return self.speaks and (self.tasks is None or task in self.tasks)

    def understands(self, language: str) -> bool:
        """Return whether the weights have learnt a language, by its code."""
        return self.languages is None or language in self.languages


@dataclass(frozen=True)
class WeightsFolder:
    """A complete weights folder, its card, and why it was chosen.

    variant: which form of the language model is used, one of variants.VARIANTS.
    """

    path: Path
    card: WeightsCard
    reason: str
    variant: str = BASE

    @property
    def editx(self) -> Path:
        """The folder of the language model and the vocoder."""
        return self.path / (EDITX_AWQ if self.variant == AWQ else EDITX)

    @property
    def cosyvoice(self) -> Path:
        return self.editx / COSYVOICE

    @property
    def tokenizer(self) -> Path:
        return self.path / TOKENIZER

    @property
    def funasr(self) -> Path:
        """The folder of the Paraformer: the one below Step-Audio-Tokenizer that holds a config.yaml."""
        found = sorted(self.tokenizer.glob("**/config.yaml"))
        if not found:
            raise WeightsError(f"No FunASR folder (one with a config.yaml) was found in {self.tokenizer}.")
        return found[0].parent


def choose_weights(settings: Settings) -> WeightsFolder:
    """Return the weights to use: those that are named, else real ones under models_dir, else mini, else tiny.

    The variant is the one that the settings name; unless they do, the plain one, or the only one that is there.
    Raises WeightsError when a named folder is not there or holds no weights, or not those of the variant.
    """
    chosen = _choose_folder(settings)
    variant: str = settings.variant
    if variant == "auto":
        variant = BASE if (chosen.path / EDITX).is_dir() else AWQ
    chosen = replace(chosen, variant=variant)
    if not chosen.editx.is_dir():
        raise WeightsError(f"The variant {variant} needs the folder {chosen.editx}, which is not there.")
    return chosen


def _choose_folder(settings: Settings) -> WeightsFolder:
    """Return the weights folder, whichever variants it holds."""
    if settings.weights:
        named = Path(settings.weights)
        path = named if named.is_absolute() or len(named.parts) > 1 else settings.models_dir / named
        if not _present(path):
            raise WeightsError(
                f"The weights folder {path} does not hold both {EDITX} and {TOKENIZER}; "
                "'python -m stepaudio download' fetches the real weights."
            )
        return WeightsFolder(path, read_card(path), "named in the settings")
    # models_dir itself comes last: both repositories may have been put right there.
    candidates = [*sorted(p for p in settings.models_dir.glob("*") if p.is_dir()), settings.models_dir]
    for path in candidates:
        if _complete(path) and not (path / CARD).exists():
            return WeightsFolder(path, read_card(path), f"real weights found under {settings.models_dir}")
    mini = settings.models_dir / MINI
    if _complete(mini):
        return WeightsFolder(mini, read_card(mini), f"no real weights under {settings.models_dir}")
    path = _tiny_folder(settings.cache_dir)
    return WeightsFolder(path, read_card(path), f"no weights under {settings.models_dir}")


def read_card(folder: Path) -> WeightsCard:
    """Return the card of a weights folder; one that cannot be read raises WeightsError."""
    path = folder / CARD
    if not path.exists():
        return WeightsCard()
    try:
        fields: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return WeightsCard(**fields)
    except (OSError, ValueError, TypeError) as error:
        raise WeightsError(f"The file {CARD} in {folder} cannot be read: {error}.") from error


def _present(folder: Path) -> bool:
    return any((folder / name).is_dir() for name in (EDITX, EDITX_AWQ)) and (folder / TOKENIZER).is_dir()


def _complete(folder: Path) -> bool:
    return _present(folder) and any((folder / name / LM_CONFIG).is_file() for name in (EDITX, EDITX_AWQ))


def _tiny_folder(cache_dir: Path) -> Path:
    """Return a folder of tiny random weights, written beside the cache on first use."""
    folder = cache_dir / tiny_name()
    if _complete(folder) and (folder / CARD).exists():
        return folder
    try:
        return write_tiny(folder, keep=True)
    except OSError as error:
        spare = Path(tempfile.mkdtemp(prefix="stepaudio-tiny-"))
        atexit.register(shutil.rmtree, spare, ignore_errors=True)
        log.warning("The tiny weights cannot be written to %s (%s); using %s.", folder, error, spare)
        return write_tiny(spare)
