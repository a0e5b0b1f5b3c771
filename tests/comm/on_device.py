"""A communicator whose NumPy arrays travel as arrays of a device.

`OnDevice(comm, place)` brings every array that a call is given to the device, makes the call there, and
takes the results back when the call is waited for. The contract, which is written over NumPy arrays, is
thereby run over GPUs' arrays, or those of virtual devices.
"""

from __future__ import annotations

import numpy as np

from dptrain.comm.arguments import check_array
from dptrain.core.arrays import move, to_host
from dptrain.core.device import as_device


class _Work:
    def __init__(self, work, pairs, result):
        self.__dict__.update(_work=work, _pairs=pairs, result=result)

    def wait(self, timeout=None):
        self._work.wait(timeout)
        self._bring()
        return True

    def is_completed(self):
        done = self._work.is_completed()
        if done and self._work.exception() is None:
            self._work.wait()
            self._bring()
        return done

    def _bring(self):
        for host, there in self._pairs:
            np.copyto(host, to_host(there).reshape(host.shape))
        self._pairs.clear()

    def __getattr__(self, name):
        return getattr(self._work, name)


def _movable(array):
    try:
        check_array("array", array)
    except (TypeError, ValueError):
        return False
    return type(array) is np.ndarray


class OnDevice:
    """See the module.

    Args:
        comm: the communicator.
        place: the device; or a function of the rank that gives it.
    """

    def __init__(self, comm, place):
        self.comm, self.place = comm, place

    def __getattr__(self, name):
        value = getattr(self.comm, name)
        if name in ("all_reduce", "reduce", "broadcast", "send", "recv") or name.startswith(
            ("all_gather", "reduce_scatter", "all_to_all", "gather", "scatter")
        ):
            return value if name.endswith("_object") else lambda *a, **k: self._call(name, a, k)
        return value

    def __setattr__(self, name, value):
        if name in ("comm", "place"):
            self.__dict__[name] = value
        else:
            setattr(self.comm, name, value)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.comm.close()

    def split(self, *args, **kwargs):
        part = self.comm.split(*args, **kwargs)
        return None if part is None else OnDevice(part, self.place)

    def _call(self, name, args, kwargs):
        given = [a for arg in args for a in (arg if isinstance(arg, (list, tuple)) else [arg])]
        arrays = [a for a in given if isinstance(a, np.ndarray)]
        if not arrays:
            return getattr(self.comm, name)(*args, **kwargs)
        fixed = name in ("all_reduce", "reduce", "recv") and not arrays[0].flags.writeable
        if fixed or not all(_movable(a) for a in arrays):
            return getattr(self.comm, name)(*args, **kwargs)
        there = self._moved(arrays)

        def put(arg):
            if isinstance(arg, (list, tuple)):
                return [put(a) for a in arg]
            return there[id(arg)] if isinstance(arg, np.ndarray) else arg

        work = getattr(self.comm, name)(*[put(a) for a in args], **kwargs)
        pairs = [(a, there[id(a)]) for a in arrays if a.flags.writeable and a.size]
        result = next((a for a in arrays if there[id(a)] is work.result), None)
        wrapped = _Work(work, pairs, result)
        if kwargs.get("async_op") is False:
            wrapped.wait()
        return wrapped

    def _moved(self, arrays):
        """By `id`: the arrays there; one that lies inside another stays inside it."""
        there, whole = {}, []
        place = as_device(self.place(self.comm) if callable(self.place) else self.place)
        for array in sorted(arrays, key=lambda a: -a.nbytes):
            start = array.__array_interface__["data"][0]
            for first, last, owner in whole:
                if array.size and first <= start < last:
                    at = (start - first) // array.itemsize
                    inside = owner.reshape(-1)[at : at + array.size].reshape(array.shape)
                    break
            else:
                inside = move(array.copy(), place)
                whole.append((start, start + array.nbytes, inside))
            there[id(array)] = inside
        return there
