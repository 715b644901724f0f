"""`edge-rag bench`: every published figure about speed, files and fitted rules, with peers measured in the same run."""
