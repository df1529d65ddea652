"""The exceptions of stepaudio.

StepAudioError
├── InvalidInput      the user can fix it: the message names the value and the limit
│   ├── NotFound          what is named is not there
│   ├── TooLarge          more bytes than are taken
│   └── Unreadable        bytes that are no sound
├── WeightsError      the operator can fix it: the message names the file and its folder
│   └── HubError          the hub cannot be reached, or does not give what is asked of it (transfer.py)
├── GenerationError   nothing came out of the models; trying again may help
│   └── OutOfMemory       the machine's memory did not suffice for this request
├── Busy              the queue is full; try again later
│   └── ShuttingDown      the program takes no more work
├── Cancelled         the user, or a closed connection, stopped the job
├── NotReady          the models are not loaded yet, or could not be (api/errors.py)
└── TookTooLong       the request was not done within the time that one may take (api/errors.py)

Messages are whole sentences for the person who reads the page. Exceptions of other libraries are
translated where they are met, ``from`` the original.
"""

from __future__ import annotations


class StepAudioError(Exception):
    """Base of every error whose message may be shown to a user as it is."""


class InvalidInput(StepAudioError):
    """What the user gave cannot be used; the message says what and which limit applies."""


class NotFound(InvalidInput):
    """What the user named, a voice perhaps, is not there."""


class TooLarge(InvalidInput):
    """The user sent more bytes than are taken; the message says how many are."""


class Unreadable(InvalidInput):
    """The bytes that the user sent cannot be read as sound."""


class WeightsError(StepAudioError):
    """A file of the weights folder is missing, damaged or does not fit; the message names it."""


class GenerationError(StepAudioError):
    """The models produced nothing that could become sound."""


class OutOfMemory(GenerationError):
    """The memory of the machine or its GPU did not suffice, even after what could be spared was given back."""


class Busy(StepAudioError):
    """Too many jobs are waiting already."""


class ShuttingDown(Busy):
    """The program is coming to its end and takes no more jobs."""


class Cancelled(StepAudioError):
    """The job was stopped before it was done."""
