"""Quality and diversity of the demo model's samples: rules, schedules and the student, scale by scale."""
