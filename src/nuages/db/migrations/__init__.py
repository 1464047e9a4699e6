"""What migrations gain: async functions, batches for large tables, patience with locks."""
