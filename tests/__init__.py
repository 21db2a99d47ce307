"""A package, as others that are installed beside this one bring a package `tests` of their own."""
