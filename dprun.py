"""``dprun``: the launcher, without the library that its ranks import."""

import sys
from importlib.util import find_spec, module_from_spec


def main() -> int:
    """Run ``dptrain.launch`` in a package ``dptrain`` that has its place and not its contents.

    The launcher uses the standard library only; a job need not wait until NumPy and all operations are imported
    for it as well.
    """
    spec = find_spec("dptrain")
    if spec is not None and "dptrain" not in sys.modules:
        sys.modules["dptrain"] = module_from_spec(spec)
    from dptrain.launch.cli import main

    return main()


if __name__ == "__main__":
    sys.exit(main())
