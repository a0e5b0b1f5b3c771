"""Summaries for TensorBoard's further pages: hyperparameters, precision and recall, own charts, meshes.

Owns: what these pages read; equal to what `torch.utils.tensorboard.summary` writes. Must not know:
files, ranks.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np

from dptrain.core.tensor import Tensor
from dptrain.tensorboard import protos
from dptrain.tensorboard.summary import floats, of_plugin
from dptrain.tensorboard.values import make_np

Array = np.ndarray[Any, Any]

# ---- hyperparameters -----------------------------------------------------------------------------


def hparams(
    hparam_dict: Mapping[str, Any] | None = None,
    metric_dict: Mapping[str, Any] | None = None,
    hparam_domain_discrete: Mapping[str, Sequence[Any]] | None = None,
) -> tuple[Any, Any, Any]:
    """The three summaries of a run's hyperparameters: the experiment, the run's start and its end.

    Args:
        hparam_dict: name -> number, bool (shown as a number), string, one-element tensor; None is left out.
        metric_dict: name of a scalar that is shown beside them -> anything.
        hparam_domain_discrete: name -> all values that the hyperparameter may have.

    Raises:
        TypeError: an argument is no dict, or a domain of another type than the value.
        ValueError: a value of another kind.
    """
    domains = {} if hparam_domain_discrete is None else hparam_domain_discrete
    for name, given in {
        "hparam_dict": hparam_dict,
        "metric_dict": metric_dict,
        "hparam_domain_discrete": domains,
    }.items():
        if not isinstance(given, dict):
            raise TypeError(f"parameter: {name} should be a dictionary, nothing logged.")
    assert hparam_dict is not None
    assert metric_dict is not None
    for name, domain in domains.items():
        if (
            name not in hparam_dict
            or not isinstance(domain, list)
            or not all(isinstance(d, type(hparam_dict[name])) for d in domain)
        ):
            raise TypeError(
                f"parameter: hparam_domain_discrete[{name}] should be a list of same type as hparam_dict[{name}]."
            )
    start = protos.SessionStartInfo()
    infos = []
    for name, value in hparam_dict.items():
        if value is None:
            continue
        field, kind, found = _hparam(name, value)
        setattr(start.hparams[name], field, found)
        info = protos.HParamInfo(name=name, type=protos.DataType.Value(kind))
        for allowed in domains.get(name, ()):
            setattr(info.domain_discrete.values.add(), field, allowed)
        infos.append(info)
    metrics = [protos.MetricInfo(name=protos.MetricName(tag=name)) for name in metric_dict]
    end = protos.SessionEndInfo(status=protos.Status.Value("STATUS_SUCCESS"))
    experiment = protos.Experiment(hparam_infos=infos, metric_infos=metrics)
    return (
        _session("experiment", experiment=experiment),
        _session("session_start_info", session_start_info=start),
        _session("session_end_info", session_end_info=end),
    )


def _hparam(name: str, value: Any) -> tuple[str, str, Any]:
    """Field, type and value as they are written."""
    if isinstance(value, str):
        return "string_value", "DATA_TYPE_STRING", value
    if isinstance(value, (Real, np.bool_)):
        return "number_value", "DATA_TYPE_FLOAT64", float(value)
    if isinstance(value, Tensor) and value.numel() == 1:
        return "number_value", "DATA_TYPE_FLOAT64", float(make_np(value).reshape(())[()])
    raise ValueError(
        f"value should be one of int, float, str, bool, or dptrain.Tensor of one element; {name!r} is {value!r}"
    )


def _session(tag: str, **content: Any) -> Any:
    data = protos.HParamsPluginData(version=0, **content)
    return of_plugin("hparams", f"_hparams_/{tag}", data.SerializeToString())


# ---- precision and recall ------------------------------------------------------------------------

#: TensorBoard's page shows no more.
_MOST_THRESHOLDS = 127
#: What is divided by where nothing was counted.
_LEAST_COUNT = 1e-7


def pr_curve_raw(
    tag: str,
    tp: Any,
    fp: Any,
    tn: Any,
    fn: Any,
    precision: Any,
    recall: Any,
    num_thresholds: int = 127,
    weights: Any = None,
) -> Any:
    """A curve of precision and recall that was counted elsewhere: one value per threshold.

    Args:
        tp, fp, tn, fn: true and false, positives and negatives.
        weights: not used, as in PyTorch.

    Raises:
        ValueError: of different lengths.
    """
    rows = [
        make_np(row) if isinstance(row, Tensor) else np.asarray(row)
        for row in (tp, fp, tn, fn, precision, recall)
    ]
    shapes = {row.shape for row in rows}
    if len(shapes) > 1 or rows[0].ndim != 1:
        raise ValueError(
            f"pr_curve {tag!r}: counts, precision and recall must be lists of one length, got shapes {sorted(shapes)}"
        )
    return _curve(tag, np.stack(rows), num_thresholds)


def _curve(tag: str, rows: Array, num_thresholds: int) -> Any:
    shown = protos.PrCurvePluginData(
        version=0, num_thresholds=min(num_thresholds, _MOST_THRESHOLDS)
    )
    return of_plugin("pr_curves", tag, shown.SerializeToString(), tensor=floats(rows))


def pr_curve(
    tag: str, labels: Any, predictions: Any, num_thresholds: int = 127, weights: Any = None
) -> Any:
    """A curve of precision and recall.

    Args:
        labels: 0 or 1, or bools.
        predictions: probabilities in [0, 1], of the same shape.
        num_thresholds: at most 127.
        weights: of the samples.

    Raises:
        ValueError: shapes differ.
    """
    num_thresholds = min(num_thresholds, _MOST_THRESHOLDS)
    rows = compute_curve(make_np(labels), make_np(predictions), num_thresholds, weights)
    return _curve(tag, rows, num_thresholds)


def compute_curve(
    labels: Array, predictions: Array, num_thresholds: int = 127, weights: Any = None
) -> Array:
    """True and false positives and negatives, precision and recall at equally spaced thresholds.

    Returns:
        (6, `num_thresholds`): a prediction p is positive at thresholds up to
        floor(p * (num_thresholds - 1)); predictions outside [0, 1] do not count.

    Raises:
        ValueError: shapes differ.
    """
    if labels.shape != predictions.shape:
        raise ValueError(
            f"pr_curve: labels of shape {list(labels.shape)} do not fit predictions of shape {list(predictions.shape)}"
        )
    if weights is None:
        weights = 1.0
    elif isinstance(weights, Tensor):
        weights = make_np(weights)
    weights = np.broadcast_to(np.asarray(weights, np.float64), labels.shape)
    place = np.floor(predictions * (num_thresholds - 1))
    counted = (place >= 0) & (place < num_thresholds)
    bucket = place[counted].astype(np.int64)
    positive = labels.astype(np.float64)

    def at_least(mass: Array) -> Array:
        counts = np.bincount(bucket, (mass * weights)[counted], num_thresholds)
        return np.cumsum(counts[::-1])[::-1]

    tp, fp = at_least(positive), at_least(1.0 - positive)
    tn, fn = fp[0] - fp, tp[0] - tp
    precision = tp / np.maximum(_LEAST_COUNT, tp + fp)
    recall = tp / np.maximum(_LEAST_COUNT, tp + fn)
    return np.stack((tp, fp, tn, fn, precision, recall))


# ---- charts of several scalars -------------------------------------------------------------------


def custom_scalars(layout: Mapping[str, Mapping[str, Sequence[Any]]]) -> Any:
    """Which scalars are drawn together.

    Args:
        layout: category -> chart -> ["Multiline", tags] or ["Margin", [value, lower, upper]].

    Raises:
        AssertionError: a margin chart without three tags.
    """
    categories = [
        protos.Category(
            title=title, chart=[_chart(name, *kind[:2]) for name, kind in charts.items()]
        )
        for title, charts in layout.items()
    ]
    content = protos.Layout(category=categories).SerializeToString()
    tensor = protos.TensorProto(
        dtype="DT_STRING", string_val=[content], tensor_shape=protos.TensorShapeProto()
    )
    return of_plugin("custom_scalars", "custom_scalars__config__", tensor=tensor)


def _chart(title: str, kind: str, tags: Sequence[str]) -> Any:
    if kind != "Margin":
        return protos.Chart(title=title, multiline=protos.MultilineChartContent(tag=tags))
    if len(tags) != 3:
        raise AssertionError(
            f"Expected 3 tags (value, lower, upper) for the margin chart {title!r}, got {len(tags)}."
        )
    series = protos.MarginChartContent.Series(value=tags[0], lower=tags[1], upper=tags[2])
    return protos.Chart(title=title, margin=protos.MarginChartContent(series=[series]))


# ---- meshes --------------------------------------------------------------------------------------


def mesh(
    tag: str,
    vertices: Any,
    colors: Any,
    faces: Any,
    config_dict: Mapping[str, Any] | None,
    display_name: str | None = None,
    description: str | None = None,
) -> Any:
    """A mesh or a cloud of points.

    Args:
        vertices: (B, N, 3).
        colors: (B, N, 3) or None.
        faces: (B, M, 3), indices of vertices, or None.
        config_dict: camera, lights and material for the page's renderer.

    Raises:
        ValueError: another shape.
    """
    parts = {"VERTEX": vertices, "FACE": faces, "COLOR": colors}
    given = {kind: _points(tag, kind, part) for kind, part in parts.items() if part is not None}
    numbers = {kind: protos.MeshPluginData.ContentType.Value(kind) for kind in given}
    components = sum(1 << number for number in numbers.values())
    values = []
    for kind, part in given.items():
        content = protos.MeshPluginData(
            version=0,
            name=tag,
            content_type=numbers[kind],
            json_config="{}" if config_dict is None else json.dumps(config_dict, sort_keys=True),
            shape=part.shape,
        ).SerializeToString()
        # Field 7, which parts there are, is younger than tensorboardX's message: its key and number.
        content += bytes([7 << 3, components])
        summary = of_plugin("mesh", f"{tag}_{kind}", content, tensor=floats(part))
        values.append(summary.value[0])
        values[-1].metadata.display_name = display_name or ""
        values[-1].metadata.summary_description = description or ""
    return protos.Summary(value=values)


def _points(tag: str, kind: str, part: Any) -> Array:
    points = make_np(part) if isinstance(part, Tensor) else np.asarray(part)
    if points.ndim != 3 or points.shape[2] != 3:
        raise ValueError(
            f"add_mesh {tag!r}: {kind.lower()} data must have shape (B, N, 3), got {list(points.shape)}"
        )
    return points
