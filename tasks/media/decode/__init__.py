"""Open one untrusted file in a process of its own.

Nothing here imports Celery or the library: the child starts quickly and dies alone. Decoders are native code; a file that
crashes one, or asks it for all memory, ends this child and not the worker. `look` says what was found.
"""
