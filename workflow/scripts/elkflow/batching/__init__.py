"""Many sequences in few forward passes."""
