"""One rank of `onediff evaluate`, given its command line; on request it dies by SIGKILL after its first answers.

`DIES` in the environment names the rank that dies; it leaves half a line behind, as a rank killed while it wrote does.
"""

import os
import signal
import sys


def main() -> int:
    # Without Java scoring takes no second, and captions are what is looked at.
    os.environ["PATH"] = ""
    import torch.distributed as dist

    from onediff.cli import evaluate
    from onediff.cli import main as command
    from onediff.evaluation.answers import AnswerFile

    planned = evaluate.planned

    def planned_alone(args):
        """Rank 0 may export a checkpoint here; in a group, reading one would wait for ranks that never come."""
        assert not dist.is_initialized()
        return planned(args)

    evaluate.planned = planned_alone

    if os.environ.get("DIES") == os.environ["RANK"]:
        whole = AnswerFile.write

        def write_and_die(self, answers) -> None:
            whole(self, answers)
            with self.path.open("a") as out:
                out.write('{"id": "half a li')
            os.kill(os.getpid(), signal.SIGKILL)

        AnswerFile.write = write_and_die
    return command(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
