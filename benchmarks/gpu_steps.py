"""Training steps for `gpu.py`: plain, captured, and under DistributedDataParallel with one rank."""

import gc

from step import make_step

#: model, batch, optimizer, autocast to bfloat16 with channels-last images, calls in a row
CASES = [
    ("mlp", 128, "sgd", False, 50),
    ("mlp", 128, "adam", False, 50),
    ("lenet", 128, "sgd", False, 50),
    ("lenet", 128, "adam", False, 50),
    ("resnet18", 512, "sgd", True, 5),
    ("resnet50", 64, "sgd", True, 5),
    ("gpt2", 8, "adamw", True, 3),
]

#: Small enough to try the script on the host.
ON_HOST = [("mlp", 16, "sgd", False, 2), ("resnet18", 2, "sgd", True, 1)]


class Training:
    """Makes a training step of a library, with its first losses and its peak of memory.

    Args:
        case: one of `CASES`.
        prepare: (library, step) -> the step that is timed.
        wrap: (library, model) -> the model that is trained.
    """

    def __init__(self, case, device, prepare=None, wrap=None):
        self.model, self.batch, self.optimizer, self.half, self.calls = case
        self.device, self.prepare, self.wrap = device, prepare, wrap
        self.tolerance = 3e-2 if self.half else 2e-3
        self.losses, self.peaks = {}, {}

    @property
    def label(self):
        kind = "bf16" if self.half else "fp32"
        return f"{self.model} {kind}, batch {self.batch}, {self.optimizer}"

    def __call__(self, library):
        gc.collect()
        if self.device != "cpu":
            library.cuda.empty_cache()
            library.cuda.reset_peak_memory_stats()
        before = self._allocated(library, "memory_allocated")
        wrap = None if self.wrap is None else (lambda net: self.wrap(library, net))
        step = make_step(
            library, self.model, self.batch, self.optimizer, self.device, self.half, wrap
        )
        if self.prepare is not None:
            step = self.prepare(library, step)
        self.losses[library.__name__] = [step().item() for _ in range(4)]
        peak = self._allocated(library, "max_memory_allocated")
        self.peaks[library.__name__] = peak - before
        return step

    def _allocated(self, library, name):
        return 0 if self.device == "cpu" else getattr(library.cuda, name)()


def _cases(device):
    return ON_HOST if device == "cpu" else CASES


def steps(device):
    """Whole training steps as they are called."""
    for case in _cases(device):
        make = Training(case, device)
        yield make.label, make


def captured(device):
    """Training steps captured: dptrain.compile beside PyTorch eager for the launch-bound, torch.compile for the others."""

    if device == "cpu":
        return  # torch.compile wants a C++ compiler there

    def prepare(library, step, half):
        eager = library.__name__ == "torch" and not half
        return step if eager else library.compile(step)

    for case in _cases(device):
        half = case[3]
        make = Training(case, device, lambda library, step, half=half: prepare(library, step, half))
        yield f"{make.label}, {'compile' if half else 'eager'}", make


def ddp(device):
    """One rank by NCCL: dptrain under DistributedDataParallel, PyTorch's column is dptrain without it."""
    if device == "cpu":
        return
    import dptrain

    class Without:
        """dptrain itself in PyTorch's column."""

        __name__ = "without"

        def __getattr__(self, name):
            return getattr(dptrain, name)

    dptrain.distributed.init_process_group("nccl")

    def wrap(library, net):
        if isinstance(library, Without):
            return net
        return dptrain.nn.parallel.DistributedDataParallel(net, device_ids=[0])

    for case in _cases(device)[2:]:
        made = Training(case, device, wrap=wrap)

        def make(library, made=made):
            return made(dptrain if library is dptrain else Without())

        make.losses, make.tolerance, make.calls = made.losses, made.tolerance, made.calls
        make.peaks = made.peaks
        yield f"{made.label}, DDP / plain", make
    dptrain.distributed.destroy_process_group()


SECTIONS = [steps, captured, ddp]
