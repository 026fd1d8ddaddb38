"""The documented names of other packages over ours, so that changing an import is the migration."""
