"""What a second checkpoint or an adapter changed, and the directions in which a matrix writes."""
