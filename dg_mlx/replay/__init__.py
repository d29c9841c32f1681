"""How an answer settled: understood as it comes, recorded, and played again.

    events ─ Reading ─▶ looks ─┬─▶ cells of a terminal
                               └─ Recorder ─▶ frames ─▶ Recording ─▶ events, looks

docs/recordings.md has the format of frames.
"""

from .reading import Look, Processor, Progress, Reader, Reading
from .recorder import Recorder
from .recording import Recording
from .states import State
from .texts import Texts

__all__ = [
    "Look",
    "Processor",
    "Progress",
    "Reader",
    "Reading",
    "Recorder",
    "Recording",
    "State",
    "Texts",
]
