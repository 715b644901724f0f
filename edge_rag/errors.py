"""Every error that edge_rag raises on purpose.

EdgeRagError
├── UsageError            what was asked for makes no sense                          (exit 2)
├── DocumentError         one file could not be read as a document
├── LibraryError          a library is missing, locked, full, of another version ...
│   └── LibraryLocked     another process is writing; the message names it
├── ModelError            a model is missing, damaged or could not be fetched
├── MissingExtraError     an optional dependency is not installed
└── IntegrityError        stored bytes are not what was written                      (exit 4)

A message says what is wrong, and where; `mend` is the command or the act that puts it right. The CLI prints both on one line.
"""


class EdgeRagError(Exception):
    """Root of every deliberate error. `mend` is what the user can do about it."""

    exit_code = 1

    def __init__(self, message: str, *, mend: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.mend = mend

    def __str__(self) -> str:
        return f"{self.message}; {self.mend}" if self.mend else self.message


class UsageError(EdgeRagError):
    exit_code = 2


class DocumentError(EdgeRagError):
    pass


class LibraryError(EdgeRagError):
    pass


class LibraryLocked(LibraryError):
    pass


class ModelError(EdgeRagError):
    pass


class MissingExtraError(EdgeRagError):
    def __init__(self, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs the [{extra}] extra", mend=f"run: pip install 'edge-rag[{extra}]'")


class IntegrityError(EdgeRagError):
    exit_code = 4
