"""Training: the methods that make a small model and a selector robust to bad retrieval. Installs as `edge_rag.train`.

One file for each method, and what they share. Needs the [train] extra, and the runtime never imports it.
"""
