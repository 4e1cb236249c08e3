"""The only errors a person meets: one line each, with the file, the line and the mend."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from os import PathLike
from typing import TypeVar

T = TypeVar("T")
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

    @property
    def errors(self) -> list[UserError]:
        """The mistakes one by one: of several that are told at once each, else this."""
        return [self]

    def as_dict(self) -> dict[str, str | int | None]:
        """What `UserError(**…)` is made of, for JSON."""
        file = None if self.file is None else str(self.file)
        return {"message": self.message, "file": file, "line": self.line, "hint": self.hint}


class UserErrors(UserError):
    """Several mistakes told at once, one line each."""

    def __init__(self, errors: Iterable[UserError]) -> None:
        self._errors = [one for error in errors for one in error.errors]
        super().__init__("; ".join(map(str, self._errors)))
        self.args = ("\n".join(map(str, self._errors)),)

    @property
    def errors(self) -> list[UserError]:
        return self._errors


class Faults(list[UserError]):
    """Collects mistakes, so that a person is told all of them at once."""

    def attempt(self, look: Callable[[], T]) -> T | None:
        """What `look` gives, or None where it raises mistakes, which are kept."""
        try:
            return look()
        except UserError as error:
            self += error.errors
        return None


def raise_all(errors: Iterable[UserError]) -> None:
    """Raises nothing for no errors, the error itself for one, `UserErrors` for more."""
    several = UserErrors(errors)
    if len(several.errors) == 1:
        raise several.errors[0]
    if several.errors:
        raise several


class Diverged(UserError):
    """The loss of a training, or its gradient, is not a finite number."""


class Terminated(KeyboardInterrupt):
    """The system asked the program to end (SIGTERM), and it did, everything saved."""
