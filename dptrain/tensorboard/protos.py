"""What tensorboardX brings: the messages of TensorBoard's files, and the form of their records.

Owns: the import, when something is first asked for, and the error without it. Must not know: what is
written.
"""

from __future__ import annotations

import sys
import threading
from importlib import import_module
from importlib.util import find_spec, module_from_spec
from typing import Any

_PLACES = {
    "record_writer": "RecordWriter directory_check",
    "proto.api_pb2": "DataType Experiment HParamInfo MetricInfo MetricName Status",
    "proto.attr_value_pb2": "AttrValue",
    "proto.event_pb2": "Event SessionLog",
    "proto.graph_pb2": "GraphDef",
    "proto.layout_pb2": "Category Chart Layout MarginChartContent MultilineChartContent",
    "proto.node_def_pb2": "NodeDef",
    "proto.plugin_hparams_pb2": "HParamsPluginData SessionEndInfo SessionStartInfo",
    "proto.plugin_mesh_pb2": "MeshPluginData",
    "proto.plugin_pr_curve_pb2": "PrCurvePluginData",
    "proto.plugin_text_pb2": "TextPluginData",
    "proto.summary_pb2": "HistogramProto Summary SummaryMetadata",
    "proto.tensor_pb2": "TensorProto",
    "proto.tensor_shape_pb2": "TensorShapeProto",
    "proto.versions_pb2": "VersionDef",
}
_lock = threading.Lock()


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


def _load() -> dict[str, Any]:
    """All names.

    The package's own `__init__` imports PyTorch where that is installed, which nothing here needs: some
    seconds, some hundred megabytes, threads of its own. So its modules are imported below an empty one.
    """
    require()
    with _lock:
        spec = find_spec("tensorboardX")
        assert spec is not None
        bare = module_from_spec(spec)
        imported = sys.modules.setdefault("tensorboardX", bare)
        try:
            return {
                name: getattr(import_module(f"tensorboardX.{place}"), name)
                for place, names in _PLACES.items()
                for name in names.split()
            }
        finally:
            if imported is bare:
                del sys.modules["tensorboardX"]


def __getattr__(name: str) -> Any:
    if not any(name in names.split() for names in _PLACES.values()):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals().update(_load())
    return globals()[name]
