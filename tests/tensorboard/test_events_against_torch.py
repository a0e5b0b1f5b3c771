"""What the writer writes is what `torch.utils.tensorboard` writes, read back by TensorBoard."""

import inspect
import io

import event_files
import numpy as np
import pytest

import dptrain
from dptrain.tensorboard import SummaryWriter

pytestmark = pytest.mark.oracle


@pytest.fixture
def both(tmp_path):
    """Runs one function of (writer, tensor-maker) with both writers: `both(calls) -> ours, theirs`."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed (extra `oracle`)")
    event_files.reader()
    from torch.utils.tensorboard import SummaryWriter as TheirWriter

    def run(calls, read=event_files.events):
        with SummaryWriter(tmp_path / "ours") as writer:
            calls(writer, dptrain.from_numpy)
        with TheirWriter(tmp_path / "theirs") as writer:
            calls(writer, torch.from_numpy)
        return read(tmp_path / "ours"), read(tmp_path / "theirs")

    return run


def draws(*shape, seed=0):
    return np.random.default_rng(seed).random(shape, np.float32)


def scalars(writer, tensor):
    for step, value in enumerate(
        [1, 0.1, True, np.float32(0.3), np.int64(3), np.array(0.7), -1e-300]
    ):
        writer.add_scalar("a/b c", value, step)
    writer.add_scalar("of a tensor", tensor(np.array([[0.25]], np.float32)), 7)
    writer.add_scalar("half", tensor(np.array(0.1, np.float16)), np.int32(8))
    writer.add_scalar("without a step", float("nan"))
    writer.add_scalar("infinite", float("inf"), 2**40)
    writer.add_scalar("new", 0.1, 1, new_style=True)
    writer.add_scalar("double", 0.1, 1, new_style=True, double_precision=True)
    writer.add_scalars("several/of them", {"x": 1.5, "y": tensor(np.array(2.5))}, 3)
    writer.add_scalars("several/of them", {"x": 3.5}, 4)


def histograms(writer, tensor):
    values = draws(1000) - 0.3
    writer.add_histogram("default", tensor(values), 1)
    writer.add_histogram("integers", tensor(np.arange(-5, 100)), 1)
    writer.add_histogram("one value", np.zeros(3), 1)
    writer.add_histogram("some are NaN", np.array([1.0, np.nan, 2.0]), 1)
    writer.add_histogram("a number", 5.0)
    for bins in ("auto", 7, [0.0, 0.1, 0.5, 1.0]):
        writer.add_histogram(f"bins {bins}", values, 2, bins=bins)
    for most in (1, 10, 64, 1500, 5000):
        writer.add_histogram(f"at most {most}", values, 3, max_bins=most)
    writer.add_histogram_raw("raw", 0, 4, 3, 7.0, 20.0, [1.0, 2.0, 5.0], [0, 2, 1], 4)


def texts(writer, tensor):
    writer.add_text("a text", "**bold** | ü\n\nnext", 1)
    writer.add_text("tag with / and space", "", 2)


def curves(writer, tensor):
    labels, predictions = draws(500) > 0.4, draws(500, seed=1)
    predictions[:2] = 0, 1
    writer.add_pr_curve("curve", tensor(labels), tensor(predictions), 1)
    writer.add_pr_curve("few", labels.astype(np.int64), predictions, 2, num_thresholds=10)
    writer.add_pr_curve("too many", labels, predictions.astype(np.float64), 3, num_thresholds=500)
    writer.add_pr_curve("weighted", labels, predictions, 4, weights=draws(500, seed=2))
    writer.add_pr_curve("weighed alike", labels, predictions, 4, weights=0.5)
    writer.add_pr_curve("beyond the range", labels[:4], np.array([-0.1, 0.5, 1.5, 0.2]), 4)
    rows = draws(6, 20)
    writer.add_pr_curve_raw("raw", *rows, 5, num_thresholds=20)


def charts(writer, tensor):
    writer.add_custom_scalars(
        {"one": {"a": ["Multiline", ["x", "y"]], "b": ["Margin", ["v", "l", "u"]]}, "two": {}}
    )
    writer.add_custom_scalars_multilinechart(["p", "q"], "cat", "t")
    writer.add_custom_scalars_marginchart(["p", "q", "r"])


def hyperparameters(writer, tensor):
    writer.add_hparams(
        {"lr": 0.1, "batch": 32, "name": "sgd", "nesterov": True, "none": None, "t": tensor(np.array([0.5]))},
        {"accuracy": 0.9, "loss": tensor(np.array(0.1))},
        {"lr": [0.1, 0.01], "name": ["sgd", "adam"], "nesterov": [True, False]},
        run_name="trial",
        global_step=3,
    )  # fmt: skip


def meshes(writer, tensor):
    vertices = tensor(draws(1, 4, 3))
    faces = tensor(np.array([[[0, 2, 3], [0, 3, 1], [0, 1, 2], [1, 3, 2]]]))
    colors = tensor(np.full((1, 4, 3), 200, np.uint8))
    config = {"material": {"cls": "PointsMaterial", "size": 0.03}}
    writer.add_mesh("full", vertices, colors, faces, config, 2)
    writer.add_mesh("points", vertices)


def sounds(writer, tensor):
    wave = np.sin(np.arange(2000, dtype=np.float32) / 20)
    writer.add_audio("a sound", tensor(wave[None]), 1)
    writer.add_audio("too loud", 1.5 * wave, 2, sample_rate=8000)


def images(writer, tensor):
    def image(*shape):
        return 1.4 * draws(*shape) - 0.2

    bytes_ = np.random.default_rng(3).integers(0, 256, (3, 5, 7)).astype(np.uint8)
    writer.add_image("floats", tensor(image(3, 5, 7)), 1)
    writer.add_image("doubles", tensor(image(3, 5, 7).astype(np.float64)), 1)
    writer.add_image("bytes", tensor(bytes_), 1)
    writer.add_image("HWC", image(5, 7, 3), 2, dataformats="HWC")
    writer.add_image("grey HWC", image(5, 7, 1), 2, dataformats="HWC")
    writer.add_image("alpha", image(4, 5, 7), 2)
    writer.add_image("HW", tensor(image(5, 7)), 3, dataformats="HW")
    writer.add_image("WH", image(7, 5), 3, dataformats="wh")
    writer.add_image("bools", image(5, 7) > 0.5, 3, dataformats="HW")
    writer.add_images("NCHW", tensor(image(11, 3, 5, 7)), 4)
    writer.add_images("NHWC", image(3, 5, 7, 1), 4, dataformats="NHWC")
    writer.add_images("one", image(1, 1, 5, 7), 4)
    boxes = np.array([[1.0, 1.0, 20.0, 15.0], [5.0, 5.0, 30.0, 30.0]])
    writer.add_image_with_boxes("boxes", image(3, 40, 40), tensor(boxes), 5, labels=["a", "b"])
    writer.add_image_with_boxes("large", tensor(image(3, 40, 40)), boxes, 5, rescale=2, labels="x")
    writer.add_image_with_boxes("HWC boxes", bytes_.transpose(1, 2, 0), boxes, dataformats="HWC")


def figures(writer, tensor):
    plt = pytest.importorskip("matplotlib.pyplot", reason="matplotlib is not installed")

    def figure(height):
        made = plt.figure(figsize=(2, 1), dpi=50)
        made.subplots().plot([0, height])
        return made

    writer.add_figure("figure", figure(1), 1)
    writer.add_figure("list", [figure(2), figure(3)], 2)
    assert not plt.get_fignums()
    kept = figure(4)
    writer.add_figure("kept", kept, 3, close=False)
    assert plt.get_fignums() == [kept.number]
    plt.close(kept)


CALLS = [
    scalars, histograms, texts, curves, charts, hyperparameters, meshes, sounds, images, figures,
]  # fmt: skip


@pytest.fixture(autouse=True)
def drawn_without_a_display(monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "agg")


@pytest.mark.parametrize("calls", CALLS, ids=lambda calls: calls.__name__)
def test_the_same_events(both, calls):
    ours, theirs = both(calls)
    assert ours.keys() == theirs.keys()
    for folder, expected in theirs.items():
        assert [e.step for e in ours[folder]] == [e.step for e in expected]
        for event, other in zip(ours[folder], expected, strict=True):
            # As text, in which NaN equals NaN.
            assert str(_decoded(event)) == str(_decoded(other))


def _decoded(event):
    """Images as pixels: how they are compressed is Pillow's affair."""
    from PIL import Image

    for value in event.summary.value:
        if value.HasField("image"):
            pixels = np.asarray(Image.open(io.BytesIO(value.image.encoded_image_string)))
            assert pixels.std() > 0
            value.image.encoded_image_string = pixels.tobytes()
    return event


def test_tensors_are_read_back_as_they_were(both):
    from tensorboard.util import tensor_util

    kept = {
        "float32": draws(2, 3),
        "int64": np.arange(4),
        "float64": np.array(0.1),
        "bool": np.array([True, False]),
        "uint8": np.arange(3, dtype=np.uint8),
    }

    def calls(writer, tensor):
        for name, values in kept.items():
            writer.add_tensor(name, tensor(values), 5)

    ours, theirs = both(calls, event_files.values)
    for (step, value), (_, expected) in zip(ours, theirs, strict=True):
        read = tensor_util.make_ndarray(value.tensor)
        assert step == 5
        assert read.dtype == kept[value.tag].dtype
        np.testing.assert_array_equal(read, kept[value.tag])
        assert value.metadata == expected.metadata
        assert value.tensor.dtype == expected.tensor.dtype


def test_what_tensorboard_accumulates(both):
    def calls(writer, tensor):
        for made in (scalars, histograms, texts, images):
            made(writer, tensor)

    ours, theirs = both(calls, event_files.accumulated)
    tags = {kind: sorted(names) for kind, names in theirs.Tags().items() if isinstance(names, list)}
    assert tags == {k: sorted(v) for k, v in ours.Tags().items() if isinstance(v, list)}
    assert [(s.step, s.value) for s in ours.Scalars("a/b c")][:2] == [
        (0, 1.0),
        (1, np.float32(0.1)),
    ]
    for tag in tags["histograms"]:
        for mine, other in zip(ours.Histograms(tag), theirs.Histograms(tag), strict=True):
            assert str(mine.histogram_value) == str(other.histogram_value)  # NaN equals NaN there


@pytest.mark.parametrize(("high", "wide"), [(6, 6), (4, 6)])
def test_the_projectors_files(both, tmp_path, high, wide):
    from google.protobuf import text_format
    from PIL import Image
    from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig

    def calls(writer, tensor):
        points, labels = tensor(draws(10, 3)), list(range(10))
        writer.add_embedding(points, labels, tensor(draws(10, 3, high, wide)), 2, "a/b")
        writer.add_embedding(
            draws(2, 2).astype(np.float64), [["x", 1], ["ü", 2]], metadata_header=["p", "q"]
        )

    both(calls)
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    names = sorted(
        str(p.relative_to(theirs))
        for p in theirs.rglob("*.[tp][sn][vg]")
        if "tfevents" not in p.name
    )
    assert len(names) == 5
    for name in names:
        if name.endswith("tsv"):
            assert (ours / name).read_bytes() == (theirs / name).read_bytes(), name
        else:
            np.testing.assert_array_equal(Image.open(ours / name), Image.open(theirs / name))
    mine, other = (
        text_format.Parse((run / "projector_config.pbtxt").read_text(), ProjectorConfig())
        for run in (ours, theirs)
    )
    assert mine == other
    assert len(mine.embeddings) == 2


def test_calls_have_the_same_arguments_and_defaults():
    pytest.importorskip("torch", reason="PyTorch is not installed (extra `oracle`)")
    event_files.reader()
    from torch.utils.tensorboard import SummaryWriter as TheirWriter

    missing = {"add_onnx_graph"}
    for name, theirs in inspect.getmembers(TheirWriter, inspect.isfunction):
        if (name.startswith("_") and name != "__init__") or name in missing:
            continue
        ours = inspect.signature(getattr(SummaryWriter, name)).parameters.values()
        expected = inspect.signature(theirs).parameters.values()
        assert [(p.name, p.default) for p in ours if p.kind is not p.KEYWORD_ONLY] == [
            (p.name, p.default) for p in expected
        ], name


def test_names_are_found_where_pytorch_has_them():
    pytest.importorskip("torch", reason="PyTorch is not installed (extra `oracle`)")
    event_files.reader()
    import torch.utils.tensorboard as theirs
    from torch.utils.tensorboard import summary as their_summary

    import dptrain.utils.tensorboard as ours
    from dptrain.utils.tensorboard import summary as our_summary
    from dptrain.utils.tensorboard import writer as our_writer

    left_out = {"RecordWriter", "half_to_int", "int_to_half", "draw_boxes"}
    assert set(theirs.__all__) - left_out == set(ours.__all__)
    assert our_writer.SummaryWriter is ours.SummaryWriter is dptrain.tensorboard.SummaryWriter
    assert set(their_summary.__all__) - left_out == set(our_summary.__all__)


@pytest.mark.parametrize(
    "call",
    [
        lambda w: w.add_scalar("a", np.zeros(2)),
        lambda w: w.add_scalar("a", [1.0]),
        lambda w: w.add_scalar("a", "no number"),
        lambda w: w.add_histogram("a", np.zeros(0)),
        lambda w: w.add_histogram("a", np.array([np.nan])),
        lambda w: w.add_histogram_raw("a", 0, 1, 1, 1, 1, [1, 2], [1]),
        lambda w: w.add_image("a", np.zeros((2, 2))),
        lambda w: w.add_image("a", np.zeros((2, 2)), dataformats="HH"),
        lambda w: w.add_images("a", np.zeros((2, 2, 2, 2))),
        lambda w: w.add_pr_curve("a", np.zeros(2), np.zeros(3)),
        lambda w: w.add_pr_curve_raw("a", *[np.zeros(n) for n in (1, 2, 2, 2, 2, 2)]),
        lambda w: w.add_hparams([], {}),
        lambda w: w.add_hparams({"a": 1}, {}, {"a": [0.5]}),
        lambda w: w.add_hparams({"a": 1}, {}, {"b": [1]}),
        lambda w: w.add_hparams({"a": [1]}, {}),
        lambda w: w.add_custom_scalars({"a": {"b": ["Margin", ["c"]]}}),
        lambda w: w.add_custom_scalars_marginchart(["a"]),
        lambda w: w.add_audio("a", np.zeros((2, 5))),
        lambda w: w.add_embedding(np.zeros(3)),
        lambda w: w.add_embedding(np.zeros((3, 2)), ["a"]),
        lambda w: w.add_embedding(np.zeros((3, 2)), None, np.zeros((2, 1, 2, 2))),
        lambda w: w.add_embedding(np.zeros((1, 2)), [["a"]], metadata_header=["b", "c"]),
    ],
)  # fmt: skip
def test_errors_are_of_the_same_kind(tmp_path, call):
    pytest.importorskip("torch", reason="PyTorch is not installed (extra `oracle`)")
    event_files.reader()
    from torch.utils.tensorboard import SummaryWriter as TheirWriter

    kinds = []
    for cls in (SummaryWriter, TheirWriter):
        with cls(tmp_path / cls.__module__) as writer:
            try:
                call(writer)
            except Exception as error:
                kinds.append(type(error))
    assert len(kinds) == 2
    assert kinds[0] is kinds[1]
