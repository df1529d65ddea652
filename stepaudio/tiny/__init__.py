"""Tiny weights: a complete weights folder of small seeded random networks, in the real layout.

Tests run on it, and so does the product until there is something better. What comes out is noise in the shape of
speech: every part is real, none has learnt anything.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path

TINY_SEED = 1
CARD = {
    "title": "tiny",
    "speaks": False,
    "notice": {
        "en": "These are tiny random weights: they make noise, not speech. The whole product runs on them, "
        "but to hear a voice you need the real weights: python -m stepaudio download (about 10 GB).",
        "zh": "当前使用的是微型随机权重：只会发出噪声，而不是语音。整个产品都能在其上运行，"
        "但要听到真正的声音，需要下载真实权重：python -m stepaudio download（约 10 GB）。",
    },
    "max_output_seconds": 5.0,
}


def tiny_name() -> str:
    """Return a folder name that changes with the code that writes tiny weights, so that old ones are not taken."""
    digest = hashlib.sha256(str(TINY_SEED).encode())
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    return f"tiny-{digest.hexdigest()[:8]}"


def write_tiny(folder: Path, seed: int = TINY_SEED, *, keep: bool = False) -> Path:
    """Write a complete weights folder of random networks and return its path.

    The same seed gives the same bytes. The folder appears at once, when it is complete; an existing one of that
    name is replaced only if it holds tiny weights (a card that says so) or nothing. ``keep``: tiny weights that
    another process has put there meanwhile stay, because it may be reading them.
    Raises FileExistsError for a folder that holds anything else.
    """
    from stepaudio.tiny.encoder import write_campplus, write_encoder
    from stepaudio.tiny.llm import write_llm
    from stepaudio.tiny.vocoder import write_vocoder

    if folder.exists() and any(folder.iterdir()) and not _is_tiny(folder):
        raise FileExistsError(f"The folder {folder} is there already and does not hold tiny weights.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        editx = work / "Step-Audio-EditX"
        cosyvoice = editx / "CosyVoice-300M-25Hz"
        tokenizer = work / "Step-Audio-Tokenizer"
        cosyvoice.mkdir(parents=True)
        tokenizer.mkdir()
        write_llm(editx, seed)
        write_vocoder(cosyvoice, seed)
        write_campplus(cosyvoice / "campplus.onnx", seed)
        write_encoder(tokenizer, seed)
        (work / "card.json").write_text(json.dumps(CARD, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        work.chmod(0o755)
        if not (keep and _is_tiny(folder)):
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(work, folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return folder


def _is_tiny(folder: Path) -> bool:
    try:
        card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(card, dict) and card.get("title") == CARD["title"]
