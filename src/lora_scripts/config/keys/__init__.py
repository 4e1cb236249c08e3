"""The keys of the config, by group; `schema.TrainConfig` puts the groups together."""
