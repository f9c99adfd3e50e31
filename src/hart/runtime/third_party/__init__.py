"""Names of other libraries that they do not promise to keep: one file per library, one place to mend."""
