"""One training step in dptrain and in PyTorch: the same model, batch and optimizer, in turn.

    python benchmarks/step.py                          # both in this environment (extra `oracle`)
    python benchmarks/step.py --more                   # models of further families, too
    python benchmarks/step.py --torch-python PATH      # PyTorch from another environment
    python benchmarks/step.py --compiled               # torch.compile (needs a C++ compiler) as a third side

Prints the medians with quartiles and the ratio of medians, for 1 and 2 threads, the peak of resident
memory and the time of the first step: one line for the plain step, one for the step that
`dptrain.compile` replays, both against PyTorch. The losses of the first steps are compared before any time is
printed.
"""

import resource
import statistics
import sys
import time

import families
import interleave
import models
import numpy as np
from interleave import HEADER, Side, compare, serve


def make_step(library, model, batch, optimizer, device="cpu", half=False, wrap=None):
    """A function that makes one step, from weights and data that are equal in every library.

    Args:
        half: autocast to bfloat16, images and weights channels-last.
        wrap: called with the model, for one around it.
    """
    net = models.build(library, model).to(device)
    x, y = (part.to(device) for part in models.data(library, model, batch))
    if half and x.ndim == 4:
        net = net.to(memory_format=library.channels_last)
        x = x.contiguous(memory_format=library.channels_last)
    if wrap is not None:
        net = wrap(net)
    make = {
        "sgd": lambda: library.optim.SGD(net.parameters(), lr=0.01, momentum=0.9),
        "adam": lambda: library.optim.Adam(net.parameters(), lr=1e-3),
        "adamw": lambda: library.optim.AdamW(net.parameters(), lr=1e-3),
    }[optimizer]()
    criterion = library.nn.CrossEntropyLoss()

    kind = device.partition(":")[0]

    def loss_of():
        if not half:
            return criterion(net(x), y)
        with library.autocast(kind, dtype=library.bfloat16):
            return criterion(net(x), y)

    def step():
        make.zero_grad()
        loss = loss_of()
        loss.backward()
        make.step()
        return loss

    return step


def worker(args):
    if args.worker.startswith("torch"):
        import torch as library
    else:
        import dptrain as library
    library.set_num_threads(args.threads)
    step = make_step(library, args.model, args.batch, args.optimizer)
    if args.worker in ("captured", "torch-compiled"):
        step = library.compile(step)
    first = time.perf_counter()
    losses = [step().item()]
    first = time.perf_counter() - first
    losses += [step().item() for _ in range(4)]

    def measure():
        times = []
        end = time.perf_counter() + args.seconds
        while len(times) < 3 or time.perf_counter() < end:
            start = time.perf_counter()
            step()
            times.append(time.perf_counter() - start)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        ms = statistics.median(times) * 1e3
        return {"ms": ms, "losses": losses, "peak": peak, "first": first}

    serve(args.address, measure)


SIDES = ("dptrain", "captured", "torch", "torch-compiled")

CASES = [
    ("mlp", 64, "sgd"),
    ("mlp", 64, "adam"),
    ("lenet", 4, "sgd"),
    ("lenet", 36, "adam"),
    ("conv3", 64, "sgd"),
    ("resnet20", 64, "sgd"),
    ("gpt", 8, "adamw"),
]
MORE = [
    ("video", 4, "adam"),
    ("audio", 8, "adam"),
    ("lstm", 20, "sgd"),
    ("gru", 20, "sgd"),
    ("cells", 16, "adam"),
    *families.CASES,
]


def main():
    parser = interleave.parser(__doc__, SIDES, rounds=15)
    parser.add_argument("--seconds", type=float, default=0.3, help="length of a measurement")
    parser.add_argument("--model", default=None, choices=sorted(models.SAMPLES))
    parser.add_argument("--batch", type=int)
    parser.add_argument("--optimizer")
    parser.add_argument("--threads", type=int)
    parser.add_argument(
        "--tolerance", type=float, default=2e-4, help="relative difference of the first losses"
    )
    parser.add_argument("--more", action="store_true", help="models of further families too")
    parser.add_argument("--compiled", action="store_true", help="compare with torch.compile too")
    args = parser.parse_args()
    if args.worker:
        worker(args)
    else:
        run(args)


def run(args):
    print(f"{HEADER}   peak MB (ours, theirs)   first step s")
    for model, batch, optimizer in CASES + MORE if args.more or args.model else CASES:
        if args.model not in (None, model) or args.optimizer not in (None, optimizer):
            continue
        for threads in (1, 2) if args.threads is None else (args.threads,):
            options = ["--model", model, "--batch", str(batch), "--optimizer", optimizer]
            options += ["--threads", str(threads), "--seconds", str(args.seconds)]
            names = [name for name in SIDES if args.compiled or name != "torch-compiled"]
            sides = {
                name: Side(
                    name, [python_of(name, args), __file__, "--worker", name, *options], threads
                )
                for name in names
            }
            before = {name: side.measure() for name, side in sides.items()}
            first = np.array(before["torch"]["losses"])
            for name, measured in before.items():
                if not np.allclose(first, measured["losses"], rtol=args.tolerance):
                    raise SystemExit(
                        f"{model}: {name}'s losses differ from {first}: {measured['losses']}"
                    )
            if before["dptrain"]["losses"] != before["captured"]["losses"]:
                raise SystemExit(f"{model}: the captured losses are not those of the plain step")
            label = f"{model} batch {batch} {optimizer}, {threads} thread(s)"
            for mine, theirs in (
                ("dptrain", "torch"),
                ("captured", "torch"),
                *((("captured", "torch-compiled"),) if args.compiled else ()),
            ):
                note = "" if mine == "dptrain" else f", {mine} : {theirs}"
                line = compare(sides[mine], sides[theirs], args.rounds).line(label + note)
                peaks = [sides[side].measure()["peak"] for side in (mine, theirs)]
                firsts = [before[side]["first"] for side in (mine, theirs)]
                print(
                    f"{line}   {peaks[0]:5.0f} {peaks[1]:5.0f}   {firsts[0]:5.2f} {firsts[1]:5.2f}",
                    flush=True,
                )
            for side in sides.values():
                side.close()


def python_of(side, args):
    """The interpreter of a side."""
    return args.torch_python if side.startswith("torch") else sys.executable


if __name__ == "__main__":
    main()
