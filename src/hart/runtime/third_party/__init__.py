"""All uses of undocumented parts of other libraries, which may change: one file per library."""
