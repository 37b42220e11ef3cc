"""Tables, charts and pages of the verdict."""
