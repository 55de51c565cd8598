"""What is spent of people's privacy: noisy releases as data, and what a sequence of them amounts to."""
