"""What tests share: real processes, a real PostgreSQL, real brokers."""
