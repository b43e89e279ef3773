"""Private hooks of libraries, one module for each library; no other package uses a private name of a library.

Every hook states why it is needed and the upstream thread, if there is one, and `tests/test_compat.py` and
`tests/test_compat_training.py` check that the installed library still has the hook and calls it.
Modules here import their own library, torch, datasets, psutil and `sacpo.errors`, and nothing else of this package.
"""
