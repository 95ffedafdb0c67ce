"""Local servers: what `bridge up`, `bridge demo` and the tests run on a machine that has only Python."""
