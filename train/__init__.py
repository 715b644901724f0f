"""Training: the methods that make a small model and a selector robust to bad retrieval. Installs as `edge_rag.train`.

Empty so far; one file per method will stand here. Needs the [train] extra, and the runtime never imports it.
"""
