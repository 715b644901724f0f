"""One knowledge base: SQLite store, ingest, sync, index generations, doctor."""
