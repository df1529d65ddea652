"""What lies in a repository of Hugging Face or ModelScope: names, sizes, checksums, addresses.

Shapes of the two listings, as the hubs' own clients (huggingface_hub 2.4, modelscope-hub 0.5) read them:

Hugging Face   GET {endpoint}/api/models/{repo}/tree/{revision}?recursive=true, pages linked by the Link header
               [{"type": "file", "path", "size", "oid": git SHA-1, "lfs": {"oid": SHA-256, "size"} or absent}, ...]
               file: {endpoint}/{repo}/resolve/{revision}/{path}, redirected to a content network
ModelScope     GET {endpoint}/api/v1/models/{repo}/repo/files?Revision=master&Recursive=True
               {"Success": true, "Data": {"Files": [{"Path", "Size", "Sha256", "Type": "blob" or "tree"}, ...]}}
               file: {endpoint}/api/v1/models/{repo}/repo?Revision=master&FilePath={path}
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Literal, Protocol
from urllib.parse import quote, urlencode, urlsplit

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from stepaudio.errors import InvalidInput, WeightsError
from stepaudio.transfer import Checksum, HubError, Network, Session

Source = Literal["auto", "huggingface", "modelscope"]

# Not weights: documentation, pictures, sample sounds, remote code (stepaudio has its own).
UNWANTED_SUFFIXES = frozenset(
    {".md", ".py", ".ipynb", ".pdf", ".html", ".png", ".jpg", ".jpeg", ".gif", ".svg", ".webp"}
    | {".wav", ".mp3", ".flac", ".mp4"}
)
# A second copy of the tokenizer's file (523 MB), which no part of the vocoder opens.
UNWANTED_PATHS = frozenset({"CosyVoice-300M-25Hz/speech_tokenizer_v1.onnx"})

# Sizes and SHA-256 of files that decide what a code means: a mirror that lists others serves another model.
KNOWN: Mapping[str, Mapping[str, tuple[int, str]]] = {
    "stepfun-ai/Step-Audio-EditX": {
        "tokenizer.model": (1_264_044, "25e122d9205d035033a9994c4d46a6a1b467a938654e4178fc0e5f4f5d610674"),
    },
    "stepfun-ai/Step-Audio-Tokenizer": {
        "linguistic_tokenizer.npy": (2_097_280, "d3f240ec9a524644ffd3790b6c568dd1554adfc366e76ddc4d6309a121a05fcc"),
        # The 25 Hz tokenizer of CosyVoice-300M-25Hz.
        "speech_tokenizer_v1.onnx": (522_625_011, "56285ddd4a83e883ee0cb9f8d69c1089b53a94b1f78ff7e4a0224a27eb4cb486"),
    },
}


@dataclass(frozen=True)
class RemoteFile:
    """One file of a repository; ``path`` is relative, with forward slashes, and safe to join to a folder."""

    repo: str
    path: str
    size: int
    checksums: tuple[Checksum, ...]
    url: str

    @property
    def key(self) -> str:
        """A short name of the content, the same on every hub that gives a SHA-256."""
        return next((c.value[:16] for c in self.checksums), f"size-{self.size}")


class Hub(Protocol):
    """A place that repositories are fetched from."""

    @property
    def name(self) -> str: ...

    def headers(self) -> Mapping[str, str]:
        """Return what goes with each request to the hub."""

    def files(self, session: Session, repo: str, *, attempts: int | None = None) -> list[RemoteFile]:
        """Return the files of the repository that are wanted. Raises HubError, or WeightsError for a bad listing."""


class _LfsPointer(BaseModel):
    oid: str = Field(pattern="^[0-9a-f]{64}$")


class _HuggingFaceEntry(BaseModel):
    type: str
    path: str
    size: int = Field(0, ge=0)
    oid: str = Field(pattern="^[0-9a-f]{40,64}$")
    lfs: _LfsPointer | None = None

    @property
    def checksum(self) -> Checksum:
        return Checksum("sha256", self.lfs.oid) if self.lfs else Checksum("git-sha1", self.oid)


class _ModelScopeEntry(BaseModel):
    path: str = Field(alias="Path")
    size: int = Field(0, ge=0, alias="Size")
    type: str = Field("blob", alias="Type")
    sha256: str | None = Field(None, pattern="^([0-9a-f]{64})?$", alias="Sha256")


class _ModelScopeFiles(BaseModel):
    files: list[_ModelScopeEntry] = Field(alias="Files")


class _ModelScopeListing(BaseModel):
    data: _ModelScopeFiles = Field(alias="Data")


_HUGGING_FACE_PAGE = TypeAdapter(list[_HuggingFaceEntry])


@dataclass(frozen=True)
class HuggingFace:
    """The Hugging Face Hub or a mirror of it."""

    endpoint: str = "https://huggingface.co"
    token: str = field(default="", repr=False)
    revision: str = "main"
    name: str = "huggingface"

    def headers(self) -> Mapping[str, str]:
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}

    def files(self, session: Session, repo: str, *, attempts: int | None = None) -> list[RemoteFile]:
        url: str | None = f"{self.endpoint}/api/models/{repo}/tree/{self.revision}?recursive=true"
        entries: list[_HuggingFaceEntry] = []
        while url is not None:
            # The token is for this hub alone, wherever a next page may point to.
            headers = self.headers() if urlsplit(url).netloc == urlsplit(self.endpoint).netloc else {}
            answer = session.get(url, f"the file list of {repo}", headers=headers, attempts=attempts)
            try:
                entries += _HUGGING_FACE_PAGE.validate_json(answer.content)
            except ValidationError as error:
                raise _unreadable(self.endpoint, repo) from error
            url = answer.links.get("next", {}).get("url")
        address = f"{self.endpoint}/{repo}/resolve/{self.revision}/"
        return _choose(
            RemoteFile(repo, e.path, e.size, (e.checksum,), address + quote(e.path))
            for e in entries
            if e.type == "file" and _safe(e.path, repo)
        )


@dataclass(frozen=True)
class ModelScope:
    """ModelScope, which is quicker to reach from China."""

    endpoint: str = "https://modelscope.cn"
    revision: str = "master"
    name: str = "modelscope"

    def headers(self) -> Mapping[str, str]:
        return {}

    def files(self, session: Session, repo: str, *, attempts: int | None = None) -> list[RemoteFile]:
        base = f"{self.endpoint}/api/v1/models/{repo}/repo"
        url = f"{base}/files?{urlencode({'Revision': self.revision, 'Recursive': 'True'})}"
        answer = session.get(url, f"the file list of {repo}", headers=self.headers(), attempts=attempts)
        try:
            entries = _ModelScopeListing.model_validate_json(answer.content).data.files
        except ValidationError as error:
            raise _unreadable(self.endpoint, repo) from error
        return _choose(
            RemoteFile(
                repo,
                e.path,
                e.size,
                (Checksum("sha256", e.sha256),) if e.sha256 else (),
                f"{base}?{urlencode({'Revision': self.revision, 'FilePath': e.path})}",
            )
            for e in entries
            if e.type != "tree" and _safe(e.path, repo)
        )


def choose_hubs(source: Source, network: Network) -> tuple[Hub, ...]:
    """Return the hubs to try, in order. Raises InvalidInput for an unknown source or an endpoint that is no URL."""
    for name, endpoint in network.endpoints.items():
        parts = urlsplit(endpoint)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InvalidInput(f"The endpoint {endpoint!r} for {name} is not an address such as https://example.com.")
    address = {name: endpoint.rstrip("/") for name, endpoint in network.endpoints.items()}
    hugging_face = HuggingFace(address.get("huggingface", HuggingFace.endpoint), network.token)
    modelscope = ModelScope(address.get("modelscope", ModelScope.endpoint))
    hubs: dict[str, tuple[Hub, ...]] = {
        "auto": (hugging_face, modelscope),
        "huggingface": (hugging_face,),
        "modelscope": (modelscope,),
    }
    if source not in hubs:
        raise InvalidInput(f"The source {source!r} is not known; it is one of {', '.join(hubs)}.")
    return hubs[source]


def wanted(path: str) -> bool:
    """Return whether the product needs the file: weights, configurations and licences, nothing else."""
    name = PurePosixPath(path).name
    if name.upper().startswith(("LICENSE", "LICENCE", "NOTICE")):
        return True
    suffix = PurePosixPath(name).suffix.lower()
    return not name.startswith(".") and suffix not in UNWANTED_SUFFIXES and path not in UNWANTED_PATHS


def confirm_known(file: RemoteFile, known: Mapping[str, Mapping[str, tuple[int, str]]]) -> RemoteFile:
    """Return the file with the checksum that this program knows of it, where it knows one.

    Raises WeightsError when the hub lists another size or checksum.
    """
    if file.path not in known.get(file.repo, {}):
        return file
    size, sha256 = known[file.repo][file.path]
    ours = Checksum("sha256", sha256)
    theirs = next((c for c in file.checksums if c.kind == "sha256"), ours)
    if file.size != size or theirs != ours:
        raise WeightsError(
            f"The file {file.path} of {file.repo} is listed with {file.size} bytes and {theirs}, but this version of "
            f"stepaudio was made for {size} bytes and {ours}; use another source, or a newer stepaudio."
        )
    others = tuple(c for c in file.checksums if c != ours)
    return replace(file, checksums=(ours, *others))


def _choose(files: Iterable[RemoteFile]) -> list[RemoteFile]:
    return [file for file in files if wanted(file.path)]


def _safe(path: str, repo: str) -> bool:
    """Return True for a path that stays in its folder on every system; raise WeightsError for any other."""
    parts = path.split("/")
    if any(part in ("", ".", "..") for part in parts) or not path.isprintable() or set(path) & set('\\:*?"<>|'):
        raise WeightsError(f"The file list of {repo} holds the path {path!r}, which is not a plain one; refused.")
    return True


def _unreadable(endpoint: str, repo: str) -> HubError:
    return HubError(f"{urlsplit(endpoint).hostname} sent a file list of {repo} that cannot be read.")
