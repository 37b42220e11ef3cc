"""What every room stands on: errors, files, command lines, metrics, manifests."""
