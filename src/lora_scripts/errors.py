"""The only errors a person meets: one line each, with the file, the line and the mend."""

from __future__ import annotations

import re
from collections.abc import Sequence
from os import PathLike

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")


class UserError(Exception):
    """A person's mistake, or a file that is not what it should be; printed as one line, exit code 2.

    `str()` gives "file:line: message; hint", leaving out what is unknown.
    """

    def __init__(
        self,
        message: str,
        *,
        file: str | PathLike[str] | None = None,
        line: int | None = None,
        hint: str | None = None,
    ) -> None:
        self.message, self.file, self.line, self.hint = message, file, line, hint
        where = "" if file is None else f"{file}: " if line is None else f"{file}:{line}: "
        text = where + message + (f"; {hint}" if hint else "")
        # A line end in a name or a value, which is shown here, must not end the line, nor may it command a terminal.
        super().__init__(_CONTROL.sub(lambda found: ascii(found[0])[1:-1], text))


class UserErrors(UserError):
    """Several mistakes told at once, one line each, in `errors`."""

    def __init__(self, errors: Sequence[UserError]) -> None:
        self.errors = list(errors)
        Exception.__init__(self, "\n".join(map(str, self.errors)))


def raise_all(errors: Sequence[UserError]) -> None:
    """Raises nothing for no errors, the error itself for one, `UserErrors` for more."""
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise UserErrors(errors)


class Terminated(KeyboardInterrupt):
    """The system asked the program to end (SIGTERM), and it did, everything saved."""
