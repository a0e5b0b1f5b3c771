"""Where time goes: of operations (`torch.profiler`'s names), and of a run over all ranks (`RunTimes`, `Timeline`)."""

from dptrain.autograd.profiler import record_function
from dptrain.autograd.profiler_util import DeviceType
from dptrain.profiler.profiler import (
    ProfilerAction,
    ProfilerActivity,
    kineto_available,
    profile,
    schedule,
    supported_activities,
    tensorboard_trace_handler,
)
from dptrain.profiler.timeline import RunTimes, Timeline, clock_offsets

__all__ = [
    "DeviceType",
    "ProfilerAction",
    "ProfilerActivity",
    "RunTimes",
    "Timeline",
    "clock_offsets",
    "kineto_available",
    "profile",
    "record_function",
    "schedule",
    "supported_activities",
    "tensorboard_trace_handler",
]
