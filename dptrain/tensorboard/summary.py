"""Summaries of values: scalars, histograms, text, sound, tensors.

Owns: what numbers a summary holds; equal to those of `torch.utils.tensorboard.summary`. Must not
know: files, ranks.
"""

from __future__ import annotations

import io
import wave
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from dptrain.tensorboard import protos
from dptrain.tensorboard.values import make_np

Array = np.ndarray[Any, Any]


def of_plugin(plugin: str, tag: str, content: bytes = b"", **value: Any) -> Any:
    """A `Summary` with one value that the plugin of that name shows.

    Args:
        content: the plugin's own message.
        value: the fields of the value, such as `tensor`.
    """
    data = protos.SummaryMetadata.PluginData(plugin_name=plugin, content=content)
    metadata = protos.SummaryMetadata(plugin_data=data)
    return protos.Summary(value=[protos.Summary.Value(tag=tag, metadata=metadata, **value)])


def shape_of(sizes: Sequence[int]) -> Any:
    """A `TensorShapeProto`."""
    dim = protos.TensorShapeProto.Dim
    return protos.TensorShapeProto(dim=[dim(size=n) for n in sizes])


def floats(values: Array) -> Any:
    """A `TensorProto` of float32 values."""
    return protos.TensorProto(
        dtype="DT_FLOAT", float_val=values.reshape(-1).tolist(), tensor_shape=shape_of(values.shape)
    )


def scalar(
    name: str,
    tensor: Any,
    collections: Any = None,
    new_style: bool = False,
    double_precision: bool = False,
) -> Any:
    """One number.

    Args:
        name: its tag.
        tensor: a number, or a tensor or array of one element.
        collections: not used, as in PyTorch.
        new_style: as a tensor, as TensorFlow 2 writes it.
        double_precision: as float64; only the new style has it.

    Raises:
        AssertionError: several elements.
    """
    found = make_np(tensor)
    if found.size != 1:
        raise AssertionError(
            f"Tensor should contain one element (0 dimensions). {name!r} was given size: {found.size} and "
            f"{found.ndim} dimensions."
        )
    number = float(found.reshape(())[()])
    if not new_style:
        return protos.Summary(value=[protos.Summary.Value(tag=name, simple_value=number)])
    tensor_proto = (
        protos.TensorProto(double_val=[number], dtype="DT_DOUBLE")
        if double_precision
        else protos.TensorProto(float_val=[number], dtype="DT_FLOAT")
    )
    return of_plugin("scalars", name, tensor=tensor_proto)


_TENSOR_TYPES = {
    "float16": "DT_HALF",
    "float32": "DT_FLOAT",
    "float64": "DT_DOUBLE",
    "int8": "DT_INT8",
    "uint8": "DT_UINT8",
    "int16": "DT_INT16",
    "int32": "DT_INT32",
    "int64": "DT_INT64",
    "bool": "DT_BOOL",
}


def tensor_proto(tag: str, tensor: Any) -> Any:
    """A whole tensor; bfloat16 as float32.

    Raises:
        ValueError: more than 2 GB, or a dtype that the format has not.
    """
    values = make_np(tensor)
    if values.nbytes >= 1 << 31:
        raise ValueError("tensor is bigger than protocol buffer's hard limit of 2GB in size")
    kind = _TENSOR_TYPES.get(values.dtype.name)
    if kind is None:
        raise ValueError(f"{tag} has unsupported tensor dtype {values.dtype}")
    content = values.astype(values.dtype.newbyteorder("<")).tobytes()
    proto = protos.TensorProto(
        dtype=kind, tensor_shape=shape_of(values.shape), tensor_content=content
    )
    return of_plugin("tensor", tag, tensor=proto)


@cache
def default_bins() -> Array:
    """The limits of TensorBoard's histograms: 0 and, to both sides, 1e-12 to 1e20 in steps of 10 %."""
    limits = [1e-12]
    while (limit := limits[-1] * 1.1) < 1e20:
        limits.append(limit)
    return np.array([*(-limit for limit in reversed(limits)), 0.0, *limits])


def histogram(name: str, values: Any, bins: Any, max_bins: int | None = None) -> Any:
    """How values are distributed.

    Args:
        name: its tag.
        values: of any shape.
        bins: limits, or what else `numpy.histogram` takes.
        max_bins: merge neighbouring bins until there are about as many.
    """
    histo = make_histogram(make_np(values).astype(float), bins, max_bins)
    return protos.Summary(value=[protos.Summary.Value(tag=name, histo=histo)])


def make_histogram(values: Array, bins: Any, max_bins: int | None = None) -> Any:
    """A `HistogramProto`: the filled bins and an empty one before them.

    Raises:
        ValueError: no value, or none inside the bins.
    """
    values = values.reshape(-1)
    if values.size == 0:
        raise ValueError("The input has no element.")
    counts, limits = np.histogram(values, bins=bins)
    if max_bins is not None and len(counts) > max_bins:
        counts, limits = _merged(counts, limits, len(counts) // max_bins)
    filled = np.flatnonzero(counts)
    if filled.size == 0:
        raise ValueError(
            f"the histogram is empty: none of the {values.size} values (the first is {values[0]}) lies within "
            f"the bins, {limits[0]} to {limits[-1]}"
        )
    first, last = int(filled[0]), int(filled[-1])
    # A bucket is told by its upper limit; so the empty one before the first gives that one's lower limit.
    return histogram_proto(
        values.min(),
        values.max(),
        len(values),
        values.sum(),
        values.dot(values),
        limits[first : last + 2].tolist(),
        [0, *counts[first : last + 1].tolist()],
    )


def _merged(counts: Array, limits: Array, several: int) -> tuple[Array, Array]:
    """Each `several` bins as one."""
    padded = np.pad(counts, (0, -len(counts) % several))
    return padded.reshape(-1, several).sum(1), np.append(limits[:-1:several], limits[-1])


def histogram_proto(
    min: float,
    max: float,
    num: float,
    sum: float,
    sum_squares: float,
    bucket_limits: Sequence[float],
    bucket_counts: Sequence[float],
) -> Any:
    """A `HistogramProto` of what was counted elsewhere."""
    return protos.HistogramProto(
        min=min,
        max=max,
        num=num,
        sum=sum,
        sum_squares=sum_squares,
        bucket_limit=bucket_limits,
        bucket=bucket_counts,
    )


def histogram_raw(
    name: str,
    min: float,
    max: float,
    num: float,
    sum: float,
    sum_squares: float,
    bucket_limits: Sequence[float],
    bucket_counts: Sequence[float],
) -> Any:
    """A histogram that was counted elsewhere."""
    histo = histogram_proto(min, max, num, sum, sum_squares, bucket_limits, bucket_counts)
    return protos.Summary(value=[protos.Summary.Value(tag=name, histo=histo)])


def text(tag: str, text: str) -> Any:
    """A text in Markdown."""
    content = protos.TextPluginData(version=0).SerializeToString()
    tensor = protos.TensorProto(
        dtype="DT_STRING", string_val=[text.encode("utf-8")], tensor_shape=shape_of([1])
    )
    return of_plugin("text", f"{tag}/text_summary", content, tensor=tensor)


def audio(tag: str, tensor: Any, sample_rate: int = 44100) -> Any:
    """A sound of one channel, as 16-bit WAV.

    Args:
        tensor: (L), values in [-1, 1]; what is beyond is clipped.

    Raises:
        AssertionError: more than one dimension.
    """
    values = make_np(tensor).squeeze()
    if values.ndim != 1:
        raise AssertionError(
            f"input tensor should be 1 dimensional, got shape {list(values.shape)}."
        )
    if np.abs(values).max() > 1:
        print("warning: audio amplitude out of range, auto clipped.")
        values = values.clip(-1, 1)
    frames = (values * np.iinfo(np.int16).max).astype("<i2")
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(sample_rate)
        writer.writeframes(frames.tobytes())
    sound = protos.Summary.Audio(
        sample_rate=sample_rate,
        num_channels=1,
        length_frames=len(frames),
        encoded_audio_string=file.getvalue(),
        content_type="audio/wav",
    )
    return protos.Summary(value=[protos.Summary.Value(tag=tag, audio=sound)])
