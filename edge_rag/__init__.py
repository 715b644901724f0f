"""Answers from your own documents, offline: see README.md."""
