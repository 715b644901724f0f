"""A file on disk becomes a Document with offsets and pages, and a Document becomes chunks."""
