"""`torch.utils.tensorboard.summary`'s names; they live in `dptrain.tensorboard`."""

from dptrain.tensorboard.pictures import image, image_boxes, make_image, make_video, video
from dptrain.tensorboard.plugins import (
    compute_curve,
    custom_scalars,
    hparams,
    mesh,
    pr_curve,
    pr_curve_raw,
)
from dptrain.tensorboard.summary import (
    audio,
    histogram,
    histogram_raw,
    make_histogram,
    scalar,
    tensor_proto,
    text,
)

__all__ = [
    "audio",
    "compute_curve",
    "custom_scalars",
    "histogram",
    "histogram_raw",
    "hparams",
    "image",
    "image_boxes",
    "make_histogram",
    "make_image",
    "make_video",
    "mesh",
    "pr_curve",
    "pr_curve_raw",
    "scalar",
    "tensor_proto",
    "text",
    "video",
]
