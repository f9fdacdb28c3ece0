"""Any diffusers pipeline as a teacher, and as a student."""
