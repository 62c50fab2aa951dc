"""Bad rows: each is an error with its place, cause and fix; what is done with them is decided here.

1. Whoever finds a fault of one row makes a `RowError`. Readers yield it in the row's place and read on.
2. `BadRows` takes them: all are counted and the first are said together, or each is a line of the ledger.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

from surefoot.data.ledger import LISTED, Ledger
from surefoot.data.rows import Conversation, PlainText, Record
from surefoot.data.strictjson import beginning, printable
from surefoot.errors import UserError

OnBadRow: TypeAlias = Literal["stop", "skip"]
LONGEST_MESSAGE = 2_000
"""Characters of one finding; a row may have a name of a million characters."""


class RowError(UserError):
    """One row is wrong; those after it may be right. The message is one line, whatever the row holds."""

    def __init__(self, where: str, kind: str, message: str) -> None:
        """`where`: the row, as `Row.where`; `kind`: the fault in a few words that all rows with it share;
        `message`: where, what, the fix and the row's beginning."""
        if len(message) > LONGEST_MESSAGE:
            half = LONGEST_MESSAGE // 2
            message = f"{message[:half]} … {message[-half:]}"
        super().__init__(printable(message))
        self.where = where
        self.kind = kind


def refused(record: Record, where: str, kind: str, message: str) -> RowError:
    """The error of a record that was read but cannot be learned, with its beginning."""
    if isinstance(record, Conversation):
        shown: object = record.messages
    elif isinstance(record, PlainText):
        shown = {"prompt": record.prompt, "completion": record.completion}
    else:
        shown = {"input_ids": record.input_ids}
    return RowError(where, kind, f"{where}: {message} The row begins: {beginning(shown)}")


class BadRows:
    """The bad rows of one data set."""

    def __init__(self, ledger: Ledger, on_bad_row: OnBadRow = "stop") -> None:
        """stop: they are kept for `check`; skip: each is dropped, as the ledger says."""
        self.count = 0
        """Rows for which the work will stop."""
        self._ledger = ledger
        self._skip = on_bad_row == "skip"
        self._first: RowError | None = None
        self._messages: list[str] = []
        self._last = ""

    def add(self, error: RowError) -> None:
        """Take a row's error; a row's second one says nothing new."""
        if self._skip:
            self._ledger.drop(error.kind, error.where)
        elif error.where != self._last:
            self.count += 1
            self._last = error.where
            self._first = self._first or error.with_traceback(None)
            if len(self._messages) < LISTED:
                self._messages.append(str(error))

    def check(self, rows: int) -> None:
        """Raise UserError, with the first of the bad rows and how many there are, if there are any.

        `rows`: how many were read, good and bad.
        """
        if self._first is None:
            return
        if self.count == 1:
            raise self._first
        more = self.count - len(self._messages)
        bad = f"... and {more:,} more bad rows" if more else f"{self.count:,} bad rows"
        raise UserError(
            "\n".join(self._messages)
            + f"\n{bad}; {rows - self.count:,} of {rows:,} rows are fine. on_bad_row=skip (--on-bad-row skip) "
            f"leaves bad rows out and lists them in the ledger."
        )
