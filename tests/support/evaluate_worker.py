"""One rank of `onediff evaluate`, given its command line; on request it dies by SIGKILL in the middle.

`DIES` in the environment names the rank that dies: after its first answers, with half a line left behind as by a rank
killed while it wrote, or, where it writes none, as the third batch begins.
"""

import os
import signal
import sys
from itertools import count


def main() -> int:
    # Without Java scoring takes no second, and captions are what is looked at.
    os.environ["PATH"] = ""
    import torch.distributed as dist

    from onediff.cli import evaluate
    from onediff.cli import main as command
    from onediff.evaluation.answers import AnswerFile
    from onediff.evaluation.captioner import Captioner

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
        ask, turns = Captioner.answer, count(1)

        def ask_and_die(self, rows, **generation):
            if next(turns) == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            return ask(self, rows, **generation)

        Captioner.answer = ask_and_die
    return command(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
