"""The edge-rag command. One module for each group of commands: parse, call the library, print."""
