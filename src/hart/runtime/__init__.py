"""What everything stands on: files, strict reading, devices, processes and their ranks, fingerprints."""
