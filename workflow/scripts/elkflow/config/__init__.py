"""The config, typed once; its JSON schema and its reference page are generated from here."""
