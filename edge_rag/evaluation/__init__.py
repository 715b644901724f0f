"""Measure what is claimed: abstention, and the speed of ingest, search and answers beside peers."""
