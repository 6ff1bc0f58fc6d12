"""Every job by questions: flows are plain values (`questions`), and only `terminal` and `menu` touch the world."""
