"""What is judged before a run starts, in processes of their own."""
