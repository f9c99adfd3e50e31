"""The basis of all other packages: files, configuration sections, devices, processes and ranks, fingerprints."""
