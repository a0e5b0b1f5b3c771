"""Single passes for `gpu.py`: forward and backward, in float32 and bfloat16."""

#: name: (shape, function of the library, its nn.functional and a tensor)
CASES = {
    "relu": ((64, 256, 56, 56), lambda lib, f, x: f.relu(x)),
    "add": ((64, 256, 56, 56), lambda lib, f, x: x + x),
    "gelu": ((8192, 3072), lambda lib, f, x: f.gelu(x)),
    "gelu tanh": ((8192, 3072), lambda lib, f, x: f.gelu(x, approximate="tanh")),
    "silu": ((8192, 3072), lambda lib, f, x: f.silu(x)),
    "to float32": ((8192, 3072), lambda lib, f, x: x.to(lib.float32)),
    "dropout": ((8192, 3072), lambda lib, f, x: f.dropout(x, 0.1)),
    "softmax": ((12288, 1024), lambda lib, f, x: f.softmax(x, -1)),
    "log_softmax": ((8192, 1000), lambda lib, f, x: f.log_softmax(x, -1)),
    "cross_entropy": (
        (4096, 50257),
        lambda lib, f, x: f.cross_entropy(x, lib.arange(len(x), device=x.device)),
    ),
    "layer_norm": ((8192, 768), lambda lib, f, x: f.layer_norm(x, (768,))),
    "batch_norm": ((64, 256, 56, 56), lambda lib, f, x: f.batch_norm(x, None, None, training=True)),
    "max_pool2d": ((64, 64, 112, 112), lambda lib, f, x: f.max_pool2d(x, 3, 2, 1)),
    "adaptive_avg_pool2d": ((256, 2048, 7, 7), lambda lib, f, x: f.adaptive_avg_pool2d(x, 1)),
    "embedding": (
        (50257, 768),
        lambda lib, f, x: f.embedding(lib.arange(8192, device=x.device) * 7919 % len(x), x),
    ),
}


#: Of the first size, to try the script on the host.
_ON_HOST = 0.005


def passes(device):
    """Passes over memory, forward and backward."""
    for kind in ("float32", "bfloat16"):
        for name, (shape, function) in CASES.items():
            if device == "cpu" and name != "embedding":  # whose rows are looked up by number
                shape = (max(2, int(shape[0] * _ON_HOST)), *shape[1:])

            def make(library, shape=shape, function=function, kind=kind):
                x = library.randn(*shape, device=device).to(getattr(library, kind))
                if len(shape) == 4:
                    x = x.to(memory_format=library.channels_last)
                x.requires_grad_()
                grad = library.ones_like(function(library, library.nn.functional, x))

                def call():
                    x.grad = None
                    function(library, library.nn.functional, x).backward(grad)

                return call

            yield f"{name}, {kind}", make
