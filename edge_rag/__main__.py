"""`python -m edge_rag` is the edge-rag command."""

from edge_rag.cli import main

main()
