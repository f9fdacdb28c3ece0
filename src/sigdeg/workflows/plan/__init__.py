"""Planning from the command line: the questions, sources of spectra, tables and pictures."""
