"""The demo: the whole stack from nothing, the media pipeline on real files, and everything shut down again."""
