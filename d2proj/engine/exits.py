"""How the command lines end: one sentence and a status, no traceback, for what a user can mend."""

import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from d2proj.engine.trainer import Interrupted
from d2proj.errors import InputError

INPUT_ERROR = 2
_VOICE = "D2PROJ_ERROR_SAID"


def run_and_exit(main: Callable[[], None], *, rank: int = 0) -> None:
    """Call ``main``; an InputError becomes ``error: ...`` on stderr and exit status 2.

    Args:
        main: the program.
        rank: of this process. What one process finds wrong all usually do; one says it.
    """
    try:
        main()
    except InputError as error:
        sys.stdout.flush()
        if _may_speak(rank):
            print(f"error: {user_message(error)}", file=sys.stderr, flush=True)
        sys.exit(INPUT_ERROR)
    except Interrupted as stop:
        sys.exit(128 + stop.signal_number)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)


@contextmanager
def one_voice() -> Iterator[None]:
    """Let only the first of the processes that are started inside print its error."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ[_VOICE] = str(Path(folder) / "said")
        try:
            yield
        finally:
            del os.environ[_VOICE]


def _may_speak(rank: int) -> bool:
    if _VOICE in os.environ:
        try:
            os.close(os.open(os.environ[_VOICE], os.O_CREAT | os.O_EXCL))
        except OSError:  # said already
            return False
    elif rank:
        time.sleep(3)  # torchrun ends all as soon as the main process has spoken
    return True


def user_message(error: BaseException) -> str:
    """The sentence of an error, also where a loader's process raised it.

    ``torch.utils.data`` hands such an error on with the worker's traceback as its message.
    """
    message = str(error)
    if "Original Traceback" in message:
        found = re.findall(r"^(?:[\w.]+Error): (.*)", message, flags=re.MULTILINE)
        message = found[-1] if found else message
    return " ".join(message.split())
