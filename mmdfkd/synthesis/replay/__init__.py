"""The parts of the replay bank: its files, what it keeps of an image, and how it draws."""
