"""The messages of TensorBoard's files, as tensorboardX brings them; imported when first asked for.

Owns: the import and the error without it. Must not know: what is written.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

_PLACES = {
    "api": "DataType Experiment HParamInfo MetricInfo MetricName Status",
    "attr_value": "AttrValue",
    "event": "Event SessionLog",
    "graph": "GraphDef",
    "layout": "Category Chart Layout MarginChartContent MultilineChartContent",
    "node_def": "NodeDef",
    "plugin_hparams": "HParamsPluginData SessionEndInfo SessionStartInfo",
    "plugin_mesh": "MeshPluginData",
    "plugin_pr_curve": "PrCurvePluginData",
    "plugin_text": "TextPluginData",
    "summary": "HistogramProto Summary SummaryMetadata",
    "tensor": "TensorProto",
    "tensor_shape": "TensorShapeProto",
    "versions": "VersionDef",
}
_PLACE_OF = {name: place for place, names in _PLACES.items() for name in names.split()}


def require() -> None:
    """Check that tensorboardX is there, without importing it.

    Raises:
        ImportError: it is not installed; the message names the extra.
    """
    if find_spec("tensorboardX") is None:
        raise ImportError(
            "SummaryWriter needs tensorboardX, which is not installed: "
            'pip install "dptrain[tensorboard]"'
        )


def __getattr__(name: str) -> Any:
    if name not in _PLACE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    require()
    found = getattr(import_module(f"tensorboardX.proto.{_PLACE_OF[name]}_pb2"), name)
    globals()[name] = found
    return found
