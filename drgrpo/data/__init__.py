"""Problems: where they come from, their order, and the prompts made of them. Imports no torch."""
