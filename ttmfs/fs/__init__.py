"""The mount: the only package that knows FUSE and the only importer of pyfuse3."""
