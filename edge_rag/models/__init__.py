"""Catalog, fetching, embedder and generators. fetch.py and remote.py are the only files of the runtime that open sockets."""
