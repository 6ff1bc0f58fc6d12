"""One module per command: settings in, work done, a report out. No terminal in sight."""
