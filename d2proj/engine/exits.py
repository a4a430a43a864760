"""How the command lines end: one sentence and a status, no traceback, for what a user can mend."""

import re
import signal
import sys
import time
from collections.abc import Callable

from d2proj.engine.trainer import Interrupted
from d2proj.errors import InputError

INPUT_ERROR = 2


def run_and_exit(main: Callable[[], None], *, rank: int = 0) -> None:
    """Call ``main``; an InputError becomes ``error: ...`` on stderr and exit status 2.

    Args:
        main: the program.
        rank: of this process. What one process finds wrong all usually do: the others leave the
            first word to the main process, which a launcher then takes as the end of all.
    """
    try:
        main()
    except InputError as error:
        if rank:
            time.sleep(3)
        sys.stdout.flush()
        print(f"error: {user_message(error)}", file=sys.stderr, flush=True)
        sys.exit(INPUT_ERROR)
    except Interrupted as stop:
        sys.exit(128 + stop.signal_number)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)


def user_message(error: BaseException) -> str:
    """The sentence of an error, also where a loader's process raised it.

    ``torch.utils.data`` hands such an error on with the worker's traceback as its message.
    """
    message = str(error)
    if "Original Traceback" in message:
        found = re.findall(r"^(?:[\w.]+Error): (.*)", message, flags=re.MULTILINE)
        message = found[-1] if found else message
    return " ".join(message.split())
