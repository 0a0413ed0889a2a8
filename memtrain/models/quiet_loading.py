"""Loading without the progress bars and messages of diffusers and transformers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import diffusers
import transformers


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Within the context, both libraries report only errors. Afterwards their settings are restored."""
    with ExitStack() as stack:
        libraries: tuple[Any, ...] = (diffusers.utils.logging, transformers.utils.logging)
        for logging in libraries:
            stack.callback(logging.set_verbosity, logging.get_verbosity())
            logging.set_verbosity_error()
            if logging.is_progress_bar_enabled():
                stack.callback(logging.enable_progress_bar)
                logging.disable_progress_bar()
        yield
