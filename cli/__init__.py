"""The command line: parse, build a spec, make one call, render. Nothing here imports torch or Ray when loaded."""
