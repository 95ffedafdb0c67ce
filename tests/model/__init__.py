"""The protocol of one job as a small model, explored exhaustively, and compared with what the SQL functions really do.

`rows` has the steps that a row can take, one pure function each; `state` what there is besides (broker, drainers, workers, what a crash of
Postgres may forget); `moves`, `bundle`, `tick` and `faults` what each of them may do next; `promise` what must hold; `explore` goes through
all of it. `walk` takes random paths of the model through the SQL functions. `trace` records the steps of rows in a running system,
`vocabulary` says which steps of `rows` each may be, and `replay` asks them.
"""
