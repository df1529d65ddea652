"""``python -m stepaudio voices``: list, add, remove, rename, export and import saved voices; presets are listed too."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from stepaudio.commands import common
from stepaudio.commands.streams import put
from stepaudio.errors import WeightsError
from stepaudio.files import read_file, write_file
from stepaudio.presets import PresetFolder
from stepaudio.settings import Settings, add_flags
from stepaudio.voices import VoiceDraft, VoiceFolder, read_export

_FOLDER = ["data_dir", "max_voices", "voices_megabytes"]
_WEIGHTS = ["models_dir", "weights", "variant", "cache_dir"]
"""What says which weights are used, and so which presets there are."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the subcommands of ``python -m stepaudio voices``."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")

    listing = actions.add_parser("list", help="show all saved voices, and those that came with the weights")
    listing.add_argument("--json", action="store_true", help="as JSON, with every field")
    listing.set_defaults(run=_list)

    adding = actions.add_parser("add", help="save a voice, and encode it (loads the models)")
    adding.add_argument("name", help="what to call it")
    adding.add_argument("--reference", type=Path, required=True, metavar="FILE", help="a recording of the voice")
    adding.add_argument("--transcript", required=True, metavar="TEXT", help="the words spoken in it")
    adding.add_argument("--language", default="", help="its language, to tell only")
    adding.add_argument("--consent", default="", help="who agreed to what, to tell only")
    adding.set_defaults(run=_add)

    removing = actions.add_parser("remove", help="remove a saved voice")
    removing.add_argument("voice", metavar="NAME|ID")
    removing.set_defaults(run=_remove)

    renaming = actions.add_parser("rename", help="give a saved voice another name")
    renaming.add_argument("voice", metavar="NAME|ID")
    renaming.add_argument("name")
    renaming.set_defaults(run=_rename)

    exporting = actions.add_parser("export", help="write a saved voice to one file")
    exporting.add_argument("voice", metavar="NAME|ID")
    exporting.add_argument("file", type=Path)
    exporting.set_defaults(run=_export)

    importing = actions.add_parser("import", help="save an exported voice as a new one (loads the models)")
    importing.add_argument("file", type=Path)
    importing.set_defaults(run=_import)

    add_flags(listing, only=[*_FOLDER, *_WEIGHTS])
    for action in (removing, renaming, exporting):
        add_flags(action, only=_FOLDER)
    for action in (adding, importing):
        add_flags(action, only=common.SETTINGS)


def _list(parsed: argparse.Namespace, settings: Settings) -> int:
    voices, presets = VoiceFolder.of(settings).list(), _presets(settings).list()
    if parsed.json:
        records = [{**asdict(voice), "preset": False} for voice in voices]
        unknown = {"consent": "", "seconds": None, "created": None}
        records += [{**asdict(preset), **unknown, "preset": True} for preset in presets]
        put(json.dumps(records, indent=1) + "\n")  # ASCII, which every terminal and file can hold
    else:
        rows = [f"{v.id}  {v.seconds:5.1f} s  {v.created[:10]}  {v.language or '-':<8}  {v.name}\n" for v in voices]
        rows += [f"{p.id:<16}  {'-':>7}  {'preset':<10}  {p.language:<8}  {p.name}\n" for p in presets]
        put("".join(rows) or "There are no saved voices.\n")
    return 0


def _presets(settings: Settings) -> PresetFolder:
    """Return the voices that came with the weights: none where there are no weights, which is told."""
    try:
        return common.presets_of(settings)
    except WeightsError as error:
        sys.stderr.write(f"{error}\n")
        return PresetFolder(None)


def _add(parsed: argparse.Namespace, settings: Settings) -> int:
    audio = read_file(parsed.reference)
    draft = VoiceDraft(audio, parsed.name, parsed.transcript, parsed.language, parsed.consent)
    VoiceFolder.of(settings).cleaned(draft)  # refused before anything is loaded
    return _save(draft, settings)


def _remove(parsed: argparse.Namespace, settings: Settings) -> int:
    folder = VoiceFolder.of(settings)
    folder.delete(folder.find(parsed.voice).id)
    return 0


def _rename(parsed: argparse.Namespace, settings: Settings) -> int:
    folder = VoiceFolder.of(settings)
    folder.reserve(_presets(settings).names())
    folder.rename(folder.find(parsed.voice).id, parsed.name)
    return 0


def _export(parsed: argparse.Namespace, settings: Settings) -> int:
    folder = VoiceFolder.of(settings)
    write_file(parsed.file, folder.export(folder.find(parsed.voice).id))
    return 0


def _import(parsed: argparse.Namespace, settings: Settings) -> int:
    draft = read_export(read_file(parsed.file))
    return _save(draft, settings)


def _save(draft: VoiceDraft, settings: Settings) -> int:
    """Save a new voice, put out its id, and return 0; what the user should know goes to standard error."""
    with common.running_service(settings) as service:
        saved = service.save_voice(draft).result()
    put(f"{saved.voice.id}\n")
    for notice in saved.notices:
        sys.stderr.write(f"{notice}\n")
    return 0
