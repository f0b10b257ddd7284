"""One rank of `onediff evaluate`, given its command line; on request it dies by SIGKILL after its first answers.

`DIES` in the environment names the rank that dies; it leaves half a line behind, as a rank killed while it wrote does.
"""

import os
import signal
import sys


def main() -> int:
    # Without Java scoring takes no second, and captions are what is looked at.
    os.environ["PATH"] = ""
    from onediff.cli import main as command
    from onediff.evaluation.answers import AnswerFile

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
