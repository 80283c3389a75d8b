"""Float64 references: what every op computes, written without any of the ops."""
