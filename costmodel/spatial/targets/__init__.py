"""Target descriptions that come with dlc, one JSON file each; docs/spatial-model.md says what the fields mean."""
