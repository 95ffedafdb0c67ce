"""What strangers may write, read by what reads it: targets for a fuzzer that is led by coverage, each with examples to begin from."""
