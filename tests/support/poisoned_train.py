"""`onediff train` whose gradients go wrong where certain samples are read: argv[1] is JSON, the rest the command line."""

import json
import os
import signal
import sys

os.environ.setdefault("DS_ACCELERATOR", "cpu")


def main() -> int | None:
    """JSON: {"nan": ids whose loss has a gradient of NaN, "times": factor, "spike": ids whose loss is that much larger,
    "die": forward passes until the process kills itself}."""
    from onediff import cli
    from onediff.training import start

    spec = json.loads(sys.argv[1])
    built, passes = start.built, []

    def poisoned(*args, **more):
        model = built(*args, **more)
        model.register_forward_hook(poison)
        return model

    def poison(module, taken, losses):
        passes.append(1)
        if len(passes) == spec.get("die"):
            os.kill(os.getpid(), signal.SIGKILL)
        batch, _ = taken
        read = {name for row in batch.info.get("ids", ()) for name in row}
        if losses.requires_grad and read & set(spec.get("nan", ())):
            losses.register_hook(lambda gradient: gradient * float("nan"))
        return losses * spec["times"] if read & set(spec.get("spike", ())) else losses

    start.built = poisoned
    return cli.main(sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
