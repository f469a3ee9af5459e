"""What a model really costs here, beside what the ledger says: time by phase, bytes by owner."""
