"""Evaluation on a Ray cluster: `asd-policy eval --ray [ADDRESS]`. Imported only then.

The pieces: `driver` (hands out the episodes, and alone writes the run's folder), `connect` (the
cluster, and what fits into it), `host` (a policy in an actor on a GPU or CPU, and its environments
in processes beside it).

Every node needs this package with its `sim` and `ray` extras, in the versions of the driver's, and
nothing else: the checkpoint's bytes travel through Ray's object store, a shipped one's too.
Nothing of the working directory is sent. `SCALING.md` says how it runs, and what limits it.
"""
