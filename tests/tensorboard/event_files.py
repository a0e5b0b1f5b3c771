"""Reading event files back with TensorBoard's own reader."""

from pathlib import Path

import pytest


def reader():
    return pytest.importorskip(
        "tensorboard.backend.event_processing.event_file_loader",
        reason="TensorBoard is not installed (extra `test`)",
    )


def events(folder):
    """Folder below `folder` -> the events of its files, without their times."""
    loader = reader()
    found = {}
    for path in sorted(Path(folder).rglob("events.out.tfevents.*")):
        read = list(loader.LegacyEventFileLoader(str(path)).Load())
        assert read[0].file_version == "brain.Event:2"
        for event in read:
            assert event.wall_time > 1.7e9
            event.wall_time = 0
            event.ClearField("source_metadata")  # who wrote the file
        found.setdefault(str(path.parent.relative_to(folder)), []).extend(read)
    return found


def values(folder):
    """The values of all summaries of one folder: [(step, value)]."""
    return [(e.step, v) for e in events(folder)["."] for v in e.summary.value]


def accumulated(folder):
    """TensorBoard's view of one folder."""
    reader()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder), size_guidance={"tensors": 0, "images": 0})
    found.Reload()
    return found
