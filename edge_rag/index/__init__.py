"""The vector index: the Python face of native/, and its exact numpy twin."""
