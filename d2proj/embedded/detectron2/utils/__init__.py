"""Process groups, logging, events, registries, files and drawing."""
