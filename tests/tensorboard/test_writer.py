"""Where and when the writer writes: ranks, flushing, errors of the disk, folders."""

import contextlib
import inspect
import io
import os
import sys
import threading
from pathlib import Path

import event_files
import numpy as np
import pytest

import dptrain
from dptrain.comm import run_ranks, set_default
from dptrain.tensorboard import FileWriter, SummaryWriter, protos
from dptrain.tensorboard.events import NoFile

pytest.importorskip("tensorboardX", reason="tensorboardX is not installed (extra `tensorboard`)")


def files(folder):
    return sorted(
        str(p.relative_to(folder).parent) for p in Path(folder).rglob("events.out.tfevents.*")
    )


def on_ranks(count, function):
    """`function(rank)` on ranks that are threads with a default communicator."""

    def rank(communicator):
        set_default(communicator)
        return function(communicator.rank)

    return run_ranks(count, rank)


@pytest.mark.parametrize(
    ("ranks", "expected"),
    [
        (0, ["."]),
        (2, ["."]),
        ("all", ["rank0", "rank1", "rank2"]),
        ([1, 2], ["rank1", "rank2"]),
        (7, []),
    ],
)
def test_which_ranks_write(tmp_path, ranks, expected):
    def run(rank):
        with SummaryWriter(tmp_path, ranks=ranks) as writer:
            writer.add_scalar("rank", rank)
            writer.add_scalars("several", {"a": rank})
            writer.add_hparams({"rank": rank}, {"m": 1.0}, run_name="trial")
            writer.flush()
        return writer.writes

    wrote = on_ranks(3, run)
    assert wrote == [
        ranks == "all" or r == ranks or (ranks == [1, 2] and r in ranks) for r in range(3)
    ]
    assert [f for f in files(tmp_path) if "several" not in f and "trial" not in f] == expected
    assert len(files(tmp_path)) == 3 * len(expected)


def test_the_rank_is_known_before_the_ranks_are_connected(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert not SummaryWriter(tmp_path / "run").writes
    assert not (tmp_path / "run").exists()


def test_ranks_that_are_threads_may_be_the_first_to_write_at_once(job, tmp_path):
    script = (
        "from dptrain.comm import run_ranks, set_default\n"
        "from dptrain.tensorboard import SummaryWriter\n"
        "def rank(communicator):\n"
        "    set_default(communicator)\n"
        f"    with SummaryWriter({str(tmp_path)!r}, ranks='all') as writer:\n"
        "        writer.add_scalar('rank', communicator.rank)\n"
        "run_ranks(4, rank)\n"
    )
    done = job([sys.executable, "-c", script])
    assert done.returncode == 0, done.stderr
    for rank in range(4):
        ((_, value),) = event_files.values(tmp_path / f"rank{rank}")
        assert value.simple_value == rank


def test_a_silent_rank_accepts_every_call_and_makes_nothing(tmp_path):
    writer = SummaryWriter(tmp_path / "run", ranks=1)
    for name, method in inspect.getmembers(writer, inspect.ismethod):
        if name.startswith("add_"):
            required = [
                p for p in inspect.signature(method).parameters.values() if p.default is p.empty
            ]
            assert method(*([None] * len(required))) is None
    # What scripts reach for that put a call of their own together.
    for file in (writer.file_writer, writer._get_file_writer(), *writer.all_writers.values()):
        file.add_summary(protos.Summary(), 1)
        assert file.get_logdir() == str(tmp_path / "run")
    writer.flush()
    writer.close()
    assert not (tmp_path / "run").exists()
    assert writer.get_logdir() == tmp_path / "run"


def test_several_ranks_need_a_folder(tmp_path):
    with pytest.raises(ValueError, match="ranks='all' needs log_dir"):
        SummaryWriter(ranks="all")
    with pytest.raises(ValueError, match="'all', got 'some'"):
        SummaryWriter(tmp_path, ranks="some")


def test_the_default_folder_tells_time_host_and_comment(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with SummaryWriter(comment="_lr") as writer:
        writer.add_scalar("a", 1)
    (run,) = (tmp_path / "runs").iterdir()
    assert writer.get_logdir() == f"runs/{run.name}"
    assert run.name.endswith(f"_{os.uname().nodename}_lr")


def test_flush_returns_when_all_is_in_the_file(tmp_path):
    with SummaryWriter(tmp_path) as writer:
        for step in range(50):
            writer.add_scalar("a", step, step)
        writer.flush()
        assert [step for step, _ in event_files.values(tmp_path)] == list(range(50))


def test_writers_of_one_second_do_not_share_a_file(tmp_path):
    for value in (1, 2):
        with SummaryWriter(tmp_path, filename_suffix=".end") as writer:
            writer.add_scalar("a", value, value)
    writer.add_scalar("a", 3, 3)  # after close: a third file
    writer.close()
    writer.close()
    assert len(list(tmp_path.glob("*.end"))) == 3
    assert [step for step, _ in event_files.values(tmp_path)] == [1, 2, 3]


def test_purge_step_hides_what_was_written_after_the_crash(tmp_path):
    for start, factor in ((0, 1), (3, 10)):
        with SummaryWriter(tmp_path, purge_step=start or None) as writer:
            for step in range(start, 5):
                writer.add_scalar("a", factor * step, step, walltime=1.8e9 + step)
    shown = event_files.accumulated(tmp_path).Scalars("a")
    assert [(s.step, s.value) for s in shown] == [(0, 0), (1, 1), (2, 2), (3, 30), (4, 40)]
    assert [s.wall_time for s in shown] == [1.8e9 + step for step in range(5)]


class FullDisk:
    def write(self, data):
        raise OSError(28, "No space left on device")

    def flush(self):
        raise OSError(28, "No space left on device")

    close = flush


def test_a_full_disk_is_an_error_and_never_a_hang(tmp_path):
    writer = FileWriter(tmp_path, max_queue=2)
    writer.flush()
    writer._records.close()
    writer._records = FullDisk()
    for _ in range(20):  # more than the queue holds
        with contextlib.suppress(OSError):
            writer.add_summary(protos.Summary())
    with pytest.raises(OSError, match=rf"{tmp_path}: .*No space left on device"):
        writer.flush()
    with pytest.raises(OSError, match="No space left"):
        writer.close()
    writer.close()


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        SummaryWriter(tmp_path / "file" / "run")


def test_many_threads_may_write(tmp_path):
    with SummaryWriter(tmp_path) as writer:
        threads = [
            threading.Thread(target=lambda: [writer.add_scalar("a", 1, s) for s in range(30)])
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(step for step, _ in event_files.values(tmp_path)) == sorted([*range(30)] * 4)


def test_what_was_not_closed_is_written_at_the_end_of_the_script(job, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from dptrain.tensorboard import SummaryWriter\n"
        f"writer = SummaryWriter({str(tmp_path)!r})\n"
        "for step in range(200):\n"
        "    writer.add_scalar('a', step, step)\n"
    )
    done = job([sys.executable, script])
    assert done.returncode == 0, done.stderr
    assert len(event_files.values(tmp_path)) == 200


def test_without_tensorboardx_the_constructor_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setattr(protos, "find_spec", lambda name: None)
    for ranks in (0, 1):
        with pytest.raises(ImportError, match=r"dptrain\[tensorboard\]"):
            SummaryWriter(tmp_path, ranks=ranks)


def test_the_file_has_the_same_calls_on_silent_ranks():
    calls = dict(inspect.getmembers(FileWriter, inspect.isfunction))
    for name, method in inspect.getmembers(NoFile, inspect.isfunction):
        if name != "__init__":
            assert inspect.signature(method) == inspect.signature(calls.pop(name))
    assert [name for name in calls if not name.startswith("_")] == []


def test_importing_the_room_imports_no_tensorboardx(job):
    script = (
        "import sys, dptrain, dptrain.utils.tensorboard.summary as summary\n"
        "from dptrain.utils.tensorboard import SummaryWriter\n"
        "assert dptrain.utils.tensorboard.SummaryWriter is dptrain.tensorboard.SummaryWriter\n"
        "assert callable(summary.hparams)\n"
        "assert not [m for m in sys.modules if m.startswith('tensorboardX')]\n"
    )
    done = job([sys.executable, "-c", script])
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("first", ["", "import tensorboardX\n"])
def test_pytorch_is_not_imported_and_tensorboardx_stays_whole(job, tmp_path, first):
    script = first + (
        "import sys\n"
        "from dptrain.tensorboard import SummaryWriter\n"
        f"with SummaryWriter({str(tmp_path)!r}) as writer:\n"
        "    writer.add_scalar('a', 1, 1)\n"
        f"    assert ('torch' in sys.modules) <= {bool(first)}\n"
        "import tensorboardX\n"
        "from tensorboardX.proto.event_pb2 import Event\n"
        "from dptrain.tensorboard import protos\n"
        "assert Event is protos.Event\n"
        f"with tensorboardX.SummaryWriter({str(tmp_path / 'theirs')!r}) as writer:\n"
        "    writer.add_scalar('a', 1, 1)\n"
    )
    done = job([sys.executable, "-c", script])
    assert done.returncode == 0, done.stderr
    for folder in (tmp_path, tmp_path / "theirs"):
        assert len(event_files.values(folder)) == 1


def test_bfloat16_keeps_its_values(tmp_path):
    large = dptrain.tensor(2.0**100, dtype=dptrain.bfloat16, requires_grad=True)
    with SummaryWriter(tmp_path) as writer:
        writer.add_scalar("a", large)
        writer.add_tensor("b", large[None])
    (_, scalar), (_, tensor) = event_files.values(tmp_path)
    assert scalar.simple_value == 2.0**100
    assert np.frombuffer(tensor.tensor.tensor_content, "<f4") == 2.0**100


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_films_stand_side_by_side(tmp_path, count):
    from PIL import Image

    shades = np.random.default_rng(0).integers(0, 256, (count, 5, 3)).astype(np.uint8)
    films = np.broadcast_to(shades[..., None, None], (count, 5, 3, 4, 6))
    with SummaryWriter(tmp_path) as writer:
        writer.add_video("film", films, fps=5)
    ((_, value),) = event_files.values(tmp_path)
    film = Image.open(io.BytesIO(value.image.encoded_image_string))
    rows, columns = {1: (1, 1), 2: (1, 2), 3: (1, 4), 8: (2, 4)}[count]
    assert film.size == (6 * columns, 4 * rows)
    assert film.n_frames == 5
    for t in range(5):
        film.seek(t)
        frame = np.asarray(film.convert("RGB"))
        assert film.info["duration"] == 200
        for n in range(rows * columns):
            row, column = divmod(n, columns)
            part = frame[row * 4 : row * 4 + 4, column * 6 : column * 6 + 6].reshape(-1, 3)
            assert (part == (shades[n, t] if n < count else 0)).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda w: w.add_video("f", np.zeros((2, 3, 4))), r"\(N, T, C, H, W\)"),
        (lambda w: w.add_mesh("m", np.zeros((4, 3))), r"\(B, N, 3\), got \[4, 3\]"),
        (lambda w: w.add_image_with_boxes("b", np.zeros((3, 4, 4)), np.zeros(4)), r"\(N, 4\)"),
        (lambda w: w.add_image("b", np.zeros((3, 4, 4)), dataformats="CHX"), "letters of NCHW"),
    ],
)
def test_bad_use(tmp_path, call, message):
    with (
        SummaryWriter(tmp_path) as writer,
        pytest.raises((ValueError, AssertionError), match=message),
    ):
        call(writer)
