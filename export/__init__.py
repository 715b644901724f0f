"""Trained models to the files that the runtime loads. Installs as `edge_rag.export`; needs the [export] extra."""
