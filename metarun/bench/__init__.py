"""metarun's outer step side by side with that of other libraries: time, memory, and whether the gradient is right."""
