"""The one exception that is a message to the user."""


class UserError(Exception):
    """A mistake in the config, the data or the environment, told in one sentence that names the key, file or row."""
