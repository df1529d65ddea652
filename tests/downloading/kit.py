"""What the download tests share: the stand-in of a hub with two repositories, and how it is asked."""

from __future__ import annotations

import hashlib
from pathlib import Path

from stepaudio import snapshot
from stepaudio.download import download
from stepaudio.snapshot import INCOMING
from stepaudio.transfer import Network
from tests.downloading.hub_stand_in import HubStandIn

EDITX, TOKENIZER = "acme/Editor", "acme/Tokenizer"
REPOS = {"Step-Audio-EditX": EDITX, "Step-Audio-Tokenizer": TOKENIZER}
BIG = "model-00001.safetensors"
BIG_CONTENT = hashlib.shake_256(b"weights").digest(300_000)
SOURCES = ["huggingface", "modelscope"]


def new_hub() -> HubStandIn:
    return HubStandIn(
        {
            EDITX: {
                "config.json": b'{"model_type": "step1"}',
                BIG: BIG_CONTENT,
                "README.md": b"# not needed",
                "modeling_step1.py": b"raise SystemExit",
                "LICENSE": b"Apache",
                "CosyVoice-300M-25Hz/flow.pt": b"flow" * 1000,
            },
            TOKENIZER: {"folder with space/am.mvn": b"<Nnet>", "linguistic_tokenizer.npy": b"centroids"},
        },
        in_lfs=frozenset({BIG, "CosyVoice-300M-25Hz/flow.pt"}),
    )


def network(hub: HubStandIn, **options: object) -> Network:
    """Return a network on which the stand-in is both hubs, and patience is short."""
    endpoints = dict.fromkeys(SOURCES, hub.url)
    return Network(**{"endpoints": endpoints, "attempts": 3, "first_wait": 0.01, "read_seconds": 5.0, **options})


def fetch(hub: HubStandIn, target: Path, source: str = "huggingface", **options: object) -> snapshot.Report:
    return download(target, source=source, network=network(hub), repos=REPOS, **options)


def big_part(target: Path) -> Path:
    """Return the path of the big file's part, whose name holds the first digits of its checksum."""
    digest = hashlib.sha256(BIG_CONTENT).hexdigest()
    return target / INCOMING / "Step-Audio-EditX" / f"{BIG}.{digest[:16]}.part"


def assert_complete(target: Path) -> None:
    assert (target / "Step-Audio-EditX" / BIG).read_bytes() == BIG_CONTENT
    assert (target / "Step-Audio-EditX/CosyVoice-300M-25Hz/flow.pt").read_bytes() == b"flow" * 1000
    assert (target / "Step-Audio-Tokenizer/folder with space/am.mvn").read_bytes() == b"<Nnet>"
    assert not (target / INCOMING).exists()
    assert not list(target.rglob("*.part"))
